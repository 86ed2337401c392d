"""Remove `Identity` nodes, which exporters and inlining leave behind."""

import onnx_ir as ir


class DropIdentities(ir.passes.InPlacePass):
    """Mutates: removes every `Identity` that only renames, in subgraphs too.

    One that makes a graph's output stays where it passes on an input, an initializer, another output or a value of an
    outer graph: a graph may not return those itself.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Remove in place; names of graph outputs are kept."""
        modified = False
        for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
            if node.op_type == "Identity" and not node.domain:
                modified |= _drop(node)
        return ir.passes.PassResult(model, modified)


def _drop(node: ir.Node) -> bool:
    source, result, graph = node.inputs[0], node.outputs[0], node.graph
    if source is None or graph is None:
        return False
    if result.is_graph_output():
        maker = source.producer()
        if maker is None or maker.graph is not graph or source.is_graph_output():
            return False
    if source.type is None:
        source.type = result.type
    if source.shape is None:
        source.shape = result.shape
    name = result.name if result.is_graph_output() else source.name
    ir.convenience.replace_all_uses_with(result, source, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    source.name = name
    return True
