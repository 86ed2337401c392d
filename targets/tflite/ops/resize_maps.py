"""Which inputs each output of Resize reads along one axis, and with which weights, by the standard."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from flagsplit.targets.tflite.attributes import front
from flagsplit.targets.tflite.builder import Builder
from flagsplit.targets.tflite.program import Refused

_ROUND: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}
_ROUNDING = 1e-6
_UNEVEN = (
    "its scales give no whole sizes: ONNX and its runtimes differ then on what aligned corners are; give it sizes in "
    "place of scales"
)


@dataclass(frozen=True)
class AxisResize:
    """An axis that the node names.

    Attributes:
        size, out: of the input and the output.
        scale: what the node states, or what follows from the sizes that it states.
        start, end: of the region of interest.
    """

    size: int
    out: int
    scale: float
    start: float = 0.0
    end: float = 1.0

    @property
    def changes(self) -> bool:
        """Whether anything is to be done."""
        return (self.size, 1, 0, 1) != (self.out, self.scale, self.start, self.end)


def axes_of(builder: Builder, node: ir.Node, shape: tuple[int, ...], out: tuple[int, ...]) -> dict[int, AxisResize]:
    """What becomes of each axis that the node names."""
    rank = len(shape)
    axes = [front(int(each), rank) for each in node.attributes.get_ints("axes", list(range(rank)))]
    region, crops = builder.maybe_fixed(node, 1), _mode(node) == "tf_crop_and_resize"
    whole = np.repeat([[0.0], [1.0]], len(axes), axis=1)
    starts, stops = (region.reshape(2, -1) if crops and region is not None and region.size else whole).tolist()
    scales = _scales(builder, node, axes, shape, out)
    return {
        axis: AxisResize(shape[axis], out[axis], scale, start, stop)
        for axis, scale, start, stop in zip(axes, scales, starts, stops, strict=True)
    }


def _mode(node: ir.Node) -> str:
    return node.attributes.get_string("coordinate_transformation_mode", "half_pixel")


def _scales(
    builder: Builder, node: ir.Node, axes: list[int], shape: tuple[int, ...], out: tuple[int, ...]
) -> list[float]:
    scales = builder.maybe_fixed(node, 2)
    if scales is not None and scales.size:
        return [float(each) for each in scales.tolist()]
    policy = node.attributes.get_string("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return [out[axis] / shape[axis] for axis in axes]
    sizes = builder.fixed(node, 3).tolist()
    each = [size / shape[axis] for axis, size in zip(axes, sizes, strict=True)]
    chosen = min(each) if policy == "not_larger" else max(each)
    return [chosen] * len(axes)


def axis_map(node: ir.Node, axis: AxisResize) -> NDArray[np.float64]:
    """A matrix of shape [out, size]; a row of NaN where the region of interest lies outside."""
    size, out, scale = axis.size, axis.out, axis.scale
    mode = node.attributes.get_string("mode", "nearest")
    where = _coordinates(_mode(node), axis)
    made = np.zeros((out, size))
    if mode == "nearest":
        index = _nearest(node, where, size)
        if not (index == _nearest(node, _by_scale(node, axis, where), size)).all():
            raise Refused(_UNEVEN)
        made[np.arange(out), index] = 1
        return _without(node, made, where)
    if not np.allclose(where, _by_scale(node, axis, where), rtol=0, atol=_ROUNDING):
        raise Refused(_UNEVEN)
    narrow = min(scale, 1.0) if node.attributes.get_int("antialias", 0) else 1.0
    outside = bool(node.attributes.get_int("exclude_outside", 0))
    cubic = node.attributes.get_float("cubic_coeff_a", -0.75) if mode == "cubic" else None
    for row, place in enumerate(where):
        places, weights = _taps(float(place), narrow, cubic)
        if outside:
            weights = np.where((places < 0) | (places >= size), 0, weights)
            weights = weights / weights.sum()
        np.add.at(made[row], np.clip(places, 0, size - 1), weights)
    return _without(node, made, where)


def _nearest(node: ir.Node, where: NDArray[np.float64], size: int) -> NDArray[np.int64]:
    rounding = _ROUND[node.attributes.get_string("nearest_mode", "round_prefer_floor")]
    return np.clip(rounding(where).astype(np.int64), 0, size - 1)


def _without(node: ir.Node, made: NDArray[np.float64], where: NDArray[np.float64]) -> NDArray[np.float64]:
    if _mode(node) == "tf_crop_and_resize":
        made[(where < 0) | (where > made.shape[1] - 1)] = np.nan
    return made


def _by_scale(node: ir.Node, axis: AxisResize, where: NDArray[np.float64]) -> NDArray[np.float64]:
    """What ONNX makes of aligned corners, where it goes by the size that was not rounded down, and runtimes do not."""
    exact = axis.scale * axis.size
    if _mode(node) != "align_corners" or abs(exact - axis.out) <= _ROUNDING * axis.out:
        return where
    return np.arange(axis.out, dtype=np.float64) * (axis.size - 1) / (exact - 1)


def _coordinates(mode: str, axis: AxisResize) -> NDArray[np.float64]:
    size, out, scale = axis.size, axis.out, axis.scale
    at = np.arange(out, dtype=np.float64)
    if mode == "align_corners":
        return at * (size - 1) / (out - 1) if out > 1 else at * 0
    if mode == "tf_crop_and_resize":
        if out == 1:
            return at * 0 + 0.5 * (axis.start + axis.end) * (size - 1)
        return axis.start * (size - 1) + at * (axis.end - axis.start) * (size - 1) / (out - 1)
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
