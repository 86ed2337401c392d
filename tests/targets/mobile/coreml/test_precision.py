"""Which nodes stay in fp32, from what was seen of their values."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest
from tests.targets.mobile.coreml.graphs import floats, parse

from flagsplit.targets.interface import Array
from flagsplit.targets.mobile.coreml.masks import DEEPEST, soften_masks
from flagsplit.targets.mobile.coreml.precision import nodes_in_fp32
from flagsplit.targets.mobile.coreml.ranges import answers, measure, random_inputs


def _kept(model: ir.Model, inputs: Mapping[str, Array], *, careful: bool = False) -> dict[str, str]:
    reasons = nodes_in_fp32(model, measure(model, [{**random_inputs(model), **inputs}]), careful=careful)
    ops = {node.name: node.op_type for node in model.graph}
    return {ops[name]: reason for name, reason in reasons.items()}


def test_ranges_are_those_of_the_values() -> None:
    model = parse("g (float[2, 3] x) => (float[2, 3] y) { a = Neg(x) y = Reciprocal(a) }")
    x = np.array([[1, -2, 4], [0.5, 8, -16]], np.float32)
    ranges = measure(model, [{"x": x}])
    assert (ranges["x"].low, ranges["x"].high, ranges["x"].largest) == (-16, 8, 16)
    assert (ranges["a"].low, ranges["a"].high, ranges["a"].nearest) == (-8, 16, 0.5)
    assert (ranges["y"].low, ranges["y"].high) == (-2, 0.5)


@pytest.mark.parametrize(("scale", "kept"), [(100.0, set()), (1000.0, {"Mul", "Sqrt"})])
def test_what_overflows(scale: float, kept: set[str]) -> None:
    model = parse("g (float[4] x) => (float[4] y) { a = Mul(x, x) b = Sqrt(a) y = Tanh(b) }")
    found = _kept(model, {"x": np.full(4, scale, np.float32)})
    assert set(found) == kept
    assert all("fp16 ends at 65504" in reason for reason in found.values())


def test_what_vanishes() -> None:
    model = parse("g (float[4] x) => (float[4] y) { a = Abs(x) y = Exp(a) }")
    for scale, plain, careful in (
        (1e-8, {"Abs", "Exp"}, {"Abs", "Exp"}),
        (1e-5, set(), {"Abs", "Exp"}),
        (1.0, set(), set()),
    ):
        x = {"x": floats(4, scale=scale)}
        assert set(_kept(model, x)) == plain
        assert set(_kept(model, x, careful=True)) == careful


def test_division_by_what_is_nearly_zero() -> None:
    model = parse("g (float[4] x, float[4] d) => (float[4] y) { y = Div(x, d) }")
    ones = np.ones(4, np.float32)
    assert not _kept(model, {"x": ones, "d": ones})
    found = _kept(model, {"x": ones * 1e-3, "d": np.array([1, 1, 1e-6, 1], np.float32)})
    assert "near to zero" in found["Div"]


def test_squares_inside_of_norms() -> None:
    model = parse(
        "g (float[2, 8] x) => (float[2, 8] y) { y = LayerNormalization(x, s) }", {"s": np.ones(8, np.float32)}
    )
    assert not _kept(model, {"x": floats(2, 8, scale=10)})
    assert "squares" in _kept(model, {"x": floats(2, 8, scale=300)})["LayerNormalization"]


def test_sums_that_cancel() -> None:
    model = parse("g (float[4] x, float[4] z) => (float[4] y) { y = Sub(x, z) }")
    x = np.array([10000, 10001, 10002, 10003], np.float32)
    assert "only 3 is left" in _kept(model, {"x": x, "z": np.full(4, 10000, np.float32)})["Sub"]
    assert not _kept(model, {"x": x, "z": np.full(4, 9000, np.float32)})
    assert not _kept(model, {"x": x, "z": x})


def test_shares_of_large_numbers() -> None:
    model = parse("g (float[4] x) => (float[4] y) { y = Softmax(x) }")
    for high, plain, careful in ((30, 0, 0), (100, 0, 1), (1000, 1, 1)):
        inputs: dict[str, Array] = {"x": np.array([high, high - 1, -1e4, 0], np.float32)}
        assert len(_kept(model, inputs)) == plain
        assert len(_kept(model, inputs, careful=True)) == careful


@pytest.mark.parametrize(("epsilon", "plain", "careful"), [("1e-3", 0, 0), ("1e-5", 0, 1), ("1e-12", 1, 1)])
def test_small_epsilons(epsilon: str, plain: int, careful: int) -> None:
    text = f"g (float[2, 8] x) => (float[2, 8] y) {{ y = LayerNormalization <epsilon = {epsilon}> (x, s) }}"
    model = parse(text, {"s": np.ones(8, np.float32)})
    assert len(_kept(model, {})) == plain
    assert len(_kept(model, {}, careful=True)) == careful


def _constant(model: ir.Model, name: str) -> Array:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return np.asarray(tensor.numpy())


_ATTENTION = """g (float[1, 4, 4] x, float[1, 1, 4] keep) => (float[1, 4, 4] y) {
    hide = Sub(one, keep)
    mask = Mul(hide, deep)
    scores = Add(x, mask)
    y = Softmax(scores)
}"""


@pytest.mark.parametrize("deep", [-1e9, -3.4028235e38])
def test_masks_become_shallow(deep: float) -> None:
    constants = {"one": np.float32(1), "deep": np.float32(deep)}
    keep = np.array([[[1, 1, 0, 1]]], np.float32)
    model = parse(_ATTENTION, constants)
    inputs = {"x": floats(1, 4, 4), "keep": keep}
    before = answers(model, [inputs])[0]["y"]
    assert set(_kept(model, inputs)) == {"Mul", "Add", "Softmax"}
    assert soften_masks(model, [inputs]) == ("deep",)
    assert _constant(model, "deep") == DEEPEST
    assert not _kept(model, inputs)
    np.testing.assert_array_equal(answers(model, [inputs])[0]["y"], before)


def test_what_is_no_mask_stays() -> None:
    """The same constant where a result shows it, and where its depth decides."""
    shown = parse("g (float[4] x) => (float[4] y) { y = Add(x, deep) }", {"deep": np.float32(-1e9)})
    assert soften_masks(shown, [{"x": floats(4)}]) == ()
    text = "g (float[2] x) => (float[2] y) { a = Add(x, deep) y = Softmax(a) }"
    decides = parse(text, {"deep": np.array([-1e6, -1e7], np.float32)})
    assert soften_masks(decides, [{"x": floats(2)}]) == ()
    assert _constant(decides, "deep").tolist() == [-1e6, -1e7]


def test_ranges_of_several_samples() -> None:
    model = parse("g (float[2] x, int64[2] i) => (float[2] y) { c = Cast <to = 1> (i) y = Div(x, c) }")
    made = random_inputs(model)
    assert made["i"].dtype == np.int64
    assert set(made["i"].tolist()) <= {0, 1}
    np.testing.assert_array_equal(made["x"], random_inputs(model)["x"])
    samples = [{"x": np.full(2, size, np.float32), "i": np.array([1, at + 2])} for at, size in enumerate((3, -4))]
    ranges = measure(model, samples)
    assert (ranges["x"].low, ranges["x"].high) == (-4, 3)
    assert ranges["c"].nearest == 1
