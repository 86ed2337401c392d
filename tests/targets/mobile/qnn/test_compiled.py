"""Segments compiled for a Snapdragon, run on the emulator of Qualcomm's SDK, against ONNX Runtime."""

from pathlib import Path

import numpy as np
import pytest
from tests.targets.mobile.qnn.small import HOST, cosine, expected, floats, loaded, model_of, numbers, stored, whole

from flagsplit.errors import ConfigError, InputError, ModelError
from flagsplit.flagir.segments import segment_of
from flagsplit.targets.interface import CompileOptions
from flagsplit.targets.mobile.qnn.compiler import compile_apart
from flagsplit.targets.mobile.qnn.prepare import prepare
from flagsplit.targets.mobile.qnn.socs import socs
from flagsplit.targets.mobile.qnn.target import QnnTarget

pytestmark = pytest.mark.slow

CONV = """g (float[1, 3, 16, 16] x) => (float[1, 8, 16, 16] y, bool[1, 8, 16, 16] big, int64[1, 1, 16, 16] best) {
    c = Conv <pads = [1, 1, 1, 1]> (x, w)
    y = Relu(c)
    big = Greater(y, c)
    best = ArgMax <axis = 1> (y)
}"""
PARTS = """g (float[2, 5, 8] x, int64[3] at) => (float[2, 3, 8] gelu, float[2, 3, 8] erf) {
    picked = Gather <axis = 1> (x, at)
    scaled = Div(picked, root)
    e = Erf(scaled)
    more = Add(e, one)
    product = Mul(picked, more)
    gelu = Mul(product, half)
    twice = Mul(picked, two)
    erf = Erf(twice)
}"""
SCALARS = {
    name: np.array(value, np.float32) for name, value in (("root", 2**0.5), ("one", 1), ("half", 0.5), ("two", 2))
}
LAYERS = """g (float[1, 4, 512] x) => (float[1, 4, 512] y) {
    a = MatMul(x, w0)
    b = Relu(a)
    c = MatMul(b, w1)
    d = Relu(c)
    y = MatMul(d, w2)
}"""


def test_a_convolution_with_outputs_of_other_types(tmp_path: Path) -> None:
    model = model_of(CONV, {"w": numbers(8, 3, 3, 3)})
    x = {"x": numbers(1, 3, 16, 16, seed=1)}
    run = loaded(model, tmp_path)
    assert [(spec.name, spec.dtype, spec.shape) for spec in run.inputs] == [("x", "float32", (1, 3, 16, 16))]
    found, wanted = run.run(x), expected(model, tmp_path, x)
    assert cosine(found["y"], wanted["y"]) > 0.99999
    for name in ("big", "best"):
        assert found[name].dtype == wanted[name].dtype
        assert (found[name] == wanted[name]).mean() > 0.99
    for wrong in ({"x": x["x"][:, :2]}, {"x": x["x"].astype(np.float64)}):
        with pytest.raises(InputError, match="expected"):
            run.run(wrong)
    run.close()
    run.close()
    with pytest.raises(InputError, match="closed"):
        run.run(x)


def test_integers_at_the_edges(tmp_path: Path) -> None:
    """The compiler's own way with indices of 32 bits at a Gather of four dimensions gives other numbers."""
    text = """g (float[1, 4, 6, 6] x, int32[3] at) => (float[1, 4, 3, 6] y, int32[3] more, int64[3] wide) {
        y = Gather <axis = 2> (x, at)
        more = Add(at, at)
        wide = Cast <to = 7> (more)
    }"""
    model = model_of(text)
    inputs = {"x": numbers(1, 4, 6, 6), "at": np.array([0, 3, 2], np.int32)}
    run = loaded(model, tmp_path)
    found = run.run(inputs)
    for name, array in expected(model, tmp_path, inputs).items():
        assert found[name].dtype == array.dtype
        assert np.abs(floats(found[name]) - floats(array)).max() < 4e-3
    run.close()


def test_averages_with_paddings(tmp_path: Path) -> None:
    """The emulator gives other numbers on these, and ends its process on some."""
    text = """g (float[1, 8, 6, 6] x) => (float[1, 8, 1, 1] last, float[1, 8, 3, 5] y, float[1, 8, 3, 3] z) {
        z = AveragePool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (x)
        last = AveragePool <kernel_shape = [7, 7], pads = [0, 0, 1, 1]> (x)
        y = AveragePool <kernel_shape = [3, 2], strides = [2, 1], pads = [1, 0, 0, 0], count_include_pad = 0> (x)
    }"""
    model = model_of(text)
    x = {"x": numbers(1, 8, 6, 6)}
    run = loaded(model, tmp_path)
    found = run.run(x)
    for name, array in expected(model, tmp_path, x).items():
        assert np.abs(floats(found[name]) - floats(array)).max() < 4e-3
    run.close()


def test_erf_is_computed_by_what_the_compiler_takes(tmp_path: Path) -> None:
    model = model_of(PARTS, SCALARS)
    inputs = {"x": numbers(2, 5, 8), "at": np.array([0, 4, 2])}
    run = loaded(model, tmp_path)
    for name, array in expected(model, tmp_path, inputs).items():
        assert np.abs(floats(run.run(inputs)[name]) - floats(array)).max() < 4e-3
    with pytest.raises(InputError, match="32 bits"):
        run.run({**inputs, "at": np.array([0, 1, 1 << 40])})
    run.close()


def test_the_same_input_gives_the_same_bytes() -> None:
    model = model_of(CONV, {"w": numbers(8, 3, 3, 3)})
    first, second = (QnnTarget().compile(model, [whole(model)], CompileOptions()) for _ in range(2))
    assert first.files == second.files
    assert first.options["soc"] == "SM8650"
    other = QnnTarget().compile(model, [whole(model)], CompileOptions(device="galaxy-s25"))
    assert other.options["soc"] == "SM8750"
    assert other.files != first.files


def test_segments_share_weights(tmp_path: Path) -> None:
    weights = {f"w{at}": (floats(numbers(512, 512, seed=at)) / 16).astype(np.float32) for at in range(3)}
    model = model_of(LAYERS, weights)
    nodes = [node.name or "" for node in model.graph]
    segments = [segment_of(model, nodes), segment_of(model, nodes[2:])]
    sizes, artifacts = {}, {}
    for kind in ("pieces", "apart", "shared"):
        artifacts[kind] = QnnTarget().compile(model, segments, CompileOptions(choices={"weights": kind}))
        sizes[kind] = {name: len(data) for name, data in artifacts[kind].files.items() if isinstance(data, bytes)}
    alone = max(sizes["apart"].values())
    assert sum(sizes["apart"].values()) > 1.6 * alone
    assert sum(sizes["shared"].values()) <= 1.1 * alone
    assert sum(sizes["pieces"].values()) <= 1.1 * alone
    assert QnnTarget().compile(model, segments, CompileOptions()).files == artifacts["pieces"].files
    values = {"x": numbers(1, 4, 512)}
    values |= expected(model, tmp_path, values)
    values[segments[1].inputs[0]] = np.maximum(floats(values["x"]) @ weights["w0"], 0).astype(np.float32)
    stored = artifacts["pieces"].store(tmp_path / "pieces", tmp_path / "weights.bin")
    for segment in segments:
        run = QnnTarget().load(stored, segment.id, HOST)
        assert cosine(run.run({name: values[name] for name in segment.inputs})["y"], values["y"]) > 0.99999
        run.close()
    shared = artifacts["shared"].store(tmp_path / "shared", tmp_path / "weights.bin")
    with pytest.raises(ConfigError, match="weights=pieces"):
        QnnTarget().load(shared, segments[0].id, HOST)


def test_the_nodes_that_the_npu_does_not_take_are_named(tmp_path: Path) -> None:
    model = model_of("g (float[2, 8] x) => (float[2, 8] y) {\n [r] r = Relu(x)\n [odd] y = Acosh(r)\n}")
    with pytest.raises(ModelError, match=r"does not take odd \(Acosh\): Acosh of float32 with 2 dimensions"):
        stored(model, tmp_path)
    with pytest.raises(ModelError, match=r"does not take odd \(Acosh\): Operators of type `Acosh` are not supported"):
        compile_apart({"s": prepare(model)}, socs()["SM8650"])


def test_quantized_on_real_inputs(tmp_path: Path) -> None:
    model = model_of(
        CONV.split(", bool")[0] + ") { c = Conv <pads = [1, 1, 1, 1]> (x, w) y = Relu(c) }", {"w": numbers(8, 3, 3, 3)}
    )
    samples = [{"x": numbers(1, 3, 16, 16, seed=at)} for at in range(2)]
    options = CompileOptions(choices={"precision": "qdq"}, samples=samples, real_samples=True)
    found = loaded(model, tmp_path, options).run(samples[0])["y"]
    assert 0.999 < cosine(found, expected(model, tmp_path, samples[0])["y"]) < 1 - 1e-9
    made_up = CompileOptions(choices={"precision": "qdq"}, samples=samples)
    with pytest.raises(ConfigError, match="real inputs"):
        stored(model, tmp_path, made_up)


def test_a_quantized_model_that_departs_is_refused(tmp_path: Path) -> None:
    """One channel a thousand times the others takes all 8 bits; what is left of them is subtracted at the end."""
    text = "g (float[1, 64] x) => (float[1, 63] y) { s = Mul(x, w) e = Exp(s) y = Slice(e, one, end, one) }"
    w = np.array([[10.0, *[0.05] * 63]], np.float32)
    model = model_of(text, {"w": w, "one": np.array([1]), "end": np.array([64])})
    samples = [{"x": np.abs(numbers(1, 64)) + 1}]
    choices = {"precision": "qdq", "activations": "8"}
    with pytest.raises(ModelError, match=r"cosine [-0-9.]+ to the floating-point model; at least 0\.99"):
        stored(model, tmp_path, CompileOptions(choices=choices, samples=samples, real_samples=True))
