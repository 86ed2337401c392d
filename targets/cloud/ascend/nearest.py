"""Which elements a Resize of mode nearest reads, and how else they can be asked for.

ATC's page of Resize says that it rounds as `round_prefer_ceil`, whatever is asked for. So a Resize is asked for with
that rounding and another way to place its samples, if there is one that reads the very same elements.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ROUNDING = "round_prefer_ceil"
_PLACES = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
_TIE = 1e-3
"""Samples nearer than that to the middle between two elements count as undecided."""

_Numbers = NDArray[np.float64]


def same_places(
    shape: Sequence[int], made: Sequence[int], scales: Sequence[float], places: str, rounding: str
) -> str | None:
    """A way to place samples by which `ROUNDING` reads the same elements; the one asked for, if it does.

    Args:
        shape: of what is resized.
        made: of what comes out.
        scales: by dimension.
        places: the coordinate transformation that is asked for.
        rounding: the rounding that is asked for.

    Returns:
        A coordinate transformation, or None.
    """
    wanted = [
        None if size == new else _read(_positions(places, size, new, scale), size, rounding)
        for size, new, scale in zip(shape, made, scales, strict=True)
    ]
    if any(place is None and size != new for place, size, new in zip(wanted, shape, made, strict=True)):
        return None
    for name in dict.fromkeys((places, *_PLACES)):
        found = [_positions(name, size, new, scale) for size, new, scale in zip(shape, made, scales, strict=True)]
        if all(_same(at, size, place) for at, size, place in zip(found, shape, wanted, strict=True)):
            return name
    return None


def _same(at: _Numbers | None, size: int, wanted: NDArray[np.int64] | None) -> bool:
    if wanted is None:
        return True
    if at is None or _undecided(at):
        return False
    read = _read(at, size, ROUNDING)
    return read is not None and np.array_equal(read, wanted)


def _positions(places: str, size: int, made: int, scale: float) -> _Numbers | None:
    """Where samples lie between the elements; None where that is not known."""
    at = np.arange(made, dtype=np.float64)
    match places:
        case "half_pixel":
            return (at + 0.5) / scale - 0.5
        case "pytorch_half_pixel":
            return (at + 0.5) / scale - 0.5 if made > 1 else np.zeros(1)
        case "asymmetric":
            return at / scale
        case "align_corners":
            return at * (size - 1) / (made - 1) if made > 1 else np.zeros(1)
    return None


def _undecided(at: _Numbers) -> bool:
    return bool(np.any(np.abs(at - np.floor(at) - 0.5) < _TIE))


def _read(at: _Numbers | None, size: int, rounding: str) -> NDArray[np.int64] | None:
    if at is None:
        return None
    rounded = {
        "round_prefer_floor": lambda: np.ceil(at - 0.5),
        "round_prefer_ceil": lambda: np.floor(at + 0.5),
        "floor": lambda: np.floor(at),
        "ceil": lambda: np.ceil(at),
    }.get(rounding)
    return None if rounded is None else np.asarray(np.clip(rounded(), 0, size - 1), np.int64)
