"""ScatterND and ScatterElements: SCATTER_ND adds up, so what it hits is marked first and replaced.

The last update at a position stays: where positions are computed, each is compared with those after it.
"""

import math

import numpy as np
import onnx_ir as ir

from flagsplit.targets.tflite.attributes import axis_of
from flagsplit.targets.tflite.builder import Builder
from flagsplit.targets.tflite.ops.gather import coordinates, elementwise_places
from flagsplit.targets.tflite.program import Refused, Tensor

_MOST_COMPUTED = 2048


def lower_nd(builder: Builder, node: ir.Node) -> None:
    x, places, updates = builder.takes(node)
    found = coordinates(builder, places, x.shape)
    builder.give(node, _scattered(builder, node, x, found, updates))


def lower_elements(builder: Builder, node: ir.Node) -> None:
    x, places, updates = builder.takes(node)
    axis = axis_of(node, x.rank, 0)
    found = elementwise_places(builder, places, axis, x.shape[axis])
    builder.give(node, _scattered(builder, node, x, found, updates))


def _scattered(builder: Builder, node: ir.Node, x: Tensor, places: Tensor, updates: Tensor) -> Tensor:
    if x.dtype not in ("float32", "int32", "int64"):
        raise Refused(f"scatters float32, int32 and int64, came {x.dtype}")
    shape = builder.ints(x.shape)
    how = node.attributes.get_string("reduction", "none")
    if how == "add":
        return builder.add(x, builder.op("SCATTER_ND", [places, updates, shape], x.shape, x.dtype))
    if how != "none":
        raise Refused(f"TFLite scatters by replacing and by adding, came {how!r}")
    beaten = _beaten(builder, places, x.shape)
    wide = builder.reshape(beaten, (*places.shape[:-1], *(1,) * (updates.rank - places.rank + 1)))
    kept = updates if _never(beaten) else builder.select(wide, builder.like(0, updates), updates)
    summed = builder.op("SCATTER_ND", [places, kept, shape], x.shape, x.dtype)
    if places.data is None:
        ones = builder.const(np.ones(updates.shape, np.float32))
        hits = builder.op("SCATTER_ND", [places, ones, shape], x.shape, "float32")
        return builder.select(builder.compare("NOT_EQUAL", hits, 0.0), summed, x)
    hit = np.zeros(x.shape, bool)
    hit[tuple(np.asarray(places.data).reshape(-1, places.shape[-1]).T)] = True
    return summed if hit.all() else builder.select(builder.const(hit), summed, x)


def _never(x: Tensor) -> bool:
    return x.data is not None and not np.any(x.data)


def _beaten(builder: Builder, places: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Which updates have another one after them at their position."""
    depth = places.shape[-1]
    count = places.size // depth
    steps = np.array([math.prod(shape[at + 1 : depth]) for at in range(depth)], np.int32)
    if places.data is not None:
        line = np.asarray(places.data, np.int64).reshape(count, depth) @ steps
        last = {int(position): at for at, position in enumerate(line)}
        return builder.const(np.array([last[int(position)] != at for at, position in enumerate(line)]))
    if count > _MOST_COMPUTED:
        raise Refused(f"replaces at up to {_MOST_COMPUTED} computed positions, came {count}")
    found = builder.reduce("SUM", builder.mul(builder.reshape(places, (count, depth)), builder.const(steps)), [1])
    same = builder.compare("EQUAL", found, builder.reshape(found, (1, count)))
    later = builder.const(np.triu(np.ones((count, count), bool), 1))
    return builder.reduce("REDUCE_ANY", builder.binary("LOGICAL_AND", same, later), [1])
