"""Comparisons and logic."""

import onnx_ir as ir

from flagsplit.targets.tflite.builder import Builder
from flagsplit.targets.tflite.ops.sign import absolute

CODES = {
    "And": "LOGICAL_AND",
    "Equal": "EQUAL",
    "Greater": "GREATER",
    "GreaterOrEqual": "GREATER_EQUAL",
    "Less": "LESS",
    "LessOrEqual": "LESS_EQUAL",
    "Or": "LOGICAL_OR",
    "Xor": "NOT_EQUAL",
}


def lower(builder: Builder, node: ir.Node) -> None:
    builder.give(node, builder.compare(CODES[node.op_type], builder.take(node, 0), builder.take(node, 1)))


def lower_isnan(builder: Builder, node: ir.Node) -> None:
    x = builder.take(node, 0)
    builder.give(node, builder.compare("NOT_EQUAL", x, x))


def lower_isinf(builder: Builder, node: ir.Node) -> None:
    x = builder.take(node, 0)
    above = node.attributes.get_int("detect_positive", 1)
    below = node.attributes.get_int("detect_negative", 1)
    looked = absolute(builder, x) if above and below else x if above else builder.unary("NEG", x)
    found = builder.compare("EQUAL", looked, float("inf"))
    if not above and not below:
        found = builder.compare("LOGICAL_AND", found, builder.like(False, found))
    builder.give(node, found)


def lower_where(builder: Builder, node: ir.Node) -> None:
    builder.give(node, builder.select(*builder.takes(node)))
