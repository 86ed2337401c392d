"""Batch normalizations, scales and biases of channels go into the convolution before them, in double precision."""

import numpy as np
import onnx_ir as ir

from flagsplit.targets.cloud.cuda.passes.rewriting import Doubles, constant, maker, operands, put, sizes, weight


def fold_into_conv(graph: ir.Graph) -> None:
    """Fold all, in place; chains fold one after another."""
    for node in list(graph):
        if node.graph is graph and not node.domain and node.op_type in ("BatchNormalization", "Mul", "Add", "Sub"):
            _fold(graph, node)


def _fold(graph: ir.Graph, node: ir.Node) -> None:
    found = _batch(node) if node.op_type == "BatchNormalization" else _channelwise(node)
    if found is None:
        return
    x, factor, offset = found
    conv = maker(x, "Conv", "ConvTranspose")
    if conv is None or x is None or len(x.uses()) != 1 or x.is_graph_output():
        return
    weights = constant(conv.inputs[1])
    old = constant(conv.inputs[2]) if len(conv.inputs) > 2 and conv.inputs[2] is not None else np.zeros(1)
    groups = conv.attributes.get_int("group", 1) or 1
    if weights is None or old is None or x.dtype is None:
        return
    if conv.op_type == "Conv":
        scaled = weights * factor.reshape(-1, *[1] * (weights.ndim - 1))
    else:
        by_group = factor.reshape(groups, 1, -1, *[1] * (weights.ndim - 2))
        scaled = (weights.reshape(groups, -1, *weights.shape[1:]) * by_group).reshape(weights.shape)
    name = node.outputs[0].name
    inputs = [
        conv.inputs[0],
        weight(graph, scaled, x.dtype, f"{name}/weights"),
        weight(graph, old * factor + offset, x.dtype, f"{name}/bias"),
    ]
    attributes = {key: attribute.value for key, attribute in conv.attributes.items()}
    put(graph, node.outputs[0], conv.op_type, inputs, attributes)


def _batch(node: ir.Node) -> tuple[ir.Value | None, Doubles, Doubles] | None:
    """For a batch normalization: x, and what it is multiplied with and added by channel."""
    parts = [constant(value) for value in node.inputs[1:5]]
    training = node.attributes.get_int("training_mode", 0)
    if training or any(part is None for part in parts):
        return None
    scale, bias, mean, variance = (part for part in parts if part is not None)
    factor = scale / np.sqrt(variance + (node.attributes.get_float("epsilon", 1e-5) or 0.0))
    return node.inputs[0], factor, bias - mean * factor


def _channelwise(node: ir.Node) -> tuple[ir.Value | None, Doubles, Doubles] | None:
    """For a product or sum with one constant for each channel: the same."""
    shape = sizes(node.outputs[0])
    if shape is None or len(shape) < 3:
        return None
    for x, other in operands(node):
        found = constant(other)
        if found is None or sizes(x) != shape or (node.op_type == "Sub" and x is not node.inputs[0]):
            continue
        spread = (
            found.reshape([1] * (len(shape) - found.ndim) + list(found.shape)) if found.ndim <= len(shape) else None
        )
        if spread is None or spread.shape[1] not in (1, shape[1]) or spread.size != spread.shape[1]:
            continue
        row = np.broadcast_to(spread.reshape(-1), (shape[1],))
        if node.op_type == "Mul":
            return x, row, np.zeros(shape[1])
        return x, np.ones(shape[1]), -row if node.op_type == "Sub" else row
    return None
