"""Abs, Neg, Sign and Reciprocal, of integers by what TFLite has for them."""

import onnx_ir as ir

from flagsplit.targets.tflite.builder import Builder
from flagsplit.targets.tflite.program import Tensor


def lower_abs(builder: Builder, node: ir.Node) -> None:
    builder.give(node, absolute(builder, builder.take(node, 0)))


def absolute(builder: Builder, x: Tensor) -> Tensor:
    if x.dtype == "float32":
        return builder.unary("ABS", x)
    return builder.maximum(x, builder.binary("SUB", builder.like(0, x), x))


def lower_neg(builder: Builder, node: ir.Node) -> None:
    builder.give(node, builder.unary("NEG", builder.take(node, 0)))


def lower_sign(builder: Builder, node: ir.Node) -> None:
    x = builder.take(node, 0)
    if x.dtype == "float32":
        builder.give(node, builder.unary("SIGN", x))
    else:
        builder.give(node, builder.maximum(builder.minimum(x, 1), -1))


def lower_reciprocal(builder: Builder, node: ir.Node) -> None:
    x = builder.take(node, 0)
    builder.give(node, builder.div(builder.like(1, x), x))
