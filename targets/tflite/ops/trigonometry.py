"""Inverse and hyperbolic functions, from ATAN2, exponentials and logarithms.

Near zero, where the exponentials cancel, a series takes over: |x| < 0.1 for sinh, whose next term is below 1e-9.
"""

import onnx_ir as ir

from flagsplit.targets.tflite.builder import Builder
from flagsplit.targets.tflite.ops.sign import absolute
from flagsplit.targets.tflite.program import Tensor


def lower_tan(builder: Builder, node: ir.Node) -> None:
    x = builder.take(node, 0)
    builder.give(node, builder.div(builder.unary("SIN", x), builder.unary("COS", x)))


def lower_atan(builder: Builder, node: ir.Node) -> None:
    builder.give(node, _atan2(builder, builder.take(node, 0), None))


def lower_asin(builder: Builder, node: ir.Node) -> None:
    x = builder.take(node, 0)
    builder.give(node, _atan2(builder, x, _other_leg(builder, x)))


def lower_acos(builder: Builder, node: ir.Node) -> None:
    x = builder.take(node, 0)
    builder.give(node, _atan2(builder, _other_leg(builder, x), x))


def lower_cosh(builder: Builder, node: ir.Node) -> None:
    x = builder.take(node, 0)
    both = builder.add(builder.unary("EXP", x), builder.unary("EXP", builder.unary("NEG", x)))
    builder.give(node, builder.mul(both, 0.5))


def lower_sinh(builder: Builder, node: ir.Node) -> None:
    x = builder.take(node, 0)
    both = builder.sub(builder.unary("EXP", x), builder.unary("EXP", builder.unary("NEG", x)))
    square = builder.mul(x, x)
    series = builder.mul(x, builder.add(builder.mul(builder.add(builder.mul(square, 1 / 120), 1 / 6), square), 1.0))
    near = builder.compare("LESS", absolute(builder, x), 0.1)
    builder.give(node, builder.select(near, series, builder.mul(both, 0.5)))


def lower_asinh(builder: Builder, node: ir.Node) -> None:
    """sign(x) log(|x| + sqrt(x² + 1)), near zero log1p of the same."""
    x = builder.take(node, 0)
    size = absolute(builder, x)
    root = builder.unary("SQRT", builder.add(builder.mul(x, x), 1.0))
    part = builder.div(builder.mul(x, x), builder.add(root, 1.0))
    builder.give(node, builder.mul(builder.unary("SIGN", x), log1p(builder, builder.add(size, part))))


def lower_acosh(builder: Builder, node: ir.Node) -> None:
    x = builder.take(node, 0)
    less = builder.sub(x, 1.0)
    root = builder.unary("SQRT", builder.mul(less, builder.add(x, 1.0)))
    builder.give(node, log1p(builder, builder.add(less, root)))


def lower_atanh(builder: Builder, node: ir.Node) -> None:
    x = builder.take(node, 0)
    size = absolute(builder, x)
    whole = log1p(builder, builder.div(builder.mul(size, 2.0), builder.sub(builder.like(1, x), size)))
    builder.give(node, builder.mul(builder.mul(builder.unary("SIGN", x), whole), 0.5))


def log1p(builder: Builder, x: Tensor) -> Tensor:
    """log(1 + x) for x >= 0 without losing small x: x log(u) / (u - 1) with u = 1 + x as rounded (Kahan)."""
    u = builder.add(x, 1.0)
    less = builder.sub(u, 1.0)
    none = builder.compare("LESS_EQUAL", less, 0.0)
    safe = builder.select(none, builder.like(1, x), less)
    exact = builder.mul(builder.unary("LOG", u), builder.div(x, safe))
    endless = builder.compare("GREATER", less, 1e6)
    return builder.select(none, x, builder.select(endless, builder.unary("LOG", u), exact))


def _atan2(builder: Builder, y: Tensor, x: Tensor | None) -> Tensor:
    """Of the angle of (x, y); x is 1 if not said."""
    other = x if x is not None else builder.expand(builder.like(1, y), y.shape)
    return builder.op("ATAN2", [y, other], y.shape)


def _other_leg(builder: Builder, x: Tensor) -> Tensor:
    """sqrt((1 - x)(1 + x))."""
    return builder.unary("SQRT", builder.mul(builder.sub(builder.like(1, x), x), builder.add(x, 1.0)))
