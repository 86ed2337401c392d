"""ScatterND and ScatterElements: SCATTER_ND adds up, so what it hits is marked first and replaced."""

import math

import numpy as np
import onnx_ir as ir

from flagsplit.targets.mobile.litert.attributes import axis_of
from flagsplit.targets.mobile.litert.builder import Builder
from flagsplit.targets.mobile.litert.ops.gather import coordinates, elementwise_places
from flagsplit.targets.mobile.litert.program import Refused, Tensor


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
    summed = builder.op("SCATTER_ND", [places, updates, shape], x.shape, x.dtype)
    if how == "add":
        return builder.add(x, summed)
    if how != "none":
        raise Refused(f"TFLite scatters by replacing and by adding, came {how!r}")
    if places.data is None:
        raise Refused("replaces at constant positions only: where two updates meet, TFLite adds them")
    flat = np.asarray(places.data).reshape(-1, places.shape[-1])
    if len(np.unique(flat, axis=0)) != len(flat):
        raise Refused("two updates meet at one position")
    hit = np.zeros(x.shape, bool)
    hit[tuple(flat.T)] = True
    if math.prod(x.shape) == int(hit.sum()):
        return summed
    return builder.select(builder.const(hit), summed, x)
