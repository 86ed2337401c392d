"""How much each input of an axis counts for each output when it is resized, as ONNX defines it for all its modes.

Shapes are fixed, so resizing is a product with a constant matrix along each axis, exact in every mode.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

_ROUNDING = 1e-6


@dataclass(frozen=True)
class AxisResize:
    """One axis that is resized.

    Attributes:
        size, wanted: of the input and the output.
        scale: as the node states it; wanted / size if it states sizes.
        start, end: of the region of interest, for the mode that crops.
    """

    size: int
    wanted: int
    scale: float
    start: float = 0.0
    end: float = 1.0

    @property
    def is_whole(self) -> bool:
        """Whether the scale gives the output's size, but for what a float rounds off."""
        return abs(self.scale * self.size - self.wanted) <= _ROUNDING * self.wanted


@dataclass(frozen=True)
class Interpolation:
    """The attributes of Resize that say how; see the ONNX operator."""

    mode: str
    coordinates: str
    nearest: str
    cubic: float
    antialias: bool
    exclude_outside: bool
    outside: float


def origin(axis: AxisResize, how: str, at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where in the input the outputs lie."""
    size, wanted, scale = axis.size, axis.wanted, axis.scale
    if how == "asymmetric":
        return at / scale
    if how == "pytorch_half_pixel":
        return (at + 0.5) / scale - 0.5 if wanted > 1 else np.full_like(at, -0.5)
    if how == "align_corners":
        return at * (size - 1) / (wanted - 1) if wanted > 1 else np.zeros_like(at)
    if how == "tf_crop_and_resize":
        if wanted == 1:
            return np.full_like(at, 0.5 * (axis.start + axis.end) * (size - 1))
        return axis.start * (size - 1) + at * (axis.end - axis.start) * (size - 1) / (wanted - 1)
    if how == "half_pixel_symmetric":
        adjustment = wanted / (scale * size)
        centre = size / 2
        return centre * (1 - adjustment) + (at + 0.5) / scale - 0.5
    return (at + 0.5) / scale - 0.5


def is_agreed(axis: AxisResize, how: Interpolation) -> bool:
    """Whether ONNX and ONNX Runtime mean the same input by each output.

    They differ where corners align and the scale gives no whole size: the last output is at the last input in ONNX
    Runtime, and ONNX goes by the size that was not rounded down.
    """
    if how.coordinates != "align_corners" or axis.is_whole:
        return True
    at = np.arange(axis.wanted, dtype=np.float64)
    by_scale = at * (axis.size - 1) / (axis.scale * axis.size - 1)
    by_size = origin(axis, how.coordinates, at)
    if how.mode == "nearest":
        return bool((_rounded(by_scale, axis, how) == _rounded(by_size, axis, how)).all())
    return bool(np.allclose(by_scale, by_size, rtol=0, atol=_ROUNDING))


def nearest_of(axis: AxisResize, how: Interpolation) -> NDArray[np.int64]:
    """For each output the input that it is a copy of; -1 where the region of interest lies outside."""
    where = origin(axis, how.coordinates, np.arange(axis.wanted, dtype=np.float64))
    found = _rounded(where, axis, how)
    if how.coordinates == "tf_crop_and_resize":
        found[(where < 0) | (where > axis.size - 1)] = -1
    return found


def _rounded(where: Matrix, axis: AxisResize, how: Interpolation) -> NDArray[np.int64]:
    rounding: dict[str, Callable[[Matrix], Matrix]] = {
        "round_prefer_floor": lambda x: np.ceil(x - 0.5),
        "round_prefer_ceil": lambda x: np.floor(x + 0.5),
        "floor": np.floor,
        "ceil": np.ceil,
    }
    return np.clip(rounding[how.nearest](where), 0, axis.size - 1).astype(np.int64)


def weights_of(axis: AxisResize, how: Interpolation) -> Matrix:
    """[outputs, inputs]; a row of NaN where the region of interest lies outside."""
    matrix = np.zeros((axis.wanted, axis.size))
    where = origin(axis, how.coordinates, np.arange(axis.wanted, dtype=np.float64))
    for row, place in enumerate(where):
        if how.coordinates == "tf_crop_and_resize" and not 0 <= place <= axis.size - 1:
            matrix[row] = np.nan
            continue
        _fill_row(matrix[row], float(place), axis, how)
    return matrix


def _fill_row(row: Matrix, place: float, axis: AxisResize, how: Interpolation) -> None:
    reach = 1 if how.mode == "linear" else 2
    stretch = min(axis.scale, 1.0) if how.antialias else 1.0
    first = math.floor(place) - math.ceil(reach / stretch) - 1
    last = math.floor(place) + math.ceil(reach / stretch) + 2
    columns = np.arange(first, last + 1)
    parts = _kernel(np.asarray((columns - place) * stretch, np.float64), how)
    if how.exclude_outside or how.antialias:
        inside = (columns >= 0) & (columns < axis.size)
        if how.exclude_outside:
            parts = np.where(inside, parts, 0)
        parts = parts / parts.sum()
    np.add.at(row, np.clip(columns, 0, axis.size - 1), parts)


def _kernel(x: Matrix, how: Interpolation) -> Matrix:
    x = np.abs(x)
    if how.mode == "linear":
        return np.maximum(1 - x, 0)
    a = how.cubic
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))
