"""Products of matrices that are quantized on the fly, turned into floating-point ones of the weights that were meant.

`DynamicQuantizeLinear` takes a range from activations: one rounding that falls the other way moves all that follows, so
no two engines agree on more than two digits of such a model, and no chip has the operator. This rewriting changes the
model, to what it was before its quantization but for the rounding of its weights. It is done where the user asks.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from flagsplit.flagir.groups.pattern import is_op
from flagsplit.flagir.passes.graph_edits import drop_unused, replace_node


@dataclass(frozen=True, eq=False)
class QuantizedProduct:
    """A product of matrices of which one is quantized on the fly.

    Attributes:
        end: the node that gives the product in floating point.
        source: what is quantized.
        weights: the integer weights.
        scale: of the weights.
        zero_point: of the weights; None is 0.
    """

    end: ir.Node
    source: ir.Value
    weights: ir.Value
    scale: ir.Value
    zero_point: ir.Value | None

    def real_weights(self) -> NDArray[np.float32]:
        """What the integers stand for."""
        numbers = _numbers(self.weights).astype(np.float32)
        if self.zero_point is not None:
            numbers = numbers - _numbers(self.zero_point).astype(np.float32)
        return np.asarray(numbers * _numbers(self.scale).astype(np.float32), np.float32)


def quantized_product(node: ir.Node) -> QuantizedProduct | None:
    """The product that a `MatMulInteger` is the middle of; None if it is another kind, or its weights no constants."""
    if not is_op(node, "MatMulInteger") or len(node.inputs) < 2:
        return None
    left, weights = node.inputs[0], node.inputs[1]
    quantize = left.producer() if left is not None else None
    cast = _only_reader(node.outputs[0])
    end = _only_reader(cast.outputs[0]) if cast is not None and is_op(cast, "Cast") else None
    if quantize is None or not is_op(quantize, "DynamicQuantizeLinear") or end is None or not is_op(end, "Mul"):
        return None
    assert cast is not None
    factor = next((value for value in end.inputs if value is not cast.outputs[0]), None)
    maker = factor.producer() if factor is not None else None
    source = quantize.inputs[0]
    if maker is None or not is_op(maker, "Mul") or quantize.outputs[1] not in maker.inputs or source is None:
        return None
    scale = next((value for value in maker.inputs if value is not quantize.outputs[1]), None)
    zero = node.inputs[3] if len(node.inputs) > 3 else None
    if weights is None or weights.const_value is None or scale is None or scale.const_value is None:
        return None
    if zero is not None and zero.const_value is None:
        return None
    return QuantizedProduct(end, source, weights, scale, zero)


def float_products(model: ir.Model) -> int:
    """Turn the quantized products of a canonical model, of subgraphs too, into floating-point ones, in place.

    Returns:
        How many there were.
    """
    graph, made = model.graph, 0
    for node in list(ir.traversal.RecursiveGraphIterator(graph)):
        found = quantized_product(node)
        if found is None:
            continue
        name = f"{found.weights.name}.real"
        real = graph.initializers.get(name)
        if real is None:
            array = found.real_weights()
            real = ir.Value(name=name, const_value=ir.Tensor(array, name=name))
            real.dtype, real.shape = ir.DataType.FLOAT, ir.Shape(array.shape)
            graph.register_initializer(real)
        owner = found.end.graph
        assert isinstance(owner, ir.Graph)
        replace_node(owner, found.end, [ir.node("MatMul", [found.source, real], name=found.end.name)])
        made += 1
    if made:
        for each in reversed(list(model.graphs())):
            drop_unused(each)
    return made


def _numbers(value: ir.Value) -> NDArray[np.generic]:
    assert value.const_value is not None
    return value.const_value.numpy()


def _only_reader(value: ir.Value) -> ir.Node | None:
    uses = value.uses()
    return next(iter(uses)).node if len(uses) == 1 and not value.is_graph_output() else None
