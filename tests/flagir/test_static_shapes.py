"""Symbols become sizes: nominal ones, given ones, and those of real inputs; and the types agree with what ORT makes."""

import functools
from collections.abc import Callable

import onnx
import onnx_ir as ir
import pytest
from tests.flagir.models import canonical, inputs_for, light_path, parse, random_model, run, with_weights

from flagsplit.errors import ModelError
from flagsplit.flagir import Skeleton, canonicalize, dims_of_shapes, nominal_dims, read_model


def image() -> onnx.ModelProto:
    text = """g (float[N, 3, H, W] x) => (float[N, 10] y) {
        c = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, k)
        p = GlobalAveragePool(c)
        f = Flatten(p)
        y = Gemm <transB = 1> (f, w) }"""
    return with_weights(parse(text), k=(8, 3, 3, 3), w=(10, 8))


def image_of_320() -> onnx.ModelProto:
    text = """g (float[N, 3, H, W] x) => (float[N, 4] y) <int64[2] s = {1, 307200}> {
        r = Reshape(x, s)
        y = MatMul(r, w) }"""
    return with_weights(parse(text), w=(307200, 4))


def text() -> onnx.ModelProto:
    body = """g (int64[batch, seq] ids, int64[batch, seq] mask) => (float[batch, seq, 4] y) <int64[1] last = {-1}> {
        e = Gather(table, ids)
        m = Cast <to = 1> (mask)
        u = Unsqueeze(m, last)
        y = Mul(e, u) }"""
    return with_weights(parse(body), table=(50, 4))


def length_64() -> onnx.ModelProto:
    body = "g (float[batch, seq, 4] x) => (float[batch, seq, 4] y) { y = Add(x, position) }"
    return with_weights(parse(body), position=(1, 64, 4))


def test_nominal_sizes_of_an_image_model() -> None:
    skeleton = Skeleton(canonical(image()))
    assert skeleton.symbols == ("N", "H", "W")
    assert nominal_dims(skeleton, {}) == {"N": 1, "H": 224, "W": 224}
    assert nominal_dims(skeleton, {"H": 64, "W": 96, "N": 4}) == {"N": 4, "H": 64, "W": 96}


def test_the_first_usual_size_that_fits_is_taken() -> None:
    assert nominal_dims(Skeleton(canonical(image_of_320())), {}) == {"N": 1, "H": 320, "W": 320}
    assert nominal_dims(Skeleton(canonical(length_64())), {}) == {"batch": 1, "seq": 64}


def test_nominal_sizes_of_a_sequence_model() -> None:
    skeleton = Skeleton(canonical(text()))
    assert nominal_dims(skeleton, {}) == {"batch": 1, "seq": 128}
    assert nominal_dims(skeleton, {"seq": 7}) == {"batch": 1, "seq": 7}


def test_a_model_without_symbols() -> None:
    skeleton = Skeleton(canonical(parse("g (float[2] x) => (float[2] y) { y = Neg(x) }")))
    assert skeleton.symbols == ()
    assert nominal_dims(skeleton, {}) == {}
    assert skeleton.types({})["y"].size_bytes == 8


def test_a_given_name_that_the_model_lacks() -> None:
    with pytest.raises(ModelError, match=r"\(batch, seq\), came 'length'"):
        nominal_dims(Skeleton(canonical(text())), {"length": 3})


@pytest.mark.parametrize("size", [0, -3])
def test_a_given_size_that_is_none(size: int) -> None:
    with pytest.raises(ModelError, match=f"at least 1 for dimension 'seq', came {size}"):
        nominal_dims(Skeleton(canonical(text())), {"seq": size})


def test_sizes_that_contradict_the_operators() -> None:
    skeleton = Skeleton(canonical(length_64()))
    with pytest.raises(ModelError, match=r"contradicts itself at batch=1, seq=65"):
        skeleton.types({"batch": 1, "seq": 65})
    with pytest.raises(ModelError, match="give other sizes"):
        nominal_dims(skeleton, {"batch": 1, "seq": 65})


def test_a_reshape_that_does_not_fit() -> None:
    with pytest.raises(ModelError, match="Reshape 'node' makes 307200 elements of 768"):
        Skeleton(canonical(image_of_320())).types({"N": 1, "H": 16, "W": 16})


def test_no_usual_size_fits() -> None:
    proto = with_weights(parse("g (float[N, seq] x) => (float[N, 4] y) { y = MatMul(x, w) }"), w=(77, 4))
    with pytest.raises(ModelError, match="--dim seq=SIZE"):
        nominal_dims(Skeleton(canonical(proto)), {})


def test_dims_of_shapes() -> None:
    skeleton = Skeleton(canonical(text()))
    assert dims_of_shapes(skeleton, {"ids": (2, 9)}) == {"batch": 2, "seq": 9}
    assert dims_of_shapes(skeleton, {"ids": (2, 9), "mask": (2, 9)}) == {"batch": 2, "seq": 9}


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"x": (1, 2)}, r"expected a graph input \(ids, mask\), came 'x'"),
        ({"ids": (1, 2, 3)}, "has 2 dimensions, came 3"),
        ({"ids": (1, 2), "mask": (1, 3)}, r"expects \[batch, seq\], came \[1, 3\]"),
        ({"ids": (1, 0)}, r"came \[1, 0\]"),
    ],
)
def test_shapes_that_do_not_match(shapes: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        dims_of_shapes(Skeleton(canonical(text())), shapes)


def test_a_fixed_size_that_does_not_match() -> None:
    with pytest.raises(ModelError, match=r"expects \[N, 3, H, W\], came \[1, 4, 2, 2\]"):
        dims_of_shapes(Skeleton(canonical(image())), {"x": (1, 4, 2, 2)})


def test_a_normalization_without_axes() -> None:
    """Strict inference of the library fails in the function that it is defined by."""
    model = canonical(parse("g (float[N, 3, 4, 4] x) => (float[N, 3, 4, 4] y) { y = MeanVarianceNormalization(x) }"))
    assert Skeleton(model).types({"N": 2})["y"].shape == (2, 3, 4, 4)


def test_a_transform_of_short_times_is_one_sided() -> None:
    """Inference of the library takes it for two-sided where it does not say."""
    body = """g (float[N, 128, 1] x) => (float[N, frames, bins, 2] y) <int64 s = {8}, int64 l = {16}> {
        y = STFT(x, s, "", l) }"""
    assert Skeleton(canonical(parse(body))).types({"N": 2})["y"].shape == (2, 15, 9, 2)


def test_inference_with_placement_and_sequences() -> None:
    body = "g (float[N, 2] x) => (seq(float[N, 2]) s, float[N, 2] a) { a = Neg(x) s = SequenceConstruct(x, a) }"
    types = Skeleton(canonical(parse(body))).types({"N": 3})
    assert types["a"].shape == (3, 2)


LOOP = """g (int64 n, float[N, 2] x) => (float[N, 2] y, float[k, N, 2] z) { go = Constant <value = bool {1}> ()
    last, every = Loop (n, go, x) <body = b (int64 i, bool ci, float[N, 2] v) =>
        (bool co, float[N, 2] vo, float[N, 2] sc) {
        co = Identity(ci) vo = Exp(v) sc = Identity(vo) }>
    y = Neg(last) z = Exp(every) }"""

AGREEING: dict[str, tuple[Callable[[], onnx.ModelProto], dict[str, int], dict[str, int]]] = {
    "image": (image, {"N": 1, "H": 16, "W": 20}, {"N": 2, "H": 9, "W": 7}),
    "text": (text, {"batch": 1, "seq": 3}, {"batch": 2, "seq": 5}),
    **{
        f"random {seed}": (
            functools.partial(random_model, seed),
            {"N": 1} if seed % 2 else {},
            {"N": 3} if seed % 2 else {},
        )
        for seed in (1, 2, 3, 4, 5, 7, 15)
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", AGREEING)
def test_types_are_those_that_ort_makes(name: str) -> None:
    make, *bindings = AGREEING[name]
    model = canonical(make())
    for dims in bindings:
        assert_types_agree(model, dims)


@pytest.mark.slow
def test_types_of_a_real_network_are_those_that_ort_makes() -> None:
    model = read_model(light_path("shufflenet"))
    canonicalize(model)
    assert_types_agree(model, {})


def test_the_state_of_a_loop_is_sized() -> None:
    types = Skeleton(canonical(parse(LOOP))).types({"N": 5})
    assert types["y"].shape == types["last"].shape == (5, 2)


def assert_types_agree(model: ir.Model, dims: dict[str, int]) -> None:
    """Run with every intermediate value as an output."""
    types = Skeleton(model).types(dims)
    proto = ir.to_proto(model)
    outputs = {info.name for info in proto.graph.output}
    for node in proto.graph.node:
        for value in node.output:
            if value and value not in outputs:
                proto.graph.output.append(onnx.ValueInfoProto(name=value))
    made = run(proto, inputs_for(proto, dims), optimize=False)
    assert len(made) > len(outputs) or len(model.graph) == 1
    for info, array in zip(proto.graph.output, made, strict=True):
        assert types[info.name].shape == array.shape
        assert types[info.name].dtype.numpy() == array.dtype
        assert types[info.name].size_bytes == array.nbytes
