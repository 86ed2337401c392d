"""Sum, Mean, Max and Min of any number of tensors."""

from functools import reduce

import onnx_ir as ir

from flagsplit.targets.tflite.builder import Builder

CODES = {"Sum": "ADD", "Mean": "ADD", "Max": "MAXIMUM", "Min": "MINIMUM"}


def lower(builder: Builder, node: ir.Node) -> None:
    code = CODES[node.op_type]
    whole = reduce(lambda x, y: builder.binary(code, x, y), builder.takes(node))
    if node.op_type == "Mean" and len(node.inputs) > 1:
        whole = builder.mul(whole, 1 / len(node.inputs))
    builder.give(node, whole)
