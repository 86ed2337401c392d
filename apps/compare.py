"""How far two answers are apart: the split run against the unsplit model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flagsplit.targets.interface import Array


@dataclass(frozen=True)
class Difference:
    """Of one output.

    Attributes:
        max_abs: largest absolute difference; infinite where shapes differ or one of the two is not a number.
        max_rel: that, relative to the range of the expected output; 0 where both are equal.
    """

    max_abs: float
    max_rel: float


def compare(expected: Mapping[str, Array], came: Mapping[str, Array]) -> dict[str, Difference]:
    """Compare output by output; a NaN equals a NaN in the same place, an infinity the same infinity."""
    return {name: _difference(array, came[name]) for name, array in expected.items()}


def _difference(expected: Array, came: Array) -> Difference:
    if expected.shape != came.shape or expected.dtype != came.dtype:
        return Difference(float("inf"), float("inf"))
    if expected.dtype.kind not in "fiub":
        equal = bool(np.array_equal(expected, came))
        return Difference(0.0, 0.0) if equal else Difference(float("inf"), float("inf"))
    wide_expected, wide_came = expected.astype(np.float64), came.astype(np.float64)
    same = (wide_expected == wide_came) | (np.isnan(wide_expected) & np.isnan(wide_came))
    if same.all():
        return Difference(0.0, 0.0)
    with np.errstate(invalid="ignore"):
        gaps = np.abs(wide_expected - wide_came)[~same]
    max_abs = float("inf") if not np.isfinite(gaps).all() else float(gaps.max())
    finite = wide_expected[np.isfinite(wide_expected)]
    spread = float(np.ptp(finite)) if finite.size else 0.0
    return Difference(max_abs, max_abs / spread if spread > 0 else float("inf"))


def to_data(differences: Mapping[str, Difference]) -> dict[str, Any]:
    """As JSON data: the largest of all outputs, then each."""
    return {
        "max_abs": max((d.max_abs for d in differences.values()), default=0.0),
        "max_rel": max((d.max_rel for d in differences.values()), default=0.0),
        "outputs": {name: {"max_abs": d.max_abs, "max_rel": d.max_rel} for name, d in differences.items()},
    }
