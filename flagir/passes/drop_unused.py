"""Take out nodes that nobody reads, and leave every Loop the inputs by which it is counted."""

import onnx_ir as ir
import onnx_ir.passes.common as common

LOOP_INPUTS = 2
"""Trips and condition: either may be a blank, but what is carried begins behind them."""


class DropUnused(common.RemoveUnusedNodesPass):
    """Mutates: nodes, outputs and blanks at the end that are not used go."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Drop in place."""
        result = super().call(model)
        keep_blanks(model)
        return result


def keep_blanks(model: ir.Model) -> None:
    """Give loops the blanks back that onnx_ir takes for unused: shape inference and engines break without them."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type == "Loop" and not node.domain and len(node.inputs) < LOOP_INPUTS:
            node.resize_inputs(LOOP_INPUTS)
