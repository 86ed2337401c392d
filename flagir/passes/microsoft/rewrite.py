"""The pass that rewrites the operators which ONNX Runtime's optimizer writes."""

from collections.abc import Sequence

import onnx_ir as ir

from flagsplit.flagir.passes.microsoft import REWRITES
from flagsplit.flagir.passes.microsoft.known import Known
from flagsplit.flagir.passes.microsoft.site import Site


class RewriteMicrosoft(ir.passes.InPlacePass):
    """Mutates: replaces the nodes that `REWRITES` knows by standard ones, in subgraphs too.

    Requires functions to be inlined and the pinned opset, which is what the rewrites write. Other nodes stay.

    Raises:
        ModelError: an operator is used in a form that has no rewrite.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite in place."""
        every = ir.traversal.RecursiveGraphIterator(model.graph)
        modified = any((node.domain, node.op_type) in REWRITES for node in every)
        if modified:
            _walk(model.graph, Known())
        return ir.passes.PassResult(model, modified)


def _walk(graph: ir.Graph, known: Known) -> None:
    """In execution order, so that what comes before a node is known."""
    for node in tuple(graph):
        rewrite = REWRITES.get((node.domain, node.op_type))
        if rewrite is not None:
            _replace(node, rewrite(Site(node, known)))
            continue
        known.enter(node)
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                _walk(attribute.as_graph(), known)
            elif attribute.type == ir.AttributeType.GRAPHS:
                for inner in attribute.as_graphs():
                    _walk(inner, known)
        known.learn(node)


def _replace(node: ir.Node, results: Sequence[ir.Value | None]) -> None:
    graph = node.graph
    if graph is None:
        raise TypeError(f"node {node.name!r} is in no graph")
    for old, new in zip(node.outputs, results, strict=False):
        if new is not None:
            new.type, new.shape = new.type or old.type, new.shape or old.shape
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            old.name, new.name = None, old.name
    graph.remove(node, safe=True)
