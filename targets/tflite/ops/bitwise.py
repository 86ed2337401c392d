"""Bitwise operators of int32; TFLite has the exclusive or, the rest follows where it can be said with it."""

import onnx_ir as ir

from flagsplit.targets.tflite.builder import Builder


def lower_not(builder: Builder, node: ir.Node) -> None:
    """In two's complement."""
    x = builder.take(node, 0)
    builder.give(node, builder.binary("SUB", builder.like(-1, x), x))


def lower_xor(builder: Builder, node: ir.Node) -> None:
    builder.give(node, builder.binary("BITWISE_XOR", builder.take(node, 0), builder.take(node, 1)))
