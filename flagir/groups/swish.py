"""Swish in parts: SiLU `x * sigmoid(x)`, hard-swish `x * clip(x + 3, 0, 6) / 6`, and Mish `x * tanh(softplus(x))`."""

import onnx_ir as ir

from flagsplit.flagir.groups.pattern import View, gated, is_constant, is_op


def find(view: View, node: ir.Node) -> frozenset[ir.Node]:
    """The group around the gate."""
    if is_op(node, "HardSwish", "Mish"):
        return frozenset((node,))
    bounded = is_op(node, "Clip") and all(value is None or is_constant(value) for value in node.inputs[1:])
    if bounded or is_op(node, "Sigmoid", "HardSigmoid", "Tanh"):
        return gated(view, node, adds=False)
    return frozenset()
