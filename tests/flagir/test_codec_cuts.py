"""Codecs on placed graphs: the segments are the placed model, whatever is cut and encoded where."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.flagir.coded_graphs import CODECS, FAN, GRAPHS, crossing, place, random_cuts
from tests.flagir.coding import assert_near, there_and_back
from tests.flagir.models import Array, canonical, inputs_for, parse, run
from tests.flagir.test_segments import check_steps, random_placement, run_steps

from flagsplit.errors import ModelError
from flagsplit.flagir import cut_into_steps, extract, plans_on, read_placement, write_placement
from flagsplit.flagir.codecs import NO_CODEC, BoundaryCut, apply_codecs, boundary_cuts
from flagsplit.flagir.codecs.functions import DOMAIN, function
from flagsplit.flagir.codecs.table import codec


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
