"""Put nodes behind what they read."""

import onnx_ir as ir
import onnx_ir.passes.common as common

from flagsplit.errors import ModelError


class SortNodes(common.TopologicalSortPass):
    """Mutates: the order of nodes.

    Raises:
        ModelError: some nodes read each other's results in a circle.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Sort in place."""
        try:
            return super().call(model)
        except ValueError as error:
            circle = next((found for graph in model.graphs() if (found := _circle(graph))), None)
            if circle is None:
                raise
            told = " → ".join(f"{node.name or node.op_type!r} ({node.op_type})" for node in circle[:6])
            raise ModelError(
                f"expected a graph without circles, some nodes read each other's results: {told}; remove the loop, or "
                f"say it with a Loop"
            ) from error


def _circle(graph: ir.Graph) -> list[ir.Node]:
    """Nodes of a graph each of which reads what the one before it makes, and the first what the last makes."""
    done: set[ir.Node] = set()
    for start in graph:
        way = {start: iter(_makers(start, graph))} if start not in done else {}
        while way:
            node = next(reversed(way))
            maker = next(way[node], None)
            if maker is None:
                done.add(node)
                del way[node]
            elif maker in way:
                nodes = list(way)
                return nodes[nodes.index(maker) :][::-1]
            elif maker not in done:
                way[maker] = iter(_makers(maker, graph))
    return []


def _makers(node: ir.Node, graph: ir.Graph) -> list[ir.Node]:
    """The nodes of the graph whose results a node or its bodies read."""
    read = [*node.inputs, *(value for inner in _inside(node) for value in inner.inputs)]
    makers = [value.producer() for value in read if value is not None]
    return [maker for maker in makers if maker is not None and maker.graph is graph]


def _inside(node: ir.Node) -> list[ir.Node]:
    bodies = [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
    return [inner for body in bodies for inner in body.all_nodes()]
