"""What only moves or renames elements: reshapes, transposes, expansion, tiling, joining and splitting."""

from typing import Any

import numpy as np
import onnx_ir as ir

from flagsplit.targets.tflite.attributes import axis_of
from flagsplit.targets.tflite.builder import Builder
from flagsplit.targets.tflite.program import Refused, Tensor


def shape_of(node: ir.Node, at: int = 0) -> tuple[int, ...]:
    """The shape of an output."""
    shape = node.outputs[at].shape
    if shape is None:
        raise Refused("the shape of the output is not known")
    return tuple(int(dim) for dim in shape if isinstance(dim, int))


def lower_same(builder: Builder, node: ir.Node) -> None:
    """Identity, and Dropout outside training."""
    if len(node.outputs) > 1 and node.outputs[1].uses():
        raise Refused("Dropout gives no mask")
    if node.op_type == "Dropout" and (training := builder.maybe(node, 2)) is not None and _may_be_true(training):
        raise Refused("Dropout in training mode")
    builder.give(node, builder.take(node, 0))


def _may_be_true(x: Tensor) -> bool:
    return x.data is None or bool(np.any(x.data))


def lower_reshape(builder: Builder, node: ir.Node) -> None:
    """Reshape, Flatten, Squeeze and Unsqueeze: the shape of the output says all."""
    for at in range(1, len(node.inputs)):
        builder.maybe_fixed(node, at)
    builder.give(node, builder.reshape(builder.take(node, 0), shape_of(node)))


def lower_transpose(builder: Builder, node: ir.Node) -> None:
    x = builder.take(node, 0)
    perm = node.attributes.get_ints("perm", list(range(x.rank))[::-1])
    builder.give(node, builder.transpose(x, [int(each) for each in perm]))


def lower_expand(builder: Builder, node: ir.Node) -> None:
    builder.fixed(node, 1)
    builder.give(node, builder.expand(builder.take(node, 0), shape_of(node)))


def lower_tile(builder: Builder, node: ir.Node) -> None:
    x, repeats = builder.take(node, 0), builder.fixed(node, 1)
    shape = shape_of(node)
    builder.give(node, builder.op("TILE", [x, builder.const(repeats.astype(np.int32))], shape))


def lower_concat(builder: Builder, node: ir.Node) -> None:
    parts = builder.takes(node)
    builder.give(node, builder.concat(parts, axis_of(node, parts[0].rank, 0)))


def lower_split(builder: Builder, node: ir.Node) -> None:
    """By slices: each part that is used, and no other."""
    builder.maybe_fixed(node, 1)
    x = builder.take(node, 0)
    axis, begin = axis_of(node, x.rank, 0), 0
    for at, value in enumerate(node.outputs):
        size = shape_of(node, at)[axis]
        builder.know(value, builder.cut(x, axis, begin, size))
        begin += size


def lower_trilu(builder: Builder, node: ir.Node) -> None:
    x = builder.take(node, 0)
    shift = builder.maybe_fixed(node, 1)
    offset = 0 if shift is None else int(shift.reshape(()))
    ones = np.ones(x.shape[-2:], bool)
    upper = bool(node.attributes.get_int("upper", 1))
    kept = np.triu(ones, offset) if upper else np.tril(ones, offset)
    if x.dtype == "bool":
        builder.give(node, builder.binary("LOGICAL_AND", x, builder.const(kept)))
        return
    builder.give(node, builder.select(builder.const(kept), x, builder.like(0, x)))


def lower_depth_to_space(builder: Builder, node: ir.Node) -> None:
    x, block = builder.take(node, 0), node.attributes.get_int("blocksize", 1)
    n, c, h, w = x.shape
    inner = c // (block * block)
    if node.attributes.get_string("mode", "DCR") == "DCR":
        last = builder.transpose(x, (0, 2, 3, 1))
        made = builder.op("DEPTH_TO_SPACE", [last], (n, h * block, w * block, inner), blockSize=block)
        builder.give(node, builder.transpose(made, (0, 3, 1, 2)))
        return
    order = np.arange(c).reshape(inner, block, block).transpose(1, 2, 0).reshape(-1)
    last = builder.transpose(builder.gather(x, builder.ints(order.tolist()), 1), (0, 2, 3, 1))
    made = builder.op("DEPTH_TO_SPACE", [last], (n, h * block, w * block, inner), blockSize=block)
    builder.give(node, builder.transpose(made, (0, 3, 1, 2)))


def lower_space_to_depth(builder: Builder, node: ir.Node) -> None:
    x, block = builder.take(node, 0), node.attributes.get_int("blocksize", 1)
    n, c, h, w = x.shape
    last = builder.transpose(x, (0, 2, 3, 1))
    made = builder.op("SPACE_TO_DEPTH", [last], (n, h // block, w // block, c * block * block), blockSize=block)
    builder.give(node, builder.transpose(made, (0, 3, 1, 2)))


def lower_reverse_sequence(builder: Builder, node: ir.Node) -> None:
    x, lengths = builder.take(node, 0), builder.take(node, 1)
    options: dict[str, Any] = {
        "seqDim": axis_of(node, x.rank, 0, "time_axis"),
        "batchDim": axis_of(node, x.rank, 1, "batch_axis"),
    }
    builder.give(node, builder.op("REVERSE_SEQUENCE", [x, lengths], x.shape, **options))


def lower_known(builder: Builder, node: ir.Node) -> None:
    """Shape, Size, and constants that only the sizes decide."""
    shape = builder.take(node, 0).shape
    if node.op_type == "Size":
        builder.give(node, builder.const(int(np.prod(shape)), "int64"))
        return
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(shape))
    builder.give(node, builder.const(np.array(shape[slice(start, end)], np.int64)))


def lower_eye_like(builder: Builder, node: ir.Node) -> None:
    shape, dtype = shape_of(node), node.outputs[0].dtype
    assert dtype is not None
    carried = "float32" if dtype.name == "FLOAT16" else dtype.numpy().name
    builder.give(node, builder.const(np.eye(shape[0], shape[1], node.attributes.get_int("k", 0)).astype(carried)))


def lower_constant_of_shape(builder: Builder, node: ir.Node) -> None:
    builder.fixed(node, 0)
    value = node.attributes.get("value")
    fill = value.as_tensor().numpy() if value is not None else np.zeros(1, np.float32)
    carried = fill.astype(np.float32) if fill.dtype == np.float16 else fill
    builder.give(node, builder.const(np.broadcast_to(carried.reshape(()), shape_of(node))))


def lower_range(builder: Builder, node: ir.Node) -> None:
    start, _, delta = (builder.fixed(node, at).reshape(()) for at in range(3))
    steps = np.arange(shape_of(node)[0])
    builder.give(node, builder.const((start.item() + steps * delta.item()).astype(start.dtype)))


def lower_constant(builder: Builder, node: ir.Node) -> None:
    value = node.attributes.get("value")
    if value is None:
        raise Refused("a Constant that is no tensor")
    data = value.as_tensor().numpy()
    builder.give(node, builder.const(data.astype(np.float32) if data.dtype == np.float16 else data))
