"""Which inputs each output of Resize reads along one axis, and with which weights, by the standard."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from flagsplit.targets.resampling import Doubles, nearest, sample_places, weights
from flagsplit.targets.tflite.attributes import front
from flagsplit.targets.tflite.builder import Builder
from flagsplit.targets.tflite.program import Refused

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


def axis_map(node: ir.Node, axis: AxisResize) -> Doubles:
    """A matrix of shape [out, size]; a row of NaN where the region of interest lies outside."""
    size, out = axis.size, axis.out
    mode = node.attributes.get_string("mode", "nearest")
    where = _places(_mode(node), axis)
    if mode == "nearest":
        rounding = node.attributes.get_string("nearest_mode", "round_prefer_floor")
        index = nearest(where, size, rounding)
        if not (index == nearest(_by_scale(node, axis, where), size, rounding)).all():
            raise Refused(_UNEVEN)
        made = np.zeros((out, size))
        made[np.arange(out), index] = 1
        return _without(node, made, where)
    if not np.allclose(where, _by_scale(node, axis, where), rtol=0, atol=_ROUNDING):
        raise Refused(_UNEVEN)
    narrow = min(axis.scale, 1.0) if node.attributes.get_int("antialias", 0) else 1.0
    cubic = node.attributes.get_float("cubic_coeff_a", -0.75) if mode == "cubic" else None
    outside = bool(node.attributes.get_int("exclude_outside", 0))
    return _without(node, weights(where, size, narrow, cubic, outside=outside), where)


def _without(node: ir.Node, made: Doubles, where: Doubles) -> Doubles:
    if _mode(node) == "tf_crop_and_resize":
        made[(where < 0) | (where > made.shape[1] - 1)] = np.nan
    return made


def _by_scale(node: ir.Node, axis: AxisResize, where: Doubles) -> Doubles:
    """What ONNX makes of aligned corners, where it goes by the size that was not rounded down, and runtimes do not."""
    exact = axis.scale * axis.size
    if _mode(node) != "align_corners" or abs(exact - axis.out) <= _ROUNDING * axis.out:
        return where
    return np.arange(axis.out, dtype=np.float64) * (axis.size - 1) / (exact - 1)


def _places(mode: str, axis: AxisResize) -> Doubles:
    size, out = axis.size, axis.out
    if mode == "tf_crop_and_resize":
        at = np.arange(out, dtype=np.float64)
        if out == 1:
            return at * 0 + 0.5 * (axis.start + axis.end) * (size - 1)
        return axis.start * (size - 1) + at * (axis.end - axis.start) * (size - 1) / (out - 1)
    found = sample_places(mode, size, out, axis.scale)
    if found is None:
        raise Refused(f"resizes with fixed coordinates, came mode {mode!r}")
    return found
