"""Integers of 8 bits between float32: quantized, multiplied as matrices, and back.

What one constant scale stands for is int8 in the program too, by QUANTIZE and DEQUANTIZE, and a constant remembers
what its steps are worth: `int8` makes operators of these. Other integers are whole numbers in int32, with a float32
twin that the next reader takes. A product of two of 8 bits is exact in float32 up to sums of 2^24, beyond which it is
rounded as any float32. Weights stay int8 in the file.
"""

import numpy as np
import onnx_ir as ir

from flagsplit.targets.interface import Array
from flagsplit.targets.tflite.attributes import axis_of
from flagsplit.targets.tflite.builder import Builder, float_copy
from flagsplit.targets.tflite.ops.matmul import fully_connected, product
from flagsplit.targets.tflite.pairs import offset_of, params_of, read_as_int8
from flagsplit.targets.tflite.program import Refused, Tensor

_RANGES = {"UINT8": (0, 255), "INT8": (-128, 127)}


def lower_quantize(builder: Builder, node: ir.Node) -> None:
    dtype = node.outputs[0].dtype
    blocks = node.attributes.get_int("block_size", 0)
    if dtype is None or dtype.name not in _RANGES or blocks:
        raise Refused("quantizes to int8 and uint8, by tensor or by axis")
    x = builder.take(node, 0)
    params = params_of(node) if read_as_int8(node.outputs[0]) and x.data is None and x.dtype == "float32" else None
    if params is not None:
        builder.give(node, builder.quantize(x, *params))
        return
    scale, zero = _by_axis(builder, node, x)
    whole = builder.unary("ROUND", builder.div(x, scale))
    whole = whole if zero is None else builder.add(whole, zero)
    builder.give(node, _counted(builder, _clipped(builder, whole, *_RANGES[dtype.name])))


def lower_dequantize(builder: Builder, node: ir.Node) -> None:
    if node.attributes.get_int("block_size", 0):
        raise Refused("dequantizes by tensor or by axis, not by block")
    x = builder.take(node, 0)
    if x.dtype == "int8":
        builder.give(node, builder.op("DEQUANTIZE", [x], x.shape, "float32"))
        return
    scale, zero = _by_axis(builder, node, x)
    if x.data is not None and scale.data is not None and (zero is None or zero.data is not None):
        builder.give(node, _constant(node, x.data, scale.data, None if zero is None else zero.data))
        return
    whole = float_copy(builder, x)
    builder.give(node, builder.mul(whole if zero is None else builder.sub(whole, zero), scale))


def _constant(node: ir.Node, numbers: Array, scale: Array, zero: Array | None) -> Tensor:
    """What a constant stands for, and of 8 bits what its steps are worth, if it is as int8 stands for it."""
    less = numbers.astype(np.float32) - (0 if zero is None else zero.astype(np.float32))
    data = np.asarray(less * np.asarray(scale, np.float32), np.float32)
    made = Tensor(data.shape, "float32", data)
    value = node.inputs[0]
    offsets = np.unique(0 if zero is None else zero)
    if value is not None and value.dtype is not None and value.dtype.name in _RANGES and offsets.size == 1:
        made.zero = int(offsets[0]) - offset_of(value.dtype)
        made.steps = np.broadcast_to(np.asarray(scale, np.float32), data.shape)
    return made


def lower_matmul(builder: Builder, node: ir.Node) -> None:
    """The product of both less their zeros."""
    x, y = builder.take(node, 0), builder.take(node, 1)
    left = _less(builder, float_copy(builder, x), builder.maybe(node, 2), rows=True)
    zero = builder.maybe(node, 3)
    if y.data is None or y.rank != 2 or (zero is not None and zero.data is None):
        made = product(builder, left, _less(builder, float_copy(builder, y), zero, rows=False))
    else:
        made = fully_connected(builder, left, _weights(builder, y.data, zero), None)
    builder.give(node, _counted(builder, made))


def _weights(builder: Builder, data: Array, zero: Tensor | None) -> Tensor:
    """As int8 in the file where they fit, turned to [out, in]."""
    less = np.asarray(data, np.int32) - (0 if zero is None else np.asarray(zero.data, np.int32))
    if less.min() < -128 or less.max() > 127:
        return builder.const(less.T.astype(np.float32))
    small = less.T.astype(np.int8)
    stored = Tensor(small.shape, "int8", small, np.ones(1, np.float32))
    return builder.op("DEQUANTIZE", [stored], small.shape, "float32")


def _less(builder: Builder, x: Tensor, zero: Tensor | None, rows: bool) -> Tensor:
    """Less one zero for all, or one for each row or column."""
    if zero is None or (zero.data is not None and not np.any(zero.data)):
        return x
    number = float_copy(builder, zero)
    if number.rank == 1 and number.size > 1 and rows:
        number = builder.reshape(number, (number.size, 1))
    return builder.sub(x, builder.reshape(number, ()) if number.size == 1 else number)


def _by_axis(builder: Builder, node: ir.Node, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Scale and zero in a shape that broadcasts with the tensor."""
    scale, zero = builder.take(node, 1), builder.maybe(node, 2)
    numbers = [scale, None if zero is None else float_copy(builder, zero)]
    if scale.size > 1:
        axis = axis_of(node, x.rank, 1)
        shape = [x.shape[at] if at == axis else 1 for at in range(x.rank)]
        numbers = [None if each is None else builder.reshape(each, shape) for each in numbers]
    assert numbers[0] is not None
    return numbers[0], numbers[1]


def _clipped(builder: Builder, x: Tensor, low: int, high: int) -> Tensor:
    return builder.minimum(builder.maximum(x, float(low)), float(high))


def _counted(builder: Builder, whole: Tensor) -> Tensor:
    """Whole numbers in float32 as int32, which remembers its float32 twin."""
    made = builder.cast(whole, "int32")
    builder.twins[made] = whole
    return made
