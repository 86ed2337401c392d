"""How near an answer must be: a table by precision of the target and element type, and exceptions by operator.

An element passes if `|came - expected| <= relative * |expected| + scaled * largest`, where `largest` is the largest
finite magnitude that was expected. Integers and bools must be equal, NaN must meet NaN, and an infinity the same one.
Whole models are measured by norm instead: rounding adds up, and single elements near zero say little.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from flagsplit.targets.conformance.cases import Source
from flagsplit.targets.interface import Array, TargetDescription

Precision = Literal["float32", "float16", "int8"]
"""What a target computes in, whatever the types at its edge."""


@dataclass(frozen=True)
class Tolerance:
    """How far an element may be off.

    Attributes:
        relative: of the element's own magnitude.
        scaled: of the largest finite magnitude in the tensor.
    """

    relative: float
    scaled: float

    def __str__(self) -> str:
        return f"{self.relative:g} of the element + {self.scaled:g} of the largest"


EXACT = Tolerance(0.0, 0.0)

ELEMENTS: Mapping[tuple[Precision, str], Tolerance] = {
    ("float32", "float32"): Tolerance(1e-4, 1e-6),
    ("float32", "float16"): Tolerance(2e-3, 1e-3),
    ("float16", "float32"): Tolerance(1e-2, 5e-3),
    ("float16", "float16"): Tolerance(1e-2, 5e-3),
    ("int8", "float32"): Tolerance(1e-1, 5e-2),
    ("int8", "float16"): Tolerance(1e-1, 5e-2),
}
"""By precision and element type; what is not here must be equal."""

NORMS: Mapping[Precision, float] = {"float32": 1e-4, "float16": 1e-2, "int8": 1e-1}
"""For models of the corpus: norm of the error over norm of the answer."""

_BY_HAND = (10.0, "the answers of this test are typed in with four decimals")
_LARGE_INPUTS = (1e12, "its inputs are 10,000 and more, of which float16 tells no neighbors apart")
EXCEPTIONS: Mapping[str, tuple[float, str]] = {
    "test_averagepool_2d_ceil_last_window_starts_on_pad": _BY_HAND,
    "test_gridsample_bicubic": _BY_HAND,
    "test_roialign_aligned_false": _BY_HAND,
    "test_roialign_aligned_true": _BY_HAND,
}
"""By operator or by case: the factor by which the table is wider, and why."""

LOW_PRECISION_EXCEPTIONS: Mapping[str, tuple[float, str]] = {
    "test_logsoftmax_large_number": _LARGE_INPUTS,
    "test_logsoftmax_large_number_expanded": _LARGE_INPUTS,
    "test_logsoftmax_large_number_expanded_ver18": _LARGE_INPUTS,
    "test_softmax_large_number": _LARGE_INPUTS,
    "test_softmax_large_number_expanded": _LARGE_INPUTS,
    "test_softmax_large_number_expanded_ver18": _LARGE_INPUTS,
}
"""Those for targets that compute in less than float32; the large factor leaves type, shape and what is finite."""

INT8_EXCEPTIONS: Mapping[str, tuple[float, str]] = {
    "light-inception-v2/whole": (3.0, "with random weights a step that falls the other way grows from layer to layer"),
}
"""Those for targets that compute in int8."""

_LARGEST_FLOAT16 = 65504.0
_Doubles = NDArray[np.float64]


def precision_of(description: TargetDescription, choices: Mapping[str, str]) -> Precision:
    """What a target computes in under these choices.

    Args:
        description: its choice "precision" counts, and any that names an integer type for weights or activations.
        choices: those made; the others have their defaults, which come first in the description.
    """
    chosen = {name: choices.get(name, values[0]) for name, values in description.choices.items() if values}
    chosen.update(choices)
    if any(part in value.lower() for value in chosen.values() for part in ("int8", "int4", "4bit", "lut", "qdq")):
        return "int8"
    return "float16" if chosen.get("precision", "").lower() in ("fp16", "float16", "mixed") else "float32"


def exceptions_of(precision: Precision) -> Mapping[str, tuple[float, str]]:
    """The exceptions that hold for a precision, by operator or case."""
    low = {} if precision == "float32" else LOW_PRECISION_EXCEPTIONS
    return {**EXCEPTIONS, **low, **(INT8_EXCEPTIONS if precision == "int8" else {})}


def tolerance_of(precision: Precision, dtype: str, names: Collection[str] = ()) -> Tolerance:
    """How far an element may be off, given what computes it.

    Args:
        precision: of the target.
        dtype: NumPy name of the output's element type.
        names: of the case and its operators; the widest exception counts.
    """
    found = ELEMENTS.get((precision, dtype), EXACT)
    if found == EXACT:
        return EXACT
    factor = _factor(precision, names)
    return Tolerance(found.relative * factor, found.scaled * factor)


def _factor(precision: Precision, names: Collection[str]) -> float:
    """By how much a tolerance is wider for a case."""
    known = exceptions_of(precision)
    return max((known[name][0] for name in names if name in known), default=1.0)


def difference(
    expected: Array, came: Array, precision: Precision, names: Collection[str] = (), source: Source = "node"
) -> str:
    """How an answer is wrong.

    Returns:
        By how much, in words; "" if it is near enough.
    """
    if (came.dtype, came.shape) != (expected.dtype, expected.shape):
        return f"{came.dtype}{list(came.shape)} instead of {expected.dtype}{list(expected.shape)}"
    if expected.dtype.kind not in "f":
        wrong = int(np.count_nonzero(expected != came))
        return f"{wrong} of {expected.size} elements differ, which must be equal" if wrong else ""
    tolerance = tolerance_of(precision, expected.dtype.name, names)
    wide: _Doubles = expected.astype(np.float64)
    other: _Doubles = came.astype(np.float64)
    if precision != "float32":
        wide, other = _within_float16(wide, other)
    odd = _not_finite(wide, other)
    if odd:
        return odd
    finite = np.isfinite(wide)
    wide, other = wide[finite], other[finite]
    if source == "corpus":
        return _by_norm(wide, other, NORMS[precision] * _factor(precision, names))
    return _by_element(wide, other, tolerance)


def _within_float16(wide: _Doubles, other: _Doubles) -> tuple[_Doubles, _Doubles]:
    """What float16 cannot hold counts as infinite on both sides."""
    both = (np.abs(wide) > _LARGEST_FLOAT16) & (np.abs(other) >= _LARGEST_FLOAT16) & (np.sign(wide) == np.sign(other))
    infinite = np.copysign(np.inf, wide)
    return np.where(both, infinite, wide), np.where(both, infinite, other)


def _not_finite(wide: _Doubles, other: _Doubles) -> str:
    """How NaNs and infinities differ."""
    wrong = np.isnan(wide) != np.isnan(other)
    if wrong.any():
        return f"{int(wrong.sum())} of {wide.size} elements are NaN on one side only"
    infinite = np.isinf(wide) | np.isinf(other)
    wrong = infinite & (wide != other)
    return f"{int(wrong.sum())} of {wide.size} elements are infinite on one side only" if wrong.any() else ""


def _by_element(wide: _Doubles, other: _Doubles, tolerance: Tolerance) -> str:
    error = np.abs(other - wide)
    largest = float(np.abs(wide).max(initial=0.0))
    wrong = error > tolerance.relative * np.abs(wide) + tolerance.scaled * largest
    if not wrong.any():
        return ""
    share = float(error.max()) / largest if largest else float("inf")
    return (
        f"{int(wrong.sum())} of {wide.size} elements are off, by up to {float(error.max()):.3g} or {share:.2g} of the "
        f"largest; allowed: {tolerance}"
    )


def _by_norm(wide: _Doubles, other: _Doubles, limit: float) -> str:
    norm = float(np.linalg.norm(wide))
    error = float(np.linalg.norm(other - wide))
    if error <= limit * norm:
        return ""
    return f"the error's norm is {error / norm if norm else float('inf'):.2g} of the answer's; allowed: {limit:g}"
