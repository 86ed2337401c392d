"""GELU in parts: `x * (1 + erf(x / sqrt 2)) / 2`, and its approximation by tanh."""

import onnx_ir as ir

from flagsplit.flagir.groups.pattern import View, gated, is_op


def find(view: View, node: ir.Node) -> frozenset[ir.Node]:
    """The group around an Erf or a Tanh."""
    if is_op(node, "Gelu"):
        return frozenset((node,))
    return gated(view, node, adds=True) if is_op(node, "Erf", "Tanh") else frozenset()
