"""Arithmetic that changes nothing, which exporters leave behind: a product with 1, a sum with 0."""

import onnx_ir as ir

from flagsplit.targets.cloud.cuda.passes.rewriting import operands, scalar, sizes

_NEUTRAL = {"Add": 0.0, "Sub": 0.0, "Mul": 1.0, "Div": 1.0, "Pow": 1.0}


def drop_neutral(graph: ir.Graph) -> None:
    """Read what went in in place of what came out, in place; what the graph returns stays."""
    for node in list(graph):
        if node.domain or node.op_type not in _NEUTRAL or node.outputs[0].is_graph_output():
            continue
        for x, other in operands(node):
            if x is None or scalar(other) != _NEUTRAL[node.op_type] or sizes(x) != sizes(node.outputs[0]):
                continue
            if node.op_type in ("Add", "Mul") or x is node.inputs[0]:
                node.outputs[0].replace_all_uses_with(x)
                break
