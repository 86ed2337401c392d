"""What counts as near enough: properties of the rule, and the table."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from flagsplit.apps.conformance_models import NAMES as MODELS
from flagsplit.targets.conformance import node_cases
from flagsplit.targets.conformance.cases import Source
from flagsplit.targets.conformance.tolerance import (
    ELEMENTS,
    Precision,
    Tolerance,
    difference,
    exceptions_of,
    precision_of,
    tolerance_of,
)
from flagsplit.targets.interface import Array, TargetDescription

SHAPES = arrays.array_shapes(max_dims=3, max_side=4)
ANY = arrays.arrays(np.float32, SHAPES, elements=st.floats(width=32))
FINITE = arrays.arrays(
    np.float32, SHAPES, elements=st.floats(-1e4, 1e4, width=32).map(lambda each: each if abs(each) > 1e-20 else 0.0)
)
"""Without what becomes denormal on the way."""
SOURCES: tuple[Source, ...] = ("node", "corpus")
PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8")


@pytest.mark.parametrize("precision", PRECISIONS)
@given(array=ANY)
def test_the_answer_itself_is_right(precision: Precision, array: Array) -> None:
    assert difference(array, array.copy(), precision) == ""
    assert difference(array, array.copy(), precision, source="corpus") == ""


@pytest.mark.parametrize("precision", PRECISIONS)
@given(array=FINITE, data=st.data())
def test_the_limit_is_where_the_table_says(precision: Precision, array: Array, data: st.DataObject) -> None:
    wide = array.astype(np.float64)
    tolerance = tolerance_of(precision, "float32")
    limit = tolerance.relative * np.abs(wide) + tolerance.scaled * np.abs(wide).max()
    signs = data.draw(arrays.arrays(np.int8, array.shape, elements=st.sampled_from([-1, 1])))
    inside = (wide + signs * limit * 0.9).astype(np.float32)
    assert difference(array, inside, precision) == ""
    at = data.draw(st.integers(0, array.size - 1))
    outside = inside.copy()
    outside.flat[at] = (wide + signs * (limit * 1.1 + 1e-30)).flat[at]
    assert difference(array, outside, precision).startswith(f"1 of {array.size} elements are off")


@given(array=FINITE, power=st.integers(-20, 20))
def test_the_unit_does_not_matter(array: Array, power: int) -> None:
    wide = array.astype(np.float64)
    came = wide * (1 + 3e-4)
    found, scaled = (
        difference((wide * scale).astype(np.float32), (came * scale).astype(np.float32), "float32")
        for scale in (1.0, 2.0**power)
    )
    assert bool(found) == bool(scaled)


@pytest.mark.parametrize("dtype", ["int32", "int64", "bool"])
@given(data=st.data())
def test_integers_and_bools_are_equal_or_wrong(dtype: str, data: st.DataObject) -> None:
    array = data.draw(arrays.arrays(dtype, SHAPES))
    assert difference(array, array.copy(), "float16") == ""
    other = array.copy()
    at = data.draw(st.integers(0, array.size - 1))
    other.flat[at] = not other.flat[at] if dtype == "bool" else other.flat[at] ^ 1
    assert difference(array, other, "float16") == f"1 of {array.size} elements differ, which must be equal"


@given(array=ANY, data=st.data(), odd=st.sampled_from([np.nan, np.inf, -np.inf]))
def test_what_is_not_finite_meets_its_like(array: Array, data: st.DataObject, odd: float) -> None:
    at = data.draw(st.integers(0, array.size - 1))
    other = array.copy()
    array.flat[at], other.flat[at] = 1.0, odd
    for one, two in ((array, other), (other, array)):
        for source in SOURCES:
            assert difference(one, two, "float32", source=source).endswith("on one side only")


def test_infinities_have_a_sign() -> None:
    plus, minus = np.array([np.inf, 1], np.float32), np.array([-np.inf, 1], np.float32)
    assert difference(plus, minus, "float32") == "1 of 2 elements are infinite on one side only"


def test_what_float16_cannot_hold() -> None:
    large = np.array([1e5, -7e4, 1.0], np.float32)
    lost = np.array([np.inf, -np.inf, 1.0], np.float32)
    held = np.array([65504, -65504, 1.0], np.float32)
    for came in (lost, held):
        assert difference(large, came, "float16") == ""
        assert difference(large, came, "float32") != ""
        assert difference(large, -came, "float16") != ""


def test_types_and_shapes_come_first() -> None:
    one = np.zeros((2, 3), np.float32)
    assert difference(one, one.astype(np.float64), "float16") == "float64[2, 3] instead of float32[2, 3]"
    assert difference(one, one.T, "float16") == "float32[3, 2] instead of float32[2, 3]"
    assert difference(one[:0], one[:0], "float32") == ""


def test_models_are_measured_by_norm() -> None:
    array = np.array([1.0, 1e-9], np.float32)
    came = np.array([1.0, 2e-5], np.float32)
    assert difference(array, came, "float32", source="node") != ""
    assert difference(array, came, "float32", source="corpus") == ""
    off = (array.astype(np.float64) * 1.001).astype(np.float32)
    assert "norm is 0.001 of" in difference(array, off, "float32", source="corpus")


def test_an_exception_is_wider() -> None:
    for precision in PRECISIONS:
        for name, (factor, why) in exceptions_of(precision).items():
            wider = tolerance_of(precision, "float32", ("Abs", name))
            base = ELEMENTS[precision, "float32"]
            assert wider == Tolerance(base.relative * factor, base.scaled * factor)
            assert why
            assert name.partition("/")[0] in MODELS or node_cases(names=[name])
        assert tolerance_of(precision, "int64", exceptions_of(precision)) == Tolerance(0, 0)


def test_a_model_may_be_an_exception() -> None:
    (name,) = (name for name in exceptions_of("int8") if "/" in name)
    array = np.ones(4, np.float32)
    assert "allowed: 0.1" in difference(array, array * np.float32(1.2), "int8", source="corpus")
    assert difference(array, array * np.float32(1.2), "int8", [name], "corpus") == ""
    assert "allowed: 0.3" in difference(array, array * np.float32(1.4), "int8", [name], "corpus")


def test_an_exception_without_bounds_leaves_what_is_finite() -> None:
    name = next(name for name in exceptions_of("float16") if name not in exceptions_of("float32"))
    array, off = np.array([0.0, 1.0], np.float32), np.array([3.0, 0.0], np.float32)
    assert difference(array, off, "float16", [name]) == ""
    assert difference(array, off, "float32", [name]) != ""
    assert difference(array, off * np.float32(np.nan), "float16", [name]) != ""


def _about(**choices: tuple[str, ...]) -> TargetDescription:
    return TargetDescription("t", "1", (), 4, True, "yes", "", "high", choices=choices)


@pytest.mark.parametrize(
    ("about", "chosen", "expected"),
    [
        (_about(), {}, "float32"),
        (_about(precision=("fp16", "fp32")), {}, "float16"),
        (_about(precision=("fp16", "fp32")), {"precision": "fp32"}, "float32"),
        (_about(precision=("fp32", "mixed")), {"precision": "mixed"}, "float16"),
        (_about(weights=("fp32", "int8")), {}, "float32"),
        (_about(weights=("fp32", "int8"), precision=("fp16",)), {"weights": "int8"}, "int8"),
        (_about(weights=("fp32", "lut4")), {"weights": "lut4"}, "int8"),
        (_about(precision=("fp16", "qdq")), {"precision": "qdq"}, "int8"),
    ],
)
def test_precision(about: TargetDescription, chosen: dict[str, str], expected: str) -> None:
    assert precision_of(about, chosen) == expected
