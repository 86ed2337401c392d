"""Codecs: what each makes of a tensor, how far it is off, and that a placed graph with them can be cut anywhere."""

import functools
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.flagir.models import Array, canonical, inputs_for, parse, random_model, run, with_weights
from tests.flagir.test_segments import IF, LOOP, check_steps, random_placement, run_steps

from flagsplit.errors import ModelError
from flagsplit.flagir import ValueType, cut_into_steps, extract, plans_on, read_placement, write_placement
from flagsplit.flagir.codecs import (
    NO_CODEC,
    BoundaryCut,
    apply_codecs,
    boundary_cuts,
    codec_names,
    codecs_for,
    encoded_bytes,
    encoded_types,
)
from flagsplit.flagir.codecs.functions import DOMAIN, function
from flagsplit.flagir.codecs.table import codec

CODECS = codec_names()[1:]
LIMIT = 2.0**127
FLOAT = ir.DataType.FLOAT


@functools.cache
def coder(name: str, rank: int) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A model that encodes and one that decodes tensors of a rank."""
    form = f"float[{','.join('abcde'[:rank])}]"
    proto = parse(f"g ({form} x) => ({form} y) {{ h = Neg(x) y = Neg(h) }}")
    for info in (*proto.graph.input, *proto.graph.output):
        info.type.tensor_type.shape.SetInParent()
    model = canonical(proto)
    place(model, [0, 1], 2)
    apply_codecs(model, [BoundaryCut("h", 0, 1, name)])
    nodes = {node.op_type: ir.serde.serialize_node(node) for node in model.graph}
    halves = []
    for way in ("Encode", "Decode"):
        node = next(node for op, node in nodes.items() if op.startswith(way))
        node.ClearField("device_configurations")
        values = {v.name: v for v in ir.convenience.create_value_mapping(model.graph).values()}
        graph = onnx.helper.make_graph(
            [node],
            way,
            [ir.serde.serialize_value(values[each]) for each in node.input],
            [ir.serde.serialize_value(values[each]) for each in node.output],
        )
        imports = [onnx.helper.make_opsetid("", 23), onnx.helper.make_opsetid(DOMAIN, 1)]
        body = ir.serde.serialize_function(function(node.op_type))
        halves.append(onnx.helper.make_model(graph, functions=[body], opset_imports=imports, ir_version=11))
        onnx.checker.check_model(halves[-1], full_check=True)
    return halves[0], halves[1]


def there_and_back(name: str, array: Array) -> tuple[dict[str, Array], Array]:
    """The encoded tensors by role, and what comes back."""
    encoder, decoder = coder(name, array.ndim)
    made = run(encoder, {"h": array})
    feed = dict(zip((info.name for info in decoder.graph.input), made, strict=True))
    (back,) = run(decoder, feed)
    return dict(zip(encoded_types(name, ValueType(FLOAT, array.shape)), made, strict=True)), back


def ranges(name: str, array: Array) -> Array:
    """The width of the range that each element belongs to, of the array's shape."""
    lead = 0 if name == "u8" else 2 if array.ndim > 2 else max(array.ndim - 1, 0)
    rest = tuple(range(lead, array.ndim))
    high, low = array.max(axis=rest, keepdims=True, initial=0), array.min(axis=rest, keepdims=True, initial=0)
    return np.asarray(np.broadcast_to(high.astype(np.float64) - low, array.shape))


def assert_near(name: str, back: Array, array: Array) -> None:
    """Within half a step of the range, or within the rounding of half precision."""
    if name == "fp16":
        np.testing.assert_array_equal(back, array.astype(np.float16).astype(np.float32))
        return
    levels = 15 if name == "u4_per_channel" else 255
    step = ranges(name, array) / levels
    assert (np.abs(back.astype(np.float64) - array) <= step * (0.5 + 1e-4) + 1e-37).all()


SHAPES = [(), (1,), (7,), (3, 5), (4, 1), (1, 9), (2, 3, 5), (1, 4, 7, 3), (2, 3, 2, 1, 3)]
EMPTY = [(0,), (0, 3), (3, 0), (2, 0, 3), (2, 3, 0), (0, 2, 3, 4)]


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("shape", SHAPES + EMPTY, ids=str)
def test_shapes(name: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(len(shape))
    for scale, shift in ((1.0, 0.0), (1e-3, 5.0), (40.0, -100.0), (1e30, 0.0) if name != "fp16" else (100.0, 3.0)):
        array = np.asarray(rng.standard_normal(shape) * scale + shift, np.float32)
        made, back = there_and_back(name, array)
        assert back.shape == shape
        assert back.dtype == np.float32
        assert_near(name, back, array)
        types = encoded_types(name, ValueType(FLOAT, shape))
        assert {role: (ValueType(kind.dtype, kind.shape)) for role, kind in types.items()} == {
            role: ValueType(ir.DataType.from_numpy(each.dtype), each.shape) for role, each in made.items()
        }
        assert encoded_bytes(name, ValueType(FLOAT, shape)) == sum(each.nbytes for each in made.values())


@pytest.mark.parametrize("name", CODECS)
def test_what_returns_exactly(name: str) -> None:
    for number in (0.0, -7.0, 1.0, 64.0):
        array = np.full((2, 3, 4), number, np.float32)
        np.testing.assert_allclose(there_and_back(name, array)[1], array, rtol=1e-6)
    relu = np.maximum(np.random.default_rng(1).standard_normal((1, 4, 50)), 0).astype(np.float32)
    assert (there_and_back(name, relu)[1][relu == 0] == 0).all()


@pytest.mark.parametrize("name", CODECS)
def test_twice_is_once(name: str) -> None:
    array = np.random.default_rng(2).standard_normal((2, 5, 11)).astype(np.float32)
    once = there_and_back(name, array)[1]
    np.testing.assert_allclose(there_and_back(name, once)[1], once, atol=1e-6)


def test_half_precision_passes_what_is_not_finite() -> None:
    array = np.array([[np.nan, np.inf, -np.inf, 65504, 65519, 65520, 1e-8, -0.0]], np.float32)
    back = there_and_back("fp16", array)[1]
    np.testing.assert_array_equal(back, [[np.nan, np.inf, -np.inf, 65504, 65504, np.inf, 0, -0.0]])
    assert np.signbit(back[0, -1])


@pytest.mark.parametrize("name", ["u8", "u8_per_channel", "u4_per_channel"])
def test_what_is_not_finite(name: str) -> None:
    """NaN becomes 0, an infinity the end of a range that reaches to 2^127; other rows are as without them."""
    array = np.array([[1, np.nan, 2, -1], [np.inf, 1, 0, np.nan], [0, -np.inf, 0, 0], [3, 2, 1, 0]], np.float32)
    back = there_and_back(name, array)[1]
    assert (back[np.isnan(array)] == 0).all()
    assert np.isfinite(back).all()
    assert abs(back[1, 0] / LIMIT - 1) < 0.1
    assert abs(back[2, 1] / LIMIT + 1) < 0.1
    if name != "u8":
        np.testing.assert_array_equal(back[3], there_and_back(name, array[3:])[1][0])
        np.testing.assert_array_equal(back[0], there_and_back(name, np.nan_to_num(array[:1]))[1][0])
        np.testing.assert_array_equal(back[1, 1:], 0)
        np.testing.assert_array_equal(back[2, [0, 2, 3]], 0)


@pytest.mark.parametrize("name", ["u8", "u8_per_channel", "u4_per_channel"])
def test_the_largest_and_the_smallest_numbers(name: str) -> None:
    large = np.array([[3.4e38, -3.4e38, 1e38, 0]], np.float32)
    back = there_and_back(name, large)[1]
    assert np.isfinite(back).all()
    assert (np.abs(back) <= LIMIT * 1.1).all()
    assert_near(name, back, np.clip(large, -LIMIT, LIMIT))
    small = np.array([[1e-40, -3e-39, 2e-38, 0]], np.float32)
    assert_near(name, there_and_back(name, small)[1], small)
    sums_to_infinity = np.full((1, 64), 1e38, np.float32)
    np.testing.assert_allclose(there_and_back(name, sums_to_infinity)[1], sums_to_infinity, rtol=1e-6)


@pytest.mark.parametrize("name", ["u8_per_channel", "u4_per_channel"])
def test_ranges_do_not_depend_on_the_neighbors(name: str) -> None:
    rng = np.random.default_rng(3)
    spread = np.array([1, 10, 100, 0.1], np.float32).reshape(4, 1, 1, 1)
    batch = rng.standard_normal((4, 3, 6, 5)).astype(np.float32) * spread
    together = there_and_back(name, batch)[1]
    for index in range(4):
        np.testing.assert_array_equal(together[index : index + 1], there_and_back(name, batch[index : index + 1])[1])


def test_the_table() -> None:
    picture = ValueType(FLOAT, (1, 64, 56, 56))
    elements = picture.elements
    assert codec_names() == ("none", "fp16", "u8_per_channel", "u8", "u4_per_channel")
    assert {name: encoded_bytes(name, picture) for name in codec_names()} == {
        "none": 4 * elements,
        "fp16": 2 * elements,
        "u8_per_channel": elements + 64 * 5,
        "u8": elements + 5,
        "u4_per_channel": elements // 2 + 64 * 5 + 4 * 8,
    }
    assert encoded_types("none", picture) == {"payload": picture}
    assert encoded_types("u4_per_channel", ValueType(FLOAT, (3, 3)))["payload"].shape == (5,)
    assert codecs_for(picture) == codec_names()
    assert codecs_for(ValueType(ir.DataType.INT64, (3,))) == ("none",)
    with pytest.raises(ModelError, match="codec 'u8' expects FLOAT, came INT64"):
        encoded_types("u8", ValueType(ir.DataType.INT64, (3,)))
    with pytest.raises(ModelError, match=r"one of the codecs none, fp16, .*, came 'zip'"):
        encoded_bytes("zip", picture)


# ---- on placed graphs

FAN = """g (float[N, 4, 6] x) => (float[N, 4, 6] p, float[N, 4, 6] q, float[N, 4, 6] v) {
    v = Tanh(x)  a = Neg(v)  p = Exp(a)  b = Abs(v)  c = Sigmoid(v)  d = Add(b, c)  e = Add(d, x)  q = Mul(e, v) }"""
ATTENTION = """g (float[N, 6, 8] x, int64[N, 6] ids) => (float[N, 6, 8] y, int64[N, 6] z) {
    q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) t = Transpose <perm = [0, 2, 1]> (k)
    s = MatMul(q, t) w = Softmax(s) h = MatMul(w, v) y = Add(h, x) z = Neg(ids) }"""


def attention() -> onnx.ModelProto:
    return with_weights(parse(ATTENTION), wq=(8, 8), wk=(8, 8), wv=(8, 8))


GRAPHS: dict[str, Callable[[], onnx.ModelProto]] = {
    **{f"random {seed}": functools.partial(random_model, seed) for seed in (1, 2, 3, 4, 5, 6, 7, 13)},
    "if": functools.partial(parse, IF),
    "loop": functools.partial(parse, LOOP),
    "fan": functools.partial(parse, FAN),
    "attention": attention,
}


def place(model: ir.Model, placement: list[int] | dict[str, int], tiers: int) -> None:
    if not isinstance(placement, dict):
        placement = {node.name or "": tier for node, tier in zip(model.graph, placement, strict=True)}
    write_placement(model, "p", [f"t{index}" for index in range(tiers)], placement)


def random_cuts(model: ir.Model, rng: np.random.Generator) -> list[BoundaryCut]:
    """A random codec for everything that crosses and that a codec takes."""
    values = ir.convenience.create_value_mapping(model.graph)
    return [
        BoundaryCut(cut.value, cut.from_tier, cut.to_tier, str(rng.choice(CODECS)) if takes else NO_CODEC)
        for cut in boundary_cuts(model)
        for takes in [values[cut.value].dtype == FLOAT and rng.random() < 0.85]
    ]


def crossing(model: ir.Model) -> set[str]:
    return {cut.value for cut in boundary_cuts(model)}


@pytest.mark.slow
@pytest.mark.parametrize("name", GRAPHS)
def test_the_segments_are_the_placed_model_bit_for_bit(name: str) -> None:
    rng = np.random.default_rng(len(name) * 7)
    source = canonical(GRAPHS[name]())
    used: set[str] = set()
    for number in range(10):
        model = source.clone()
        tiers = 2 + number % 3
        place(model, random_placement(model, rng, tiers), tiers)
        before = crossing(model)
        cuts = random_cuts(model, rng)
        apply_codecs(model, cuts)
        used |= {cut.codec for cut in cuts}
        proto = ir.to_proto(model)
        onnx.checker.check_model(proto, full_check=True)
        placement = read_placement(model, "p")
        encoded = {cut.value for cut in cuts if cut.codec != NO_CODEC}
        assert crossing(model).isdisjoint(encoded - {cut.value for cut in cuts if cut.codec == NO_CODEC})
        assert before - encoded <= crossing(model)
        steps = cut_into_steps(model, placement, tiers)
        check_steps(model, steps, placement)
        inputs = inputs_for(proto, seed=number)
        whole = run(proto, inputs, optimize=False)
        for one, other in zip(run_steps(model, steps, inputs, optimize=False), whole, strict=True):
            np.testing.assert_array_equal(one, other)
        check_errors(model, proto, inputs)
    assert used & set(CODECS)


def check_errors(model: ir.Model, proto: onnx.ModelProto, inputs: dict[str, Array]) -> None:
    """Every decoded value of the one placed model is as near to what was encoded as its codec promises."""
    decoded = [node.outputs[0].name or "" for node in model.graph if node.op_type.startswith("Decode")]
    made = [name.rpartition(".at_")[0].rpartition(".") for name in decoded]
    known = {info.name for info in (*proto.graph.output, *proto.graph.input)}
    wanted = dict.fromkeys([*decoded, *(value for value, _, _ in made)])
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in known)
    arrays = dict(zip([info.name for info in proto.graph.output], run(proto, inputs, optimize=False), strict=True))
    for name, (value, _, chosen) in zip(decoded, made, strict=True):
        assert_near(chosen, arrays[name], arrays[value] if value in arrays else inputs[value])


@pytest.mark.slow
@pytest.mark.parametrize("name", CODECS)
def test_the_optimizer_keeps_the_codecs(name: str) -> None:
    """With ORT's graph optimizations too: it may not see through an Encode and its Decode."""
    model = canonical(parse("g (float[2, 3, 8] x) => (float[2, 3, 8] y) { h = Tanh(x) y = Neg(h) }"))
    place(model, [0, 1], 2)
    apply_codecs(model, [BoundaryCut("h", 0, 1, name)])
    proto = ir.to_proto(model)
    inputs = inputs_for(proto)
    (made,) = run(proto, inputs, optimize=True)
    hidden = run(parse("g (float[2, 3, 8] x) => (float[2, 3, 8] y) { y = Tanh(x) }"), inputs)[0]
    np.testing.assert_array_equal(-made, there_and_back(name, hidden)[1])
    assert (made != -hidden).any()
    (parts,) = run_steps(model, cut_into_steps(model, read_placement(model, "p"), 2), inputs, optimize=True)
    np.testing.assert_array_equal(parts, made)


def ops(model: ir.Model) -> dict[str, tuple[str, int]]:
    placement = read_placement(model, "p")
    return {node.name or "": (node.op_type, placement[node.name or ""]) for node in model.graph}


def test_one_encode_and_a_decode_on_each_tier() -> None:
    model = canonical(parse(FAN))
    place(model, [0, 1, 1, 2, 2, 2, 1, 0], 3)
    assert BoundaryCut("v", 0, 2) in boundary_cuts(model)
    apply_codecs(model, [BoundaryCut("v", 0, 2, "u8_per_channel")])
    added = {name: op for name, op in ops(model).items() if op[0].endswith("U8")}
    assert added == {
        "v.u8_per_channel.encode": ("EncodeU8", 0),
        "v.u8_per_channel.at_1.decode": ("DecodeU8", 1),
        "v.u8_per_channel.at_2.decode": ("DecodeU8", 2),
    }
    values = ir.convenience.create_value_mapping(model.graph)
    assert str(values["v.u8_per_channel.scale"].shape) == "[N,4]"
    assert [node.op_type for node, _ in values["v"].uses()] == ["Mul", "EncodeU8"]
    assert values["v"].is_graph_output()
    assert set(model.functions) == {(DOMAIN, "EncodeU8", ""), (DOMAIN, "DecodeU8", "")}


def test_the_nearest_cut_wins_and_the_far_one_takes_the_rest() -> None:
    model = canonical(parse(FAN))
    place(model, [0, 1, 1, 2, 3, 3, 1, 0], 4)
    apply_codecs(model, [BoundaryCut("v", 0, 3, "u8"), BoundaryCut("v", 0, 2, "none"), BoundaryCut("v", 0, 1, "fp16")])
    names = [name for name, (op, _) in ops(model).items() if op.startswith(("Encode", "Decode"))]
    assert sorted(names) == ["v.fp16.at_1.decode", "v.fp16.encode", "v.u8.at_3.decode", "v.u8.encode"]


def test_inputs_are_encoded_on_the_first_tier_and_values_come_back() -> None:
    model = canonical(parse(FAN))
    place(model, [2, 0, 0, 2, 2, 2, 2, 2], 3)
    apply_codecs(model, [BoundaryCut("x", 0, 2, "fp16"), BoundaryCut("v", 2, 0, "u4_per_channel")])
    placed = ops(model)
    assert placed["x.fp16.encode"] == ("EncodeFp16", 0)
    assert placed["x.fp16.at_2.decode"] == ("DecodeFp16", 2)
    assert placed["v.u4_per_channel.encode"] == ("EncodeU4", 2)
    assert placed["v.u4_per_channel.at_0.decode"] == ("DecodeU4", 0)
    assert boundary_cuts(model) == (
        BoundaryCut("x.fp16.payload", 0, 2),
        *(BoundaryCut(f"v.u4_per_channel.{role}", 2, 0) for role in ("payload", "scale", "zero_point", "shape")),
    )


def test_a_segment_has_the_functions_that_it_calls() -> None:
    model = canonical(parse(FAN))
    place(model, [0, 1, 1, 1, 1, 1, 1, 1], 2)
    apply_codecs(model, [BoundaryCut("v", 0, 1, "u8")])
    first, second = (extract(model, step.segment) for step in cut_into_steps(model, read_placement(model, "p"), 2))
    assert [name for _, name, _ in first.functions] == ["EncodeU8"]
    assert [name for _, name, _ in second.functions] == ["DecodeU8"]
    assert first.opset_imports == {"": 23, DOMAIN: 1}
    plain = canonical(parse(FAN))
    place(plain, [0, 1, 1, 1, 1, 1, 1, 1], 2)
    parts = cut_into_steps(plain, read_placement(plain, "p"), 2)
    assert extract(plain, parts[0].segment).opset_imports == {"": 23}


def test_a_step_that_reads_what_was_decoded_before_has_an_id_of_its_own() -> None:
    text = """g (float[2, 3] x) => (float[2, 3] y) { v = Tanh(x) a = Neg(v) b = Exp(a) y = Mul(b, v) }"""
    ids = {}
    for chosen in ("none", "u8", "fp16"):
        model = canonical(parse(text))
        place(model, [0, 1, 2, 1], 3)
        apply_codecs(model, [BoundaryCut("v", 0, 1, chosen)])
        steps = cut_into_steps(model, read_placement(model, "p"), 3)
        assert [step.tier for step in steps] == [0, 1, 2, 1]
        ids[chosen] = steps[-1].segment.id
        assert steps[-1].segment.inputs[1] == ("v" if chosen == "none" else f"v.{chosen}.at_1")
    assert len(set(ids.values())) == 3


def test_names_that_are_taken() -> None:
    model = canonical(parse("g (float[2] x) => (float[2] y) { h = Neg(x) y = Exp(h) }"))
    model.graph[0].name = "h.fp16.encode"
    model.graph.inputs[0].name = "h.fp16.payload"
    place(model, [0, 1], 2)
    apply_codecs(model, [BoundaryCut("h", 0, 1, "fp16")])
    assert "h.fp16.encode_1" in ops(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (BoundaryCut("w", 0, 1, "u8"), "expected a value of tier 0, came 'w': no such value"),
        (BoundaryCut("v", 1, 2, "u8"), "expected a value of tier 1, came 'v': made on tier 0"),
        (BoundaryCut("e", 2, 1, "u8"), "does not go from tier 2 to tier 1: no node there reads it"),
        (BoundaryCut("q", 2, 0, "u8"), "it is an answer, which leaves as it is"),
        (BoundaryCut("v", 0, 1, "mp3"), "expected one of the codecs"),
    ],
)
def test_cuts_that_cannot_be(cut: BoundaryCut, message: str) -> None:
    model = canonical(parse(FAN))
    place(model, [0, 1, 1, 2, 2, 2, 2, 2], 3)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    with pytest.raises(ModelError, match=message):
        apply_codecs(model, [BoundaryCut("v", 0, 2, "fp16"), cut])
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_the_same_cut_twice() -> None:
    model = canonical(parse(FAN))
    place(model, [0, 1, 1, 2, 2, 2, 2, 2], 3)
    with pytest.raises(ModelError, match="two cuts that end at tier 1"):
        apply_codecs(model, [BoundaryCut("v", 0, 1, "u8"), BoundaryCut("v", 0, 1, "fp16")])


def test_integers_have_no_codec() -> None:
    model = canonical(parse("g (int64[2] x) => (int64[2] y) { h = Neg(x) y = Abs(h) }"))
    place(model, [0, 1], 2)
    with pytest.raises(ModelError, match="expects FLOAT, came INT64; send the value with codec 'none'"):
        apply_codecs(model, [BoundaryCut("h", 0, 1, "u8")])


@pytest.mark.parametrize("plans", [0, 2])
def test_codecs_belong_to_one_plan(plans: int) -> None:
    model = canonical(parse(FAN))
    for index in range(plans):
        write_placement(model, f"p{index}", ["t0", "t1"], {node.name or "": index for node in model.graph})
    assert len(plans_on(model)) == plans
    with pytest.raises(ModelError, match=f"a model with one plan, came one with {plans}"):
        apply_codecs(model, [])


def test_every_codec_has_both_functions() -> None:
    for name in CODECS:
        for way in ("Encode", "Decode"):
            made = function(way + codec(name).functions)
            assert made.domain == DOMAIN
            assert made is not function(way + codec(name).functions)
