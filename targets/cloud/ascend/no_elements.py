"""Parts of tensors that have no elements, as a rotation of whole heads leaves beside, which are cut off and joined."""

import numpy as np
import onnx_ir as ir

from flagsplit.flagir.passes.graph_edits import replace_node
from flagsplit.targets.cloud.ascend.facts import constant, sizes


def leave_out_empty(graph: ir.Graph) -> None:
    """Join without them, and cut without them where nobody reads them any more, in place."""
    for node in list(graph):
        if node.op_type == "Concat" and not node.domain:
            full = [value for value in node.inputs if 0 not in sizes(value)]
            if 0 < len(full) < len(node.inputs):
                attributes = [ir.Attr(each.name, each.type, each.value) for each in node.attributes.values()]
                kind = "Concat" if len(full) > 1 else "Identity"
                replace_node(
                    graph,
                    node,
                    [ir.node(kind, full, {a.name: a for a in attributes if kind == "Concat"}, name=node.name)],
                )
    for node in list(graph):
        if node.op_type == "Split" and not node.domain:
            _cut(graph, node)


def _cut(graph: ir.Graph, node: ir.Node) -> None:
    empty = [value for value in node.outputs if 0 in sizes(value)]
    if not empty or any(value.uses() or value.is_graph_output() for value in empty) or len(empty) == len(node.outputs):
        return
    full = [value for value in node.outputs if value not in empty]
    axis = node.attributes.get_int("axis", 0)
    if len(full) == 1:
        made = ir.node("Identity", [node.inputs[0]], name=node.name)
    else:
        made = ir.node("Split", [node.inputs[0]], {"axis": axis}, num_outputs=len(full), name=node.name)
    graph.insert_before(node, made)
    for old, new in zip(full, made.outputs, strict=True):
        name, new.type, new.shape = old.name, old.type, old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        old.name = f"{name}.before"
        new.name = name
    graph.remove(node, safe=True)
    if len(full) > 1:
        made.resize_inputs(2)
        made.replace_input_with(1, constant(made, "parts", np.array([sizes(v)[axis] for v in made.outputs], np.int64)))
