"""What a node reads and who reads a value, values captured by subgraphs included.

`If`, `Loop` and `Scan` use outer values without listing them as inputs; everything that cuts or orders a graph has to
see those reads too.
"""

import onnx_ir as ir


def reads_of(node: ir.Node) -> tuple[ir.Value, ...]:
    """The values that a node of the main graph needs, each once, initializers included."""
    seen: dict[ir.Value, None] = dict.fromkeys(value for value in node.inputs if value is not None)
    for graph in subgraphs_of(node):
        inner = {*graph.inputs, *graph.initializers.values()}
        nested = list(ir.traversal.RecursiveGraphIterator(graph))
        for sub in nested:
            inner.update(sub.outputs)
            for subgraph in subgraphs_of(sub):
                inner.update(subgraph.inputs)
                inner.update(subgraph.initializers.values())
        captured: list[ir.Value | None] = [value for sub in nested for value in sub.inputs]
        returned = [value for scope in (graph, *graph.subgraphs()) for value in scope.outputs]
        for value in (*captured, *returned):
            if value is not None and value not in inner:
                seen.setdefault(value)
    return tuple(seen)


def activations_read(node: ir.Node) -> tuple[ir.Value, ...]:
    """As `reads_of`, without initializers."""
    return tuple(value for value in reads_of(node) if not value.is_initializer())


def weights_read(node: ir.Node) -> tuple[ir.Value, ...]:
    """The initializers that a node needs, each once."""
    return tuple(value for value in reads_of(node) if value.is_initializer())


def readers_of(graph: ir.Graph) -> dict[ir.Value, tuple[ir.Node, ...]]:
    """For each activation, the nodes of this graph that read it, in order, whether directly or inside a subgraph."""
    found: dict[ir.Value, list[ir.Node]] = {}
    for node in graph:
        for value in activations_read(node):
            found.setdefault(value, []).append(node)
    return {value: tuple(nodes) for value, nodes in found.items()}


def subgraphs_of(node: ir.Node) -> list[ir.Graph]:
    """The branches or bodies that a node holds, in the order of its attributes."""
    graphs: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            graphs.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs.extend(attribute.as_graphs())
    return graphs
