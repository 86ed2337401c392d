"""Resize and Upsample: each axis is a constant map from input to output positions.

Where TFLite's own kernels have the same map, they are used; else nearest is a gather, and the rest a matrix product.
"""

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from flagsplit.targets.tflite.builder import Builder
from flagsplit.targets.tflite.ops.matmul import fully_connected
from flagsplit.targets.tflite.ops.resize_maps import axes_of, axis_map
from flagsplit.targets.tflite.ops.shapes import shape_of
from flagsplit.targets.tflite.program import Refused, Tensor

_MODES: tuple[dict[str, Any], ...] = ({"halfPixelCenters": True}, {"alignCorners": True}, {})


def lower(builder: Builder, node: ir.Node) -> None:
    x, shape = builder.take(node, 0), shape_of(node)
    if x.dtype != "float32":
        raise Refused(f"resizes float32, came {x.dtype}")
    for at in range(1, len(node.inputs)):
        builder.maybe_fixed(node, at)
    maps = _maps(builder, node, x, shape)
    if x.rank == 4 and set(maps) <= {2, 3}:
        mode = node.attributes.get_string("mode", "nearest")
        options = _same_in_tflite(mode, maps, x.shape, shape)
        if options is not None:
            code = "RESIZE_NEAREST_NEIGHBOR" if mode == "nearest" else "RESIZE_BILINEAR"
            last = builder.transpose(x, (0, 2, 3, 1))
            size = (shape[0], shape[2], shape[3], shape[1])
            made = builder.op(code, [last, builder.ints(shape[2:])], size, **options)
            builder.give(node, builder.transpose(made, (0, 3, 1, 2)))
            return
    outside = node.attributes.get_float("extrapolation_value", 0.0)
    for axis, each in maps.items():
        x = _along(builder, x, axis, each, outside)
    builder.give(node, x if maps else builder.add(x, 0.0))


def _maps(builder: Builder, node: ir.Node, x: Tensor, shape: tuple[int, ...]) -> dict[int, NDArray[np.float64]]:
    """For each axis that changes, a matrix of shape [out, in]."""
    axes = axes_of(builder, node, x.shape, shape)
    return {axis: axis_map(node, each) for axis, each in axes.items() if each.changes}


def _same_in_tflite(
    mode: str, maps: dict[int, NDArray[np.float64]], shape: tuple[int, ...], out: tuple[int, ...]
) -> dict[str, Any] | None:
    if mode not in ("nearest", "linear"):
        return None
    for options in _MODES:
        if all(
            np.allclose(each, tflite_map(mode, shape[axis], out[axis], options), atol=1e-6)
            for axis in (2, 3)
            for each in [maps.get(axis, np.eye(shape[axis]))]
        ):
            return dict(options)
    return None


def tflite_map(mode: str, size: int, out: int, options: dict[str, bool]) -> NDArray[np.float64]:
    """What TFLite's reference kernels do along one axis, computed in float32 as they do."""
    corners, half = options.get("alignCorners", False), options.get("halfPixelCenters", False)
    scale = np.float32(size - 1) / np.float32(out - 1) if corners and out > 1 else np.float32(size) / np.float32(out)
    at = np.arange(out, dtype=np.float32)
    rows = np.arange(out)
    made = np.zeros((out, size))
    if mode == "nearest":
        place = (at + np.float32(0.5)) * scale if half else at * scale
        index = np.floor(place + np.float32(0.5)) if corners else np.floor(place)
        made[rows, np.clip(index.astype(int), 0, size - 1)] = 1
        return made
    place = (at + np.float32(0.5)) * scale - np.float32(0.5) if half else at * scale
    low = np.floor(place)
    weight = np.maximum(place, 0) - np.maximum(low, 0)
    first = np.clip(low.astype(int), 0, size - 1)
    second = np.clip(np.ceil(place).astype(int), 0, size - 1)
    np.add.at(made, (rows, first), 1 - weight)
    np.add.at(made, (rows, second), weight)
    return made


def _along(builder: Builder, x: Tensor, axis: int, matrix: NDArray[np.float64], outside: float) -> Tensor:
    """Rows of NaN get one value: the rows of other axes add up to 1, so it stays what it is."""
    if np.all((matrix == 1).sum(1) == 1) and np.all((matrix != 0).sum(1) == 1):
        return builder.gather(x, builder.ints(matrix.argmax(1).tolist()), axis)
    order = [at for at in range(x.rank) if at != axis] + [axis]
    back = [order.index(at) for at in range(x.rank)]
    rows = np.asarray(np.isnan(matrix).any(1))
    weights = builder.const(np.where(rows[:, None], 0, matrix).astype(np.float32))
    bias = builder.const(np.where(rows, outside, 0).astype(np.float32)) if rows.any() else None
    return builder.transpose(fully_connected(builder, builder.transpose(x, order), weights, bias), back)
