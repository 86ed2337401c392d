"""Operators on one element at a time that TFLite has under another name."""

import onnx_ir as ir

from flagsplit.targets.tflite.builder import Builder

CODES = {
    "Ceil": "CEIL",
    "Cos": "COS",
    "Exp": "EXP",
    "Floor": "FLOOR",
    "Log": "LOG",
    "Not": "LOGICAL_NOT",
    "Relu": "RELU",
    "Round": "ROUND",
    "Sigmoid": "LOGISTIC",
    "Sin": "SIN",
    "Sqrt": "SQRT",
    "Tanh": "TANH",
}


def lower(builder: Builder, node: ir.Node) -> None:
    x = builder.take(node, 0)
    code = CODES[node.op_type]
    if code == "RELU" and x.dtype != "float32":
        builder.give(node, builder.maximum(x, 0))
        return
    builder.give(node, builder.unary(code, x))
