"""Folding what scales and shifts a convolution's channels into the convolution, in double precision.

A batch normalization, a product with one number per channel and a sum with one, each in fp16 of its own, round three
times at every layer. Inception v2 with drawn weights had a cosine of 0.9998 to float32 so; folded it has 0.99996. One
or two that follow a convolution stay: the compiler's own way with them was as near, or nearer (PP-OCR's recognizer).
"""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from flagsplit.flagir.groups.pattern import is_op

_Doubles = NDArray[np.float64]
_EPSILON = 1e-5
_FEWEST = 3
"""How many have to follow."""
_LEAST, _MOST = 1e-3, 3e4
"""Between which the largest weight has to stay: outside, fp16 holds weights as zero, infinite or with few digits."""


def fold_scales(graph: ir.Graph) -> None:
    """Fold scales and shifts that follow a convolution, and that alone read it, in place."""
    for node in list(graph):
        if is_op(node, "Conv"):
            _fold(graph, node)


def _fold(graph: ir.Graph, conv: ir.Node) -> None:
    weights = _numbers(conv.inputs[1])
    given = conv.inputs[2] if len(conv.inputs) > 2 else None
    shift = _numbers(given) if given is not None else None
    if weights is None or (given is not None and shift is None):
        return
    channels, value, followers = weights.shape[0], conv.outputs[0], list[ir.Node]()
    scale = np.ones(channels)
    shift = np.zeros(channels) if shift is None else shift
    while len(value.uses()) == 1 and not value.is_graph_output():
        reader = next(iter(value.uses())).node
        found = _scale_and_shift(reader, value, channels, weights.ndim)
        if found is None:
            break
        scale, shift = scale * found[0], shift * found[0] + found[1]
        followers.append(reader)
        value = reader.outputs[0]
    folded = weights * scale.reshape(-1, *[1] * (weights.ndim - 1))
    if (
        len(followers) < _FEWEST
        or not _LEAST <= np.abs(folded).max(initial=0.0) <= _MOST
        or np.abs(shift).max() > _MOST
    ):
        return
    inputs = [conv.inputs[0], _weight(graph, conv, "weights", folded), _weight(graph, conv, "shift", shift)]
    made = ir.node("Conv", inputs, attributes=dict(conv.attributes), name=conv.name)
    ir.convenience.replace_nodes_and_values(graph, conv, [*reversed(followers), conv], [made], [value], made.outputs)


def _scale_and_shift(node: ir.Node, value: ir.Value, channels: int, rank: int) -> tuple[_Doubles, _Doubles] | None:
    """What a node does to each channel of a value, if it does nothing else."""
    if is_op(node, "BatchNormalization") and node.inputs[0] is value and len(node.outputs) == 1:
        read = [_numbers(each) for each in node.inputs[1:5]]
        scale, shift, mean, variance = read
        if scale is None or shift is None or mean is None or variance is None:
            return None
        factor = scale / np.sqrt(variance + node.attributes.get_float("epsilon", _EPSILON))
        return factor, shift - mean * factor
    if not is_op(node, "Mul", "Add"):
        return None
    other = _numbers(next((each for each in node.inputs if each is not value), None))
    if other is None or other.ndim > rank:
        return None
    aligned = other.reshape([1] * (rank - other.ndim) + list(other.shape))
    if aligned.shape not in ((1, channels) + (1,) * (rank - 2), (1,) * rank):
        return None
    per_channel = np.broadcast_to(aligned.reshape(-1), (channels,))
    neutral = np.zeros(channels)
    return (per_channel, neutral) if node.op_type == "Mul" else (neutral + 1, per_channel)


def _numbers(value: ir.Value | None) -> _Doubles | None:
    """A constant of floating point, in double precision."""
    if value is None or value.const_value is None or value.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        return None
    return value.const_value.numpy().astype(np.float64)


def _weight(graph: ir.Graph, conv: ir.Node, what: str, numbers: _Doubles) -> ir.Value:
    kind = conv.inputs[1].dtype if conv.inputs[1] is not None else None
    assert kind is not None
    name = f"{conv.name}.{what}"
    value = ir.Value(name=name, const_value=ir.Tensor(numbers.astype(kind.numpy()), name=name))
    value.dtype, value.shape = kind, ir.Shape(numbers.shape)
    graph.register_initializer(value)
    return value
