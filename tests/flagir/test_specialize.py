"""Static specialisation: the same answers at the sizes that were bound, with nothing left to compute about shapes."""

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.flagir.models import Array, assert_close, canonical, inputs_for, parse, random_model, run, with_weights
from tests.flagir.test_groups import transformer
from tests.flagir.test_segments import LOOP

from flagsplit.apps import zoo
from flagsplit.errors import InputError, ModelError, PeerError
from flagsplit.flagir import (
    canonicalize,
    cut_into_steps,
    extract,
    plans_on,
    read_model,
    read_placement,
    to_bytes,
    violations,
    write_placement,
)
from flagsplit.flagir.codecs import BoundaryCut, apply_codecs
from flagsplit.flagir.specialize import Buckets, buckets, open_values, specialize

SHAPES_OF_SHAPES = """g (float[N, 3, H, W] x) => (float[N, M] y, int64[1] pixels) <int64[1] minus = {-1},
    int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] four = {4}> {
    a = Conv <pads = [1, 1, 1, 1]> (x, k) s = Shape(a) n = Slice(s, zero, one) t = Concat <axis = 0> (n, minus)
    f = Reshape(a, t) hw = Slice(s, two, four) pixels = ReduceProd <keepdims = 1> (hw)
    i = Cast <to = 6> (n) j = Cast <to = 7> (i) u = Concat <axis = 0> (j, one) e = ConstantOfShape(u) y = Add(f, e) }"""


def shape_arithmetic() -> ir.Model:
    return canonical(with_weights(parse(SHAPES_OF_SHAPES), k=(4, 3, 3, 3)))


def assert_same(model: ir.Model, dims: Mapping[str, int]) -> ir.Model:
    """The specialized model is canonical, static, valid, shares weights, and answers as the model does."""
    before = to_bytes(model)
    made = specialize(model, dims)
    assert to_bytes(model) == before
    assert violations(made) == ()
    assert open_values(made) == ()
    assert [value.name for value in made.graph.outputs] == [value.name for value in model.graph.outputs]
    shared = set(made.graph.initializers) & set(model.graph.initializers)
    for name in shared:
        assert made.graph.initializers[name].const_value is model.graph.initializers[name].const_value
    tensors = {name: value.const_value for name, value in model.graph.initializers.items()}
    assert {name for name, tensor in tensors.items() if tensor is not None and tensor.nbytes > 1024} <= shared
    proto, small = ir.to_proto(model), ir.to_proto(made)
    onnx.checker.check_model(small, full_check=True)
    inputs = inputs_for(small)
    assert {name: array.shape for name, array in inputs.items()} == {
        value.name: tuple(value.shape or ()) for value in made.graph.inputs
    }
    assert_close(run(small, inputs, optimize=False), run(proto, inputs, optimize=False), relative=0)
    assert_close(run(small, inputs), run(proto, inputs), relative=1e-5)
    return made


@pytest.mark.parametrize("sizes", [(1, 8, 8), (3, 5, 9)])
def test_shape_arithmetic_becomes_constants(sizes: tuple[int, int, int]) -> None:
    made = assert_same(shape_arithmetic(), dict(zip("NHW", sizes, strict=True)))
    assert Counter(node.op_type for node in made.graph) == {"Conv": 1, "Reshape": 1, "Add": 1, "Identity": 1}
    assert [str(value.shape) for value in made.graph.outputs] == [f"[{sizes[0]},{4 * sizes[1] * sizes[2]}]", "[1]"]


@pytest.mark.parametrize("seed", [1, 3, 5, 7, 13, 15])
def test_random_graphs(seed: int) -> None:
    for size in (1, 3):
        assert_same(canonical(random_model(seed)), {"N": size})


def test_what_was_folded_has_the_shape_of_its_tensor() -> None:
    """The length of a Range is not known before it is made."""
    text = """g (float[N] x) => (float[N] y) <int64 zero = {0}, int64 one = {1}> {
        n = Size(x) r = Range(zero, n, one) c = Cast <to = 1> (r) y = Add(x, c) }"""
    made = assert_same(canonical(parse(text)), {"N": 4})
    (constant,) = made.graph.initializers.values()
    assert (constant.dtype, constant.shape) == (ir.DataType.FLOAT, ir.Shape([4]))


def test_a_transformer() -> None:
    made = assert_same(canonical(transformer()), {"batch": 1, "seq": 7})
    assert not any(node.op_type == "Shape" for node in made.graph)


def test_part_of_the_symbols() -> None:
    made = specialize(shape_arithmetic(), {"H": 8, "W": 8})
    assert str(made.graph.inputs[0].shape) == "[N,3,8,8]"
    assert str(made.graph[0].outputs[0].shape) == "[N,4,8,8]"
    again = specialize(made, {"N": 2})
    assert open_values(again) == ()
    inputs = {"x": np.ones((2, 3, 8, 8), np.float32)}
    assert_close(run(ir.to_proto(again), inputs), run(ir.to_proto(made), inputs), relative=1e-6)


def test_what_depends_on_data_stays_open() -> None:
    text = "g (float[N] x) => (int64[1, M] y, float[N] z) { y = NonZero(x) z = Neg(x) }"
    made = specialize(canonical(parse(text)), {"N": 4})
    assert open_values(made) == ("y",)
    inputs = {"x": np.array([0, 1, 0, 2], np.float32)}
    assert_close(run(ir.to_proto(made), inputs), run(ir.to_proto(canonical(parse(text))), inputs), relative=0)


def test_subgraphs() -> None:
    text = LOOP.replace("float[2] x", "float[K] x").replace("<float[2] k = {0.5, 2.0}>", "<float[1] k = {0.5}>")
    model = canonical(parse(text.replace("float[2]", "float[K]").replace("float[m, 2]", "float[m, K]")))
    made = specialize(model, {"K": 5})
    assert set(open_values(made)) == {"z", "every"}
    inputs = {"n": np.array(3), "x": np.arange(5, dtype=np.float32)}
    assert_close(run(ir.to_proto(made), inputs), run(ir.to_proto(model), inputs), relative=0)


def test_plans_go_and_metadata_stays() -> None:
    model = shape_arithmetic()
    model.metadata_props["characters"] = "abc"
    write_placement(model, "p", ["phone", "cloud"], {node.name or "": 0 for node in model.graph})
    made = specialize(model, {"N": 1, "H": 4, "W": 4})
    assert plans_on(made) == {}
    assert not any(node.device_configurations for node in made.graph)
    assert plans_on(model) == {"p": ("phone", "cloud")}
    assert made.metadata_props == model.metadata_props


@pytest.mark.parametrize("codec", ["u8_per_channel", "u4_per_channel", "fp16"])
def test_segments_with_codecs(codec: str) -> None:
    model = canonical(parse("g (float[N, 4, W] x) => (float[N, 4, W] y) { h = Tanh(x) y = Exp(h) }"))
    write_placement(model, "p", ["phone", "cloud"], {node.name or "": at for at, node in enumerate(model.graph)})
    apply_codecs(model, [BoundaryCut("h", 0, 1, codec)])
    first, second = (extract(model, step.segment) for step in cut_into_steps(model, read_placement(model, "p"), 2))
    made = specialize(first, {"N": 2, "W": 6})
    assert violations(made) == ()
    inputs = {"x": np.random.default_rng(0).standard_normal((2, 4, 6)).astype(np.float32)}
    sent = run(ir.to_proto(made), inputs)
    assert_close(sent, run(ir.to_proto(first), inputs), relative=0)
    received: dict[str, Array] = dict(zip([value.name or "" for value in second.graph.inputs], sent, strict=True))
    symbols = {str(dim) for value in second.graph.inputs for dim in value.shape or () if not isinstance(dim, int)}
    sizes = {"N": 2, "W": 6, "half_of_N_4_W": 24}
    last = specialize(second, {name: sizes[name] for name in symbols})
    assert_close(run(ir.to_proto(last), received), run(ir.to_proto(second), received), relative=0)


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ({"B": 1}, r"expected a symbolic dimension of the inputs \(N, H, W\), came 'B'"),
        ({"N": 0}, "at least 1 for dimension 'N', came 0"),
    ],
)
def test_dims_that_cannot_be(dims: dict[str, int], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        specialize(shape_arithmetic(), dims)


def test_sizes_that_contradict_the_operators() -> None:
    model = canonical(with_weights(parse("g (float[N, K] x) => (float[N, 4] y) { y = MatMul(x, w) }"), w=(8, 4)))
    with pytest.raises(ModelError, match="contradicts itself at K=9"):
        specialize(model, {"K": 9})


def test_buckets() -> None:
    model = shape_arithmetic()
    made = buckets(model, "W", [16, 4, 8, 8], {"N": 1, "H": 4})
    assert isinstance(made, Buckets)
    assert list(made) == [4, 8, 16]
    assert len(made) == 3
    assert made.symbol == "W"
    assert [str(each.graph.inputs[0].shape) for each in made.values()] == [f"[1,3,4,{size}]" for size in (4, 8, 16)]
    tensors = {id(each.graph.initializers["k"].const_value) for each in made.values()}
    assert tensors == {id(model.graph.initializers["k"].const_value)}
    assert [made.holding(size) for size in (1, 4, 5, 8, 9, 16)] == [4, 4, 8, 8, 16, 16]
    for size in (0, 17):
        with pytest.raises(InputError, match=f"a size of 1 to 16 for dimension 'W', came {size}; add a bucket"):
            made.holding(size)
    with pytest.raises(ModelError, match="at least one size for dimension 'W'"):
        buckets(model, "W", [])


def test_padding_by_the_rule() -> None:
    """Values that count for nothing at the end, and the end of the answer dropped: masked attention is exact."""
    model = canonical(transformer(layers=1))
    made = buckets(model, "seq", [4, 8], {"batch": 1})
    ids, keep = np.array([[3, 1, 4, 1, 5]]), np.ones((1, 1, 1, 5), np.float32)
    (wanted,) = run(ir.to_proto(model), {"ids": ids, "keep": keep})
    size = made.holding(ids.shape[1])
    more = size - ids.shape[1]
    padded = {"ids": np.pad(ids, [(0, 0), (0, more)]), "keep": np.pad(keep, [(0, 0)] * 3 + [(0, more)])}
    (found,) = run(ir.to_proto(made[size]), padded)
    assert_close([found[:, : ids.shape[1]]], [wanted], relative=1e-5)


def test_what_was_folded_has_a_fixed_shape() -> None:
    """Positions, as many of a table as there are words."""
    text = """g (float[N, 4] x) => (float[N, 4] y) <int64[1] zero = {0}, int64[1] one = {1}> {
        s = Shape(x) n = Slice(s, zero, one) p = Slice(t, zero, n) y = Add(x, p) }"""
    made = specialize(canonical(with_weights(parse(text), t=(9, 4))), {"N": 3})
    (positions,) = made.graph.initializers.values()
    assert str(positions.shape) == "[3,4]"


@pytest.mark.slow
def test_the_text_recognizer_at_two_widths() -> None:
    try:
        model = read_model(zoo.pull("ppocr-rec"))
    except PeerError as error:
        pytest.skip(str(error))
    canonicalize(model)
    batch, height, width = (str(dim) for dim in model.graph.inputs[0].shape or () if not isinstance(dim, int))
    made = buckets(model, width, [320, 640], {batch: 1, height: 48})
    for size, each in made.items():
        assert open_values(each) == ()
        assert not {"Shape", "Cast"} & {node.op_type for node in each.graph}
        picture = np.random.default_rng(size).standard_normal((1, 3, 48, size)).astype(np.float32)
        inputs = {model.graph.inputs[0].name or "": picture}
        found, wanted = (run(ir.to_proto(one), inputs, optimize=False) for one in (each, model))
        assert_close(found, wanted, relative=0)
        assert found[0].shape == (1, size // 8, 6625)
        assert_close(run(ir.to_proto(each), inputs), wanted, relative=1e-4)
