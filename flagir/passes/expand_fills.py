"""Turn `ConstantOfShape` of a constant shape into an initializer without allocating it.

Models that make their weights by nodes would otherwise hide them from the cost model and build them again at every
load. The initializer is a broadcast view of one element: hundreds of megabytes cost nothing until they are written.
"""

import math

import numpy as np
import onnx_ir as ir

_MAX_ELEMENTS = 1 << 30


class ExpandFills(ir.passes.InPlacePass):
    """Mutates: replaces `ConstantOfShape` nodes whose shape is an initializer, up to 2^30 elements each."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace in place; fills of the main graph only, those of a branch may never run."""
        modified = False
        for node in list(model.graph):
            if node.op_type == "ConstantOfShape" and not node.domain:
                modified |= _expand(model.graph, node)
        return ir.passes.PassResult(model, modified)


def _expand(graph: ir.Graph, node: ir.Node) -> bool:
    source = node.inputs[0]
    if source is None or source.const_value is None or source.is_graph_input():
        return False
    dims = [int(dim) for dim in source.const_value.numpy()]
    if any(dim < 0 for dim in dims) or math.prod(dims) > _MAX_ELEMENTS:
        return False
    attribute = node.attributes.get("value")
    fill = attribute.as_tensor().numpy().reshape(()) if attribute is not None else np.zeros((), np.float32)
    old = node.outputs[0]
    tensor = ir.Tensor(np.broadcast_to(fill, dims), name=old.name)
    new = ir.Value(name=old.name, shape=ir.Shape(dims), type=ir.TensorType(tensor.dtype), const_value=tensor)
    if old.is_graph_output():
        return False
    old.replace_all_uses_with(new)
    graph.remove(node, safe=True)
    graph.register_initializer(new)
    return True
