"""Name every node and value, and no output that the node leaves out."""

import onnx_ir as ir
import onnx_ir.passes.common as common


class FixNames(common.NameFixPass):
    """Mutates: renames. An output without a name stays without one: naming it would ask the operator for it."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rename in place."""
        omitted = [value for graph in model.graphs() for node in graph for value in node.outputs if not value.name]
        result = super().call(model)
        for value in omitted:
            if not value.uses() and not value.is_graph_output():
                value.name = ""
        return result
