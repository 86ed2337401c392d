"""Batch normalization after a convolution, folded into its weights: int8 engines have none, and it saves a rounding."""

import numpy as np
import onnx_ir as ir

from flagsplit.flagir.groups.pattern import is_op
from flagsplit.flagir.passes.float_products import drop_unused
from flagsplit.flagir.quantization.params import Array


def fold_batch_norms(model: ir.Model) -> int:
    """Fold in place, in float64.

    Args:
        model: canonical. Folded are those whose numbers are constant, behind a `Conv` of constant weights that nothing
            else reads.

    Returns:
        How many were folded.
    """
    graph, folded = model.graph, 0
    for node in list(graph):
        conv = _conv_before(node)
        if conv is None:
            continue
        gamma, beta, mean, variance = (_numbers(value) for value in node.inputs[1:5])
        factor = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
        weights = _numbers(conv.inputs[1])
        bias = _numbers(conv.inputs[2]) if len(conv.inputs) > 2 and conv.inputs[2] is not None else np.zeros_like(mean)
        scaled = weights * factor.reshape(-1, *([1] * (weights.ndim - 1)))
        conv.resize_inputs(3)
        conv.replace_input_with(1, _initializer(graph, f"{conv.name}.folded.weights", scaled))
        conv.replace_input_with(2, _initializer(graph, f"{conv.name}.folded.bias", (bias - mean) * factor + beta))
        given, made = node.outputs[0], conv.outputs[0]
        name = given.name
        given.replace_all_uses_with(made, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        made.name = name
        folded += 1
    if folded:
        drop_unused(graph)
    return folded


def _conv_before(node: ir.Node) -> ir.Node | None:
    if not is_op(node, "BatchNormalization"):
        return None
    if node.attributes.get_int("training_mode", 0):
        return None
    source = node.inputs[0]
    conv = source.producer() if source is not None else None
    alone = source is not None and len(source.uses()) == 1 and not source.is_graph_output()
    if conv is None or not alone or conv.op_type != "Conv" or conv.domain:
        return None
    constants = (*node.inputs[1:5], *conv.inputs[1:3])
    return conv if all(value is None or value.const_value is not None for value in constants) else None


def _numbers(value: ir.Value | None) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy().astype(np.float64)


def _initializer(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    tensor = ir.Tensor(np.asarray(array, np.float32), name=name)
    made = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=tensor.shape)
    graph.register_initializer(made)
    return made
