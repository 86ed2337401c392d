"""Softmax, LogSoftmax and Hardmax along any axis; TFLite has them along the last one."""

import numpy as np
import onnx_ir as ir

from flagsplit.targets.tflite.attributes import axis_of
from flagsplit.targets.tflite.builder import Builder
from flagsplit.targets.tflite.program import Tensor


def _last(x: Tensor, axis: int) -> tuple[list[int], list[int]]:
    """The permutation that puts an axis last, and the one back."""
    order = [at for at in range(x.rank) if at != axis] + [axis]
    return order, [int(each) for each in np.argsort(order)]


def lower(builder: Builder, node: ir.Node) -> None:
    x = builder.take(node, 0)
    there, back = _last(x, axis_of(node, x.rank, -1))
    builder.give(node, builder.transpose(softmax(builder, builder.transpose(x, there)), back))


def softmax(builder: Builder, x: Tensor) -> Tensor:
    """Along the last axis."""
    return builder.unary("SOFTMAX", x, beta=1.0)


def lower_log(builder: Builder, node: ir.Node) -> None:
    """x - max - log(sum(exp(x - max))): the kernel of LOG_SOFTMAX is no better, and rougher in some delegates."""
    x = builder.take(node, 0)
    axis = axis_of(node, x.rank, -1)
    less = builder.sub(x, builder.reduce("REDUCE_MAX", x, [axis]))
    total = builder.reduce("SUM", builder.unary("EXP", less), [axis])
    builder.give(node, builder.sub(less, builder.unary("LOG", total)))


def lower_hard(builder: Builder, node: ir.Node) -> None:
    """One where the first maximum is."""
    x = builder.take(node, 0)
    axis = axis_of(node, x.rank, -1)
    there, back = _last(x, axis)
    moved = builder.transpose(x, there)
    first = builder.op(
        "ARG_MAX", [moved, builder.const(x.rank - 1, "int32")], moved.shape[:-1], "int32", outputType="int32"
    )
    line = builder.reshape(builder.ints(range(x.shape[axis])), (1,) * (x.rank - 1) + (x.shape[axis],))
    hit = builder.compare("EQUAL", builder.reshape(first, (*moved.shape[:-1], 1)), line)
    builder.give(node, builder.transpose(builder.cast(hit, x.dtype), back))
