"""Which inputs each output of Resize reads along one axis, and with which weights, by the standard."""

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from flagsplit.targets.mobile.litert.attributes import front
from flagsplit.targets.mobile.litert.builder import Builder
from flagsplit.targets.mobile.litert.program import Refused

_ROUND: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def scales_of(builder: Builder, node: ir.Node, shape: tuple[int, ...], out: tuple[int, ...]) -> dict[int, float]:
    """The scale of each axis that the node names."""
    rank = len(shape)
    axes = [front(int(each), rank) for each in node.attributes.get_ints("axes", list(range(rank)))]
    scales = builder.maybe_fixed(node, 2)
    if scales is not None and scales.size:
        corners = node.attributes.get_string("coordinate_transformation_mode", "half_pixel") == "align_corners"
        uneven = [axis for axis, each in zip(axes, scales.tolist(), strict=True) if out[axis] != shape[axis] * each]
        if corners and uneven:
            raise Refused("where corners align, scales must give whole sizes: ONNX and its runtimes differ on the rest")
        return {axis: float(each) for axis, each in zip(axes, scales.tolist(), strict=True)}
    policy = node.attributes.get_string("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return {axis: out[axis] / shape[axis] for axis in axes}
    sizes = builder.fixed(node, 3).tolist()
    each = [size / shape[axis] for axis, size in zip(axes, sizes, strict=True)]
    chosen = min(each) if policy == "not_larger" else max(each)
    return dict.fromkeys(axes, chosen)


def axis_map(node: ir.Node, size: int, out: int, scale: float) -> NDArray[np.float64]:
    """A matrix of shape [out, size]."""
    mode = node.attributes.get_string("mode", "nearest")
    where = _coordinates(node.attributes.get_string("coordinate_transformation_mode", "half_pixel"), size, out, scale)
    made = np.zeros((out, size))
    if mode == "nearest":
        rounding = _ROUND[node.attributes.get_string("nearest_mode", "round_prefer_floor")]
        index = np.clip(rounding(where).astype(int), 0, size - 1)
        made[np.arange(out), index] = 1
        return made
    narrow = min(scale, 1.0) if node.attributes.get_int("antialias", 0) else 1.0
    outside = bool(node.attributes.get_int("exclude_outside", 0))
    cubic = node.attributes.get_float("cubic_coeff_a", -0.75) if mode == "cubic" else None
    for row, place in enumerate(where):
        places, weights = _taps(float(place), narrow, cubic)
        if outside:
            weights = np.where((places < 0) | (places >= size), 0, weights)
            weights = weights / weights.sum()
        np.add.at(made[row], np.clip(places, 0, size - 1), weights)
    return made


def _coordinates(mode: str, size: int, out: int, scale: float) -> NDArray[np.float64]:
    at = np.arange(out, dtype=np.float64)
    if mode == "align_corners":
        return at * (size - 1) / (out - 1) if out > 1 else at * 0
    if mode == "asymmetric":
        return at / scale
    if mode == "pytorch_half_pixel" and out == 1:
        return at * 0
    if mode in ("half_pixel", "pytorch_half_pixel"):
        return (at + 0.5) / scale - 0.5
    if mode == "half_pixel_symmetric":
        shift = size / 2 * (1 - out / (scale * size))
        return shift + (at + 0.5) / scale - 0.5
    raise Refused(f"resizes with fixed coordinates, came mode {mode!r}")


def _taps(place: float, narrow: float, cubic: float | None) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Positions around a place, and what each counts; below 1, `narrow` widens the filter against aliasing."""
    low = math.floor(place)
    reach = 1 if cubic is None else 2
    first = math.floor(-reach / narrow) + 1
    offsets = np.arange(first, reach + 1 - first if narrow < 1 else reach + 1)
    distance = np.abs((offsets - (place - low)) * narrow)
    weights = np.clip(1 - distance, 0, 1) if cubic is None else _cubic(distance, cubic)
    return low + offsets, weights / weights.sum()


def _cubic(x: NDArray[np.float64], a: float) -> NDArray[np.float64]:
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))
