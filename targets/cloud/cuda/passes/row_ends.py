"""What follows a product in a step becomes part of it, so that a layer is fewer launches: sums and gates."""

import onnx_ir as ir

from flagsplit.targets.cloud.cuda.lowering.registry import DOMAIN
from flagsplit.targets.cloud.cuda.passes.rewriting import operands, put, reader, sizes


def fuse_row_ends(graph: ir.Graph) -> None:
    """Find all, in place."""
    for node in list(graph):
        if node.graph is not graph:
            continue
        if node.domain == DOMAIN and node.op_type == "Linear":
            _add_residual(graph, node)
        elif not node.domain and node.op_type == "Swish" and node.attributes.get_float("alpha", 1.0) == 1.0:
            _gate(graph, node)


def _add_residual(graph: ir.Graph, node: ir.Node) -> None:
    made = node.outputs[0]
    add = reader(made, "Add")
    for one, other in operands(add):
        fits = other is not made and sizes(other) == sizes(made) == sizes(add.outputs[0] if add else None)
        if one is made and fits and add is not None and (other is None or other.dtype == made.dtype):
            x, weights, *bias = node.inputs
            put(graph, add.outputs[0], "Linear", [x, weights, bias[0] if bias else None, other], {}, DOMAIN)
            return


def _gate(graph: ir.Graph, node: ir.Node) -> None:
    made = node.outputs[0]
    mul = reader(made, "Mul")
    for one, other in operands(mul):
        if one is made and other is not made and mul is not None and sizes(other) == sizes(made):
            put(graph, mul.outputs[0], "Gate", [node.inputs[0], other], {}, DOMAIN)
            return
