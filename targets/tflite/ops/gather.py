"""Gather, GatherElements, GatherND and OneHot. Positions below zero count from the end."""

import numpy as np
import onnx_ir as ir

from flagsplit.targets.tflite.attributes import axis_of
from flagsplit.targets.tflite.builder import Builder
from flagsplit.targets.tflite.ops.shapes import shape_of
from flagsplit.targets.tflite.program import Tensor


def from_front(builder: Builder, places: Tensor, size: int) -> Tensor:
    """Positions as int32 that are not negative."""
    if places.data is not None:
        data = np.asarray(places.data, np.int64)
        return builder.const(np.where(data < 0, data + size, data).astype(np.int32))
    small = builder.cast(places, "int32")
    return builder.binary("FLOOR_MOD", small, builder.like(size, small))


def lower(builder: Builder, node: ir.Node) -> None:
    x = builder.take(node, 0)
    axis = axis_of(node, x.rank, 0)
    builder.give(node, builder.gather(x, from_front(builder, builder.take(node, 1), x.shape[axis]), axis))


def elementwise_places(builder: Builder, places: Tensor, axis: int, size: int) -> Tensor:
    """What GATHER_ND and SCATTER_ND take: for each place all of its coordinates, that along `axis` given."""
    given = builder.reshape(from_front(builder, places, size), (*places.shape, 1))
    grid = np.indices(places.shape, np.int32)
    parts = [given if at == axis else builder.const(grid[at][..., None].copy()) for at in range(places.rank)]
    return builder.concat(parts, places.rank)


def lower_elements(builder: Builder, node: ir.Node) -> None:
    x, places = builder.take(node, 0), builder.take(node, 1)
    axis = axis_of(node, x.rank, 0)
    whole = elementwise_places(builder, places, axis, x.shape[axis])
    builder.give(node, builder.op("GATHER_ND", [x, whole], places.shape))


def coordinates(builder: Builder, places: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Coordinates as int32 that are not negative; those along the last axis go into the first axes of `shape`."""
    sizes = np.array(shape[: places.shape[-1]], np.int64)
    if places.data is not None:
        data = np.asarray(places.data, np.int64)
        return builder.const(np.where(data < 0, data + sizes, data).astype(np.int32))
    return builder.binary("FLOOR_MOD", builder.cast(places, "int32"), builder.const(sizes.astype(np.int32)))


def lower_nd(builder: Builder, node: ir.Node) -> None:
    x, places = builder.take(node, 0), builder.take(node, 1)
    batch = node.attributes.get_int("batch_dims", 0)
    found = coordinates(builder, places, x.shape[batch:])
    if batch:
        grid = np.indices(places.shape[:-1], np.int32)[:batch]
        parts = [builder.const(each[..., None].copy()) for each in grid]
        found = builder.concat([*parts, found], places.rank - 1)
    builder.give(node, builder.op("GATHER_ND", [x, found], shape_of(node)))


def lower_one_hot(builder: Builder, node: ir.Node) -> None:
    """Positions out of range are off everywhere; a position below zero counts from the end."""
    places, depth, values = builder.take(node, 0), int(builder.fixed(node, 1).reshape(-1)[0]), builder.fixed(node, 2)
    axis = axis_of(node, places.rank + 1, -1)
    line = builder.const(
        np.arange(depth).reshape([depth if at == axis else 1 for at in range(places.rank + 1)]), "int32"
    )
    small = builder.cast(places, "int32")
    wide = builder.reshape(small, (*small.shape[:axis], 1, *small.shape[axis:]))
    negative = builder.compare("LESS", wide, 0)
    counted = builder.select(negative, builder.add(wide, depth), wide)
    hit = builder.compare("EQUAL", counted, line)
    off, on = (builder.const(np.asarray(each)) for each in values)
    if off.dtype == "float16":
        off, on = builder.cast(off, "float32"), builder.cast(on, "float32")
    builder.give(node, builder.select(hit, on, off))
