"""A convolution with the batch normalization, scale and bias that follow it, and an activation."""

import onnx_ir as ir

from flagsplit.flagir.groups.pattern import View, is_op, with_followers


def find(view: View, node: ir.Node) -> frozenset[ir.Node]:
    """The group after a convolution."""
    return with_followers(view, node) if is_op(node, "Conv", "ConvTranspose") else frozenset()
