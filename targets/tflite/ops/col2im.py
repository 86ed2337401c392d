"""Col2Im: what SCATTER_ND adds up where blocks overlap."""

import math

import numpy as np
import onnx_ir as ir

from flagsplit.targets.tflite.attributes import ints_of
from flagsplit.targets.tflite.builder import Builder
from flagsplit.targets.tflite.ops.shapes import shape_of
from flagsplit.targets.tflite.program import Refused


def lower(builder: Builder, node: ir.Node) -> None:
    """Of [batch, channels * block, count] to a picture."""
    x, shape = builder.take(node, 0), shape_of(node)
    sizes, block = ([int(each) for each in builder.fixed(node, at)] for at in (1, 2))
    axes = len(sizes)
    dilations, strides = (ints_of(node, name, [1] * axes) for name in ("dilations", "strides"))
    pads = ints_of(node, "pads", [0] * 2 * axes)
    wide = [size + pads[at] + pads[at + axes] for at, size in enumerate(sizes)]
    counts = [
        (size - gap * (each - 1) - 1) // step + 1
        for size, each, gap, step in zip(wide, block, dilations, strides, strict=True)
    ]
    if math.prod(counts) != x.shape[2]:
        raise Refused(f"takes {math.prod(counts)} blocks, came {x.shape[2]}")
    within, starts = np.indices(block).reshape(axes, -1, 1), np.indices(counts).reshape(axes, 1, -1)
    gaps, steps = (np.array(each).reshape(axes, 1, 1) for each in (dilations, strides))
    places = np.ravel_multi_index(tuple(within * gaps + starts * steps), wide).reshape(-1, 1)
    rows = shape[0] * shape[1]
    columns = builder.transpose(builder.reshape(x, (rows, places.size)), (1, 0))
    total = (math.prod(wide), rows)
    added = builder.op("SCATTER_ND", [builder.const(places, "int32"), columns, builder.ints(total)], total, x.dtype)
    whole = builder.reshape(builder.transpose(added, (1, 0)), (rows, *wide))
    builder.give(node, builder.reshape(builder.slice(whole, [0, *pads[:axes]], [rows, *sizes]), shape))
