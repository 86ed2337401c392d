"""ONNX's Resize along one axis, by the standard: where samples lie between the elements, and what each element counts.

Which axes, sizes and scales a node names is for its lowering to say; so are regions of interest and corners that align
though scales give no whole sizes.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

_ROUND: dict[str, Callable[[Doubles], Doubles]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def sample_places(transformation: str, size: int, out: int, scale: float) -> Doubles | None:
    """Where the samples lie, [out], in elements of the input.

    Args:
        transformation: of coordinates, as the standard calls it.
        size: of the input.
        out: of the output.
        scale: of the node.

    Returns:
        The places; None for a transformation that is not known here, as the one by a region of interest.
    """
    at = np.arange(out, dtype=np.float64)
    match transformation:
        case "align_corners":
            return at * (size - 1) / (out - 1) if out > 1 else at * 0
        case "asymmetric":
            return at / scale
        case "pytorch_half_pixel" if out == 1:
            return at * 0
        case "half_pixel" | "pytorch_half_pixel":
            return (at + 0.5) / scale - 0.5
        case "half_pixel_symmetric":
            return size / 2 * (1 - out / (scale * size)) + (at + 0.5) / scale - 0.5
    return None


def nearest(places: Doubles, size: int, rounding: str) -> NDArray[np.int64]:
    """The element that each sample is, [out]."""
    return np.clip(_ROUND[rounding](places).astype(np.int64), 0, size - 1)


def weights(places: Doubles, size: int, narrow: float, cubic: float | None, *, outside: bool) -> Doubles:
    """What each element counts for each sample, [out, size].

    Args:
        places: of the samples.
        size: of the input.
        narrow: below 1 it widens the filter against aliasing.
        cubic: the coefficient of a cubic filter; None for a linear one.
        outside: whether what lies outside is left out; else it is as the element at the border.
    """
    made = np.zeros((len(places), size))
    for row, place in enumerate(places):
        around, counts = _taps(float(place), narrow, cubic)
        if outside:
            counts = np.where((around < 0) | (around >= size), 0, counts)
            counts = counts / counts.sum()
        np.add.at(made[row], np.clip(around, 0, size - 1), counts)
    return made


def _taps(place: float, narrow: float, cubic: float | None) -> tuple[NDArray[np.int64], Doubles]:
    """Elements around a place, and what each counts."""
    low = math.floor(place)
    reach = 1 if cubic is None else 2
    first = math.floor(-reach / narrow) + 1
    offsets = np.arange(first, reach + 1 - first if narrow < 1 else reach + 1)
    distance = np.abs((offsets - (place - low)) * narrow)
    counts = np.clip(1 - distance, 0, 1) if cubic is None else _cubic(distance, cubic)
    return low + offsets, counts / counts.sum()


def _cubic(x: Doubles, a: float) -> Doubles:
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))
