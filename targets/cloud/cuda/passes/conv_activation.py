"""Convolutions of pictures with the Relu that follows, also after a residual sum: cuDNN runs both as one kernel."""

import onnx_ir as ir

from flagsplit.targets.cloud.cuda.lowering.registry import DOMAIN
from flagsplit.targets.cloud.cuda.passes.rewriting import maker, operands, put, sizes


def fuse_conv_activations(graph: ir.Graph) -> None:
    """Find all, in place."""
    for node in list(graph):
        if node.graph is graph and node.op_type == "Relu" and not node.domain:
            _fuse(graph, node)


def _fuse(graph: ir.Graph, relu: ir.Node) -> None:
    conv, rest = _conv_before(relu.inputs[0]), None
    if conv is None:
        for one, other in operands(maker(relu.inputs[0], "Add")):
            found = _conv_before(one)
            if found is not None and other is not None and sizes(other) == sizes(one) and other.const_value is None:
                conv, rest = found, other
                break
    if conv is None or len(conv.inputs) < 3 or conv.inputs[2] is None:
        return
    inputs = [*conv.inputs[:3], *([rest] if rest is not None else [])]
    attributes = {key: attribute.value for key, attribute in conv.attributes.items()}
    put(graph, relu.outputs[0], "ConvRelu", inputs, attributes, DOMAIN)


def _conv_before(value: ir.Value | None) -> ir.Node | None:
    """The convolution of pictures that makes a value for one reader alone."""
    conv = maker(value, "Conv")
    shape = sizes(value)
    single = value is not None and len(value.uses()) == 1 and not value.is_graph_output()
    return conv if conv is not None and single and shape is not None and len(shape) == 4 else None
