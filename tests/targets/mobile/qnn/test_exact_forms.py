"""Operators that the compiler takes and gets wrong as they are come out right."""

from pathlib import Path

import numpy as np
import pytest
from tests.targets.mobile.qnn.small import expected, floats, loaded, model_of, numbers

from flagsplit.targets.interface import Array
from flagsplit.targets.mobile.qnn.prepare import prepare

SCALARS = {"low": np.array(-np.inf, np.float32), "zero": np.array(0, np.float32)}
FORMS = """g (float[2, 4] x, int64[2, 4] at, float[2, 4] masked, float[2, 4] below) => (float[2, 4] swish,
    float[2, 4] soft, float[2, 4] picked, float[2, 4] put, float[2, 4] safe, float[2, 4] power, float[2, 4] errors) {
    power = Exp(below)
    errors = Erf(x)
    gate = HardSigmoid <alpha = 0.16666667> (x)
    swish = Mul(x, gate)
    soft = Softplus(x)
    picked = GatherElements <axis = 1> (x, at)
    put = ScatterElements <axis = 1> (x, at, picked)
    hidden = Equal(masked, low)
    safe = Where(hidden, zero, x)
}"""
SMALL = """g (float[1, 1, 5] x) => (float[1, 5] y) {
    s = Sigmoid(x)
    y = Squeeze(s, axis)
}"""
INSIDE = """g (float[1, 3] x) => (float[1, 3] y) {
    s = Sigmoid(x)
    y = Mul(s, x)
}"""


@pytest.mark.slow
def test_forms_that_the_compiler_computes_well(tmp_path: Path) -> None:
    model = model_of(FORMS, SCALARS)
    masked = np.where(np.eye(2, 4) > 0, -np.inf, numbers(2, 4)).astype(np.float32)
    x = numbers(2, 4)
    x[1, 2], x[1, 3] = -130, 130
    inputs = {"x": x, "at": np.array([[-1, 0, -3, 2], [3, -4, 1, -2]]), "masked": masked, "below": -np.abs(x)}
    run = loaded(model, tmp_path)
    _check_near(run.run(inputs), expected(model, tmp_path, inputs))
    run.close()


@pytest.mark.slow
def test_small_probabilities_that_a_segment_gives(tmp_path: Path) -> None:
    """The NPU's own operator gives 0.00293 of the first, 2.5 per cent less."""
    model = model_of(SMALL, {"axis": np.array([1])})
    inputs = {"x": np.array([[[-5.8, -8, 3, -130, 130]]], np.float32)}
    run = loaded(model, tmp_path)
    wanted = expected(model, tmp_path, inputs)["y"]
    np.testing.assert_allclose(floats(run.run(inputs)["y"]), floats(wanted), rtol=5e-3, atol=2e-5)
    run.close()


def test_a_sigmoid_inside_stays_one_operation() -> None:
    assert [node.op_type for node in prepare(model_of(INSIDE)).graph] == ["Sigmoid", "Mul"]


def test_constant_indices_count_from_the_start() -> None:
    text = "g (float[2, 4] x) => (float[2, 2] y) { y = GatherElements <axis = 1> (x, at) }"
    ready = prepare(model_of(text, {"at": np.array([[-1, 0], [2, -4]])}))
    (node,) = ready.graph
    assert node.inputs[1] is not None
    assert node.inputs[1].const_value is not None
    np.testing.assert_array_equal(node.inputs[1].const_value.numpy(), [[3, 0], [2, 0]])


def _check_near(found: dict[str, Array], wanted: dict[str, Array]) -> None:
    for name, array in wanted.items():
        np.testing.assert_allclose(floats(found[name]), floats(array), rtol=1e-2, atol=3e-3, err_msg=name)


FLOORS = """g (float[1, 6] x) => (float[1, 6] held, float[1, 6] added, float[1, 6] kept, float[1, 6] shares) {
    held_at = Max(x, floor)
    held = Log(held_at)
    added_to = Add(floor, x)
    added = Log(added_to)
    kept_at = Clip(x, floor, one)
    kept = Log(kept_at)
    shares = Div(x, held_at)
}"""


@pytest.mark.slow
def test_a_floor_that_half_precision_holds_as_zero(tmp_path: Path) -> None:
    """Unless it is raised the NPU gives -7.6 for the logarithm of a silent band."""
    scalars = {"floor": np.array(1e-12, np.float32), "one": np.array(1, np.float32)}
    inputs = {"x": np.array([[0, 0, 1e-4, 1e-3, 0.5, 1]], np.float32)}
    run = loaded(model_of(FLOORS, scalars), tmp_path)
    found = run.run(inputs)
    run.close()
    logarithm = np.log(np.maximum(inputs["x"], 2.0**-24))
    for name in ("held", "added", "kept"):
        np.testing.assert_allclose(floats(found[name]), logarithm, rtol=0, atol=0.1)
    np.testing.assert_allclose(floats(found["shares"]), [[0, 0, 1, 1, 1, 1]], atol=3e-3)
