"""Cast and CastLike among the carried types."""

import onnx_ir as ir

from flagsplit.targets.tflite.builder import Builder, carried_in
from flagsplit.targets.tflite.program import Tensor


def lower(builder: Builder, node: ir.Node) -> None:
    builder.give(node, to_type(builder, builder.take(node, 0), carried_in(node.outputs[0].dtype)))


def to_type(builder: Builder, x: Tensor, dtype: str) -> Tensor:
    """What is not zero is true, which a CAST of fractions would not say."""
    if dtype == "bool" and x.dtype != "bool":
        return builder.compare("NOT_EQUAL", x, 0)
    return builder.cast(x, dtype)
