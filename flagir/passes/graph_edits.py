"""Edits that passes share: nodes in place of one, and what nothing reads taken out."""

from collections.abc import Sequence

import onnx_ir as ir


def replace_node(graph: ir.Graph, node: ir.Node, made: Sequence[ir.Node]) -> None:
    """Put nodes in place of one; the last makes its value, under the same name."""
    old, new = node.outputs[0], made[-1].outputs[0]
    new.type, new.shape = old.type, old.shape
    name = old.name
    graph.insert_before(node, made)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    new.name = name


def drop_unused(graph: ir.Graph) -> None:
    """Take out nodes and constants that nothing reads."""
    for node in reversed(list(graph)):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
