"""Reductions, over axes that are constant."""

from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from flagsplit.targets.tflite.attributes import axis_of, front
from flagsplit.targets.tflite.builder import Builder
from flagsplit.targets.tflite.ops.sign import absolute
from flagsplit.targets.tflite.ops.slice import reverse
from flagsplit.targets.tflite.program import Tensor

_Over = Callable[[str, Tensor], Tensor]


def lower(builder: Builder, node: ir.Node) -> None:
    x = builder.take(node, 0)
    given = builder.maybe_fixed(node, 1)
    axes = sorted({front(int(each), x.rank) for each in ([] if given is None else given.reshape(-1).tolist())})
    keep = bool(node.attributes.get_int("keepdims", 1))
    if not axes:
        axes = [] if node.attributes.get_int("noop_with_empty_axes", 0) else list(range(x.rank))

    def over(code: str, each: Tensor) -> Tensor:
        return builder.reduce(code, each, axes, keep)

    builder.give(node, _MADE[node.op_type](builder, x, over))


def _plain(code: str) -> Callable[[Builder, Tensor, _Over], Tensor]:
    def made(_: Builder, x: Tensor, over: _Over) -> Tensor:
        if x.dtype == "bool":
            return over("REDUCE_ANY" if code == "REDUCE_MAX" else "REDUCE_ALL", x)
        return over(code, x)

    return made


def _l1(builder: Builder, x: Tensor, over: _Over) -> Tensor:
    return over("SUM", absolute(builder, x))


def _l2(builder: Builder, x: Tensor, over: _Over) -> Tensor:
    return builder.unary("SQRT", over("SUM", builder.mul(x, x)))


def _sum_square(builder: Builder, x: Tensor, over: _Over) -> Tensor:
    return over("SUM", builder.mul(x, x))


def _log_sum(builder: Builder, x: Tensor, over: _Over) -> Tensor:
    return builder.unary("LOG", over("SUM", x))


def _log_sum_exp(builder: Builder, x: Tensor, over: _Over) -> Tensor:
    """With the largest of all taken out, so that no exponential overflows."""
    top = builder.reduce("REDUCE_MAX", x, list(range(x.rank)), keep=False)
    less = builder.sub(x, top)
    return builder.add(builder.unary("LOG", over("SUM", builder.unary("EXP", less))), top)


_MADE: dict[str, Callable[[Builder, Tensor, _Over], Tensor]] = {
    "ReduceL1": _l1,
    "ReduceL2": _l2,
    "ReduceLogSum": _log_sum,
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceMax": _plain("REDUCE_MAX"),
    "ReduceMean": _plain("MEAN"),
    "ReduceMin": _plain("REDUCE_MIN"),
    "ReduceProd": _plain("REDUCE_PROD"),
    "ReduceSum": _plain("SUM"),
    "ReduceSumSquare": _sum_square,
}


def lower_arg(builder: Builder, node: ir.Node) -> None:
    """The first of equals, or the last by looking from behind."""
    x = builder.take(node, 0)
    axis = axis_of(node, x.rank, 0)
    code = "ARG_MAX" if node.op_type == "ArgMax" else "ARG_MIN"
    last = bool(node.attributes.get_int("select_last_index", 0))
    looked = reverse(builder, x, axis) if last else x
    shape = x.shape[:axis] + x.shape[axis + 1 :]
    found = builder.op(code, [looked, builder.const(axis, "int32")], shape, "int32", outputType="int32")
    found = builder.binary("SUB", builder.like(x.shape[axis] - 1, found), found) if last else found
    if node.attributes.get_int("keepdims", 1):
        found = builder.reshape(found, (*x.shape[:axis], 1, *x.shape[axis + 1 :]))
    builder.give(node, builder.cast(found, "int64"))


def lower_cumsum(builder: Builder, node: ir.Node) -> None:
    x = builder.take(node, 0)
    axis = front(int(builder.fixed(node, 1).reshape(())), x.rank)
    options: dict[str, Any] = {name: bool(node.attributes.get_int(name, 0)) for name in ("exclusive", "reverse")}
    builder.give(node, builder.op("CUMSUM", [x, builder.const(axis, "int32")], x.shape, **options))


def lower_topk(builder: Builder, node: ir.Node) -> None:
    """TFLite's takes the largest along the last axis; equals come in the order of their positions, as in ONNX."""
    x, count = builder.take(node, 0), int(builder.fixed(node, 1).reshape(()))
    axis = axis_of(node, x.rank, -1)
    largest = bool(node.attributes.get_int("largest", 1))
    order = [at for at in range(x.rank) if at != axis] + [axis]
    back = [order.index(at) for at in range(x.rank)]
    moved = builder.transpose(x if largest else builder.unary("NEG", x), order)
    shape = (*moved.shape[:-1], count)
    values, places = builder.many(
        "TOPK_V2", [moved, builder.const(count, "int32")], [(shape, x.dtype), (shape, "int32")]
    )
    values = values if largest else builder.unary("NEG", values)
    places = builder.cast(places, "int64")
    builder.give(node, builder.transpose(values, back), builder.transpose(places, back))
