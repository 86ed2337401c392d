"""What follows a convolution and is linear in each channel, folded into its weights: it saves a rounding.

Batch normalization, which int8 engines have none of, and a factor or summand of each channel.
"""

import numpy as np
import onnx_ir as ir

from flagsplit.flagir.groups.pattern import is_op
from flagsplit.flagir.passes.graph_edits import drop_unused, replace_node
from flagsplit.flagir.quantization.params import Array

_Doubles = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def fold_batch_norms(model: ir.Model) -> int:
    """Fold in place, in float64.

    Args:
        model: canonical. Folded are those whose numbers are constant, behind a `Conv` or a `ConvTranspose` without
            groups, of constant weights, that nothing else reads.

    Returns:
        How many were folded.
    """
    graph, folded = model.graph, 0
    for node in list(graph):
        conv = _conv_before(node.inputs[0]) if _is_settled_norm(node) else None
        if conv is None:
            continue
        factor, mean, beta = _line_of(node)
        bias = _bias(conv, mean.size)
        _scale(graph, conv, node, factor)
        _put_in_place(graph, conv, node, (bias - mean) * factor + beta)
        folded += 1
    if folded:
        drop_unused(graph)
    return folded


def spread_batch_norms(model: ir.Model) -> int:
    """Make a product and a sum of each batch normalization that is left, in place: engines have these in int8.

    Returns:
        How many there were.
    """
    graph, spread = model.graph, 0
    for node in list(graph):
        source = node.inputs[0] if _is_settled_norm(node) else None
        if source is None or source.shape is None or source.dtype != ir.DataType.FLOAT:
            continue
        factor, mean, beta = _line_of(node)
        along = (-1, *([1] * (len(source.shape) - 2)))
        name = node.outputs[0].name
        by = _initializer(graph, f"{name}.factor", factor.reshape(along))
        plus = _initializer(graph, f"{name}.summand", (beta - mean * factor).reshape(along))
        product = ir.node("Mul", [source, by], name=f"{node.name}.product")
        made = product.outputs[0]
        made.name, made.type, made.shape = f"{name}.product", source.type, source.shape
        replace_node(graph, node, [product, ir.node("Add", [made, plus], name=node.name)])
        spread += 1
    if spread:
        drop_unused(graph)
    return spread


def fold_channel_lines(model: ir.Model) -> int:
    """Fold a constant factor or summand of each channel into the convolution before it, in place.

    Returns:
        How many were folded.
    """
    graph, folded = model.graph, 0
    for node in list(graph):
        linear = (is_op(node, "Add") or is_op(node, "Mul")) and len(node.inputs) == 2
        for product, other in (node.inputs, node.inputs[::-1]) if linear else ():
            conv = _conv_before(product)
            if conv is None or other is None or other.const_value is None:
                continue
            row = _per_channel(_numbers(other), conv)
            if row is not None:
                bias = _bias(conv, row.size)
                if node.op_type == "Mul":
                    _scale(graph, conv, node, row)
                _put_in_place(graph, conv, node, bias * row if node.op_type == "Mul" else bias + row)
                folded += 1
                break
    if folded:
        drop_unused(graph)
    return folded


def _line_of(norm: ir.Node) -> tuple[_Doubles, _Doubles, _Doubles]:
    """Factor, mean and summand of each channel: it gives (x - mean) * factor + summand."""
    gamma, beta, mean, variance = (_numbers(value) for value in norm.inputs[1:5])
    return gamma / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5)), mean, beta


def _scale(graph: ir.Graph, conv: ir.Node, node: ir.Node, factor: _Doubles) -> None:
    """Multiply the weights of each output channel."""
    weights = _numbers(conv.inputs[1])
    along = [-1 if at == (conv.op_type == "ConvTranspose") else 1 for at in range(weights.ndim)]
    conv.replace_input_with(
        1, _initializer(graph, f"{node.outputs[0].name}.folded.weights", weights * factor.reshape(along))
    )


def _per_channel(numbers: _Doubles, conv: ir.Node) -> _Doubles | None:
    """One number for each channel, if a constant is no more than that."""
    shape, weights = conv.outputs[0].shape, conv.inputs[1]
    rank = len(shape) if shape is not None else 0
    assert weights is not None
    assert weights.const_value is not None
    channels = weights.const_value.shape[1 if conv.op_type == "ConvTranspose" else 0]
    wide = numbers.reshape((1,) * (rank - numbers.ndim) + numbers.shape) if numbers.ndim <= rank else numbers
    if wide.ndim != rank or wide.shape != (1, channels, *([1] * (rank - 2))):
        return None
    return wide.reshape(-1)


def _bias(conv: ir.Node, channels: int) -> _Doubles:
    there = len(conv.inputs) > 2 and conv.inputs[2] is not None
    return _numbers(conv.inputs[2]) if there else np.zeros(channels)


def _put_in_place(graph: ir.Graph, conv: ir.Node, node: ir.Node, bias: _Doubles) -> None:
    """Let a convolution with another bias give what a node gave."""
    conv.resize_inputs(3)
    conv.replace_input_with(2, _initializer(graph, f"{node.outputs[0].name}.folded.bias", bias))
    given, made = node.outputs[0], conv.outputs[0]
    name = given.name
    given.replace_all_uses_with(made, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    made.name = name


def _is_settled_norm(node: ir.Node) -> bool:
    """Whether a node is a batch normalization of constant numbers."""
    training = node.attributes.get_int("training_mode", 0)
    if not is_op(node, "BatchNormalization") or training:
        return False
    return all(value is None or value.const_value is not None for value in node.inputs[1:5])


def _conv_before(source: ir.Value | None) -> ir.Node | None:
    """The convolution of constant weights that makes a value, which one node alone reads."""
    conv = source.producer() if source is not None else None
    alone = source is not None and len(source.uses()) == 1 and not source.is_graph_output()
    if conv is None or not alone or conv.domain or conv.op_type not in ("Conv", "ConvTranspose"):
        return None
    if conv.op_type == "ConvTranspose" and conv.attributes.get_int("group", 1) != 1:
        return None
    return conv if all(value is None or value.const_value is not None for value in conv.inputs[1:3]) else None


def _numbers(value: ir.Value | None) -> _Doubles:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy().astype(np.float64)


def _initializer(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    tensor = ir.Tensor(np.asarray(array, np.float32), name=name)
    made = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=tensor.shape)
    graph.register_initializer(made)
    return made
