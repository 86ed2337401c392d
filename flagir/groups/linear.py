"""A product with a constant matrix, the scale and bias that follow it, and an activation."""

import onnx_ir as ir

from flagsplit.flagir.groups.pattern import View, is_constant, is_op, with_followers


def find(view: View, node: ir.Node) -> frozenset[ir.Node]:
    """The group after a matrix product."""
    if not is_op(node, "MatMul", "Gemm") or not any(is_constant(value) for value in node.inputs[:2]):
        return frozenset()
    return with_followers(view, node)
