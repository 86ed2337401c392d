"""Add, Sub, Mul, Div, Pow and Mod of two tensors that broadcast."""

import numpy as np
import onnx_ir as ir

from flagsplit.targets.tflite.builder import Builder
from flagsplit.targets.tflite.ops.sign import absolute
from flagsplit.targets.tflite.program import Refused, Tensor

CODES = {"Add": "ADD", "Sub": "SUB", "Mul": "MUL"}


def lower(builder: Builder, node: ir.Node) -> None:
    builder.give(node, builder.binary(CODES[node.op_type], builder.take(node, 0), builder.take(node, 1)))


def lower_div(builder: Builder, node: ir.Node) -> None:
    """Integers are divided towards zero, by both."""
    builder.give(node, builder.div(builder.take(node, 0), builder.take(node, 1)))


def lower_pow(builder: Builder, node: ir.Node) -> None:
    x, y = builder.take(node, 0), builder.take(node, 1)
    if y.data is not None and x.dtype == "float32" and (special := _known_power(builder, x, y)) is not None:
        builder.give(node, special)
        return
    if x.dtype == y.dtype == "float32":
        builder.give(node, builder.binary("POW", x, y))
        return
    if x.dtype == "float32" and y.dtype in ("int32", "int64"):
        builder.give(node, builder.binary("POW", x, builder.cast(y, "float32")))
        return
    if x.dtype in ("int32", "int64") and x.data is None:
        raise Refused(f"TFLite has no power of {x.dtype}")
    raise Refused(f"TFLite has no power of {x.dtype} by {y.dtype}")


def _known_power(builder: Builder, x: Tensor, y: Tensor) -> Tensor | None:
    """By one number for all elements that needs no logarithm."""
    assert y.data is not None
    if y.size != 1 or y.rank > x.rank:
        return None
    power = float(y.data.reshape(()))
    if power == 1:
        return builder.mul(x, 1.0)
    if power == 2:
        return builder.mul(x, x)
    if power == 3:
        return builder.mul(builder.mul(x, x), x)
    if power == 0.5:
        return builder.unary("SQRT", x)
    return None


def lower_mod(builder: Builder, node: ir.Node) -> None:
    """The remainder has the sign of the divisor, or with fmod=1 that of the dividend."""
    x, y = builder.take(node, 0), builder.take(node, 1)
    if not node.attributes.get_int("fmod", 0):
        builder.give(node, builder.binary("FLOOR_MOD", x, y))
        return
    rest = builder.binary("FLOOR_MOD", absolute(builder, x), absolute(builder, y))
    if x.dtype == "float32":
        builder.give(node, builder.mul(rest, builder.unary("SIGN", x)))
        return
    negative = builder.compare("LESS", x, builder.const(np.array(0, x.dtype)))
    builder.give(node, builder.select(negative, builder.binary("SUB", builder.like(0, x), rest), rest))
