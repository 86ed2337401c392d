"""Forms that int8 engines have, in place of equal ones that they have not, before anything is quantized.

Batch normalizations, factors and summands of a channel go into convolutions, or become products and sums, hard-swish in
parts becomes the operator, a sum of two an addition, and a division by a constant the product with its reciprocal. Each
may move a result by a rounding of float32.
"""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from flagsplit.flagir.groups.pattern import is_about, is_constant, is_op
from flagsplit.flagir.passes.graph_edits import drop_unused, replace_node
from flagsplit.flagir.quantization.fold_batch_norm import (
    fold_batch_norms,
    fold_channel_lines,
    spread_batch_norms,
)


def prepare(model: ir.Model) -> None:
    """Rewrite a canonical model in place."""
    while fold_batch_norms(model) + fold_channel_lines(model):
        pass  # one may stand behind another
    spread_batch_norms(model)
    graph = model.graph
    for node in list(graph):
        if is_op(node, "Sum") and len(node.inputs) == 2:
            replace_node(graph, node, [ir.node("Add", node.inputs, name=node.name)])
    for node in list(graph):
        source = _hard_swish_of(node)
        if source is not None:
            replace_node(graph, node, [ir.node("HardSwish", [source], name=node.name)])
    drop_unused(graph)
    for node in list(graph):
        divisor = node.inputs[1] if is_op(node, "Div") and len(node.inputs) == 2 else None
        if divisor is not None and divisor.dtype == ir.DataType.FLOAT and is_constant(divisor):
            reciprocal = _reciprocal(graph, divisor)
            if reciprocal is not None:
                replace_node(graph, node, [ir.node("Mul", [node.inputs[0], reciprocal], name=node.name)])
    drop_unused(graph)


def _hard_swish_of(node: ir.Node) -> ir.Value | None:
    """What a node is the hard-swish of: x * clip(x + 3, 0, 6) / 6 in any order, or x * hard_sigmoid(x)."""
    if is_op(node, "Div") or (is_op(node, "Mul") and any(is_about(value, 1 / 6) for value in node.inputs)):
        product, scaled = _scaled(node)
        inner = _alone(product) if scaled else None
        return _gated_source(inner, _is_clip) if inner is not None and is_op(inner, "Mul") else None
    return _gated_source(node, _is_gate) if is_op(node, "Mul") else None


def _gated_source(node: ir.Node, is_gate: Callable[[ir.Value | None, ir.Value], bool]) -> ir.Value | None:
    if len(node.inputs) != 2:
        return None
    for x, gate in (node.inputs, node.inputs[::-1]):
        if x is not None and is_gate(gate, x):
            return x
    return None


def _is_clip(gate: ir.Value | None, x: ir.Value) -> bool:
    """Whether a value is clip(x + 3, 0, 6), read by nobody else."""
    clip = _alone(gate)
    if clip is None or not is_op(clip, "Clip") or len(clip.inputs) < 3:
        return False
    low, high = clip.inputs[1], clip.inputs[2]
    if not (is_constant(low) and is_about(high, 6)) or np.any(low.const_value.numpy()):  # type: ignore[union-attr]
        return False
    shifted = _alone(clip.inputs[0])
    if shifted is None or not is_op(shifted, "Add"):
        return False
    return any(a is x and is_about(b, 3) for a, b in (shifted.inputs, shifted.inputs[::-1]))


def _is_gate(gate: ir.Value | None, x: ir.Value) -> bool:
    """Whether a value is the hard sigmoid of hard-swish, as an operator or as a clip over 6."""
    node = _alone(gate)
    if node is None:
        return False
    if is_op(node, "HardSigmoid") and node.inputs[0] is x:
        alpha, beta = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
        return abs(alpha - 1 / 6) < 1e-4 and beta == 0.5
    clip, scaled = _scaled(node)
    return scaled and _is_clip(clip, x)


def _scaled(node: ir.Node) -> tuple[ir.Value | None, bool]:
    """What a node divides by 6, if it does."""
    if is_op(node, "Div") and len(node.inputs) == 2 and is_about(node.inputs[1], 6):
        return node.inputs[0], True
    if is_op(node, "Mul") and len(node.inputs) == 2:
        for value, other in (node.inputs, node.inputs[::-1]):
            if is_about(other, 1 / 6):
                return value, True
    return None, False


def _alone(value: ir.Value | None) -> ir.Node | None:
    """The maker of a value that one node reads and nothing else."""
    if value is None or len(value.uses()) != 1 or value.is_graph_output():
        return None
    return value.producer()


def _reciprocal(graph: ir.Graph, divisor: ir.Value) -> ir.Value | None:
    assert divisor.const_value is not None
    numbers = divisor.const_value.numpy()
    if not np.all(np.abs(numbers) > np.finfo(np.float32).tiny):
        return None
    name = f"{divisor.name}.reciprocal"
    found = graph.initializers.get(name)
    if found is None:
        tensor = ir.Tensor(np.asarray(1 / numbers.astype(np.float64), np.float32), name=name)
        found = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=tensor.shape)
        graph.register_initializer(found)
    return found
