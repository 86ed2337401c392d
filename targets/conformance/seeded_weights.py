"""Weights by a seed for files that have the shape of a network only, so that its answers say something.

Convolutions and products keep the size of what goes through them. Batch normalizations get the mean and variance of
what they are given, as training would have left them there: without, a deep network's values explode or vanish. Their
biases are positive, so that most of what follows is linear: random networks that fold at every layer double small
errors there.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from flagsplit import flagir
from flagsplit.flagir import Segment
from flagsplit.flagir.segments import segment_of
from flagsplit.targets.interface import Array
from flagsplit.targets.onnx_engine import open_onnx

_EPSILON = 1e-5
_SCALE, _BIAS, _MEAN, _VARIANCE = 1, 2, 3, 4


def draw_weights(model: ir.Model, inputs: Mapping[str, Array], random: np.random.Generator) -> None:
    """Put weights that differ for those that are all alike, in place.

    Args:
        model: a canonical model, its weights in memory.
        inputs: what it will be asked, by name; the batch normalizations are set for that.
        random: where the numbers come from.
    """
    norms = [node for node in model.graph if node.op_type == "BatchNormalization"]
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < 2 or np.ptp(tensor.numpy()):
            continue
        shape = tensor.numpy().shape
        if len(shape) > 1:
            drawn = random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif any((node, _SCALE) in value.uses() for node in norms):
            drawn = random.uniform(0.5, 1.5, shape)
        elif any((node, _BIAS) in value.uses() for node in norms):
            drawn = random.uniform(0.2, 1.2, shape)
        else:
            drawn = random.standard_normal(shape) * 0.1
        value.const_value = ir.tensor(drawn.astype(np.float32), name=name)
    if norms:
        _settle(model, norms, inputs)


def _settle(model: ir.Model, norms: list[ir.Node], inputs: Mapping[str, Array]) -> None:
    """Give each batch normalization an own mean and variance: those of its input."""
    given = _normalized_as_it_goes(model, [_name(node, 0) for node in norms], inputs)
    for node in norms:
        array = given[_name(node, 0)]
        axes = tuple(axis for axis in range(array.ndim) if axis != 1)
        for at, found in ((_MEAN, array.mean(axes)), (_VARIANCE, array.var(axes))):
            name = f"{node.name}/{at}"
            value = ir.Value(name=name, const_value=ir.tensor(found.astype(np.float32), name=name))
            value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape(found.shape)
            model.graph.register_initializer(value)
            node.replace_input_with(at, value)
    for name, value in list(model.graph.initializers.items()):
        if not value.uses():
            del model.graph.initializers[name]


def _normalized_as_it_goes(model: ir.Model, wanted: list[str], inputs: Mapping[str, Array]) -> dict[str, Array]:
    """These values of a model whose batch normalizations take mean and variance from what they are given."""
    whole = segment_of(model, [node.name or "" for node in model.graph])
    outputs = tuple(dict.fromkeys(wanted))
    traced = flagir.extract(model, Segment(whole.id, whole.nodes, whole.inputs, outputs))
    for node in list(traced.graph):
        if node.op_type == "BatchNormalization":
            made = ir.node("InstanceNormalization", node.inputs[:_MEAN], {"epsilon": _EPSILON}, name=node.name)
            ir.convenience.replace_nodes_and_values(traced.graph, node, [node], [made], node.outputs[:1], made.outputs)
    with tempfile.TemporaryDirectory(prefix="flagsplit-weights-") as scratch:
        file = Path(scratch) / "traced.onnx"
        file.write_bytes(flagir.to_bytes(traced))
        engine = open_onnx(file, None, "exact", 0)
        try:
            return engine.run({name: inputs[name] for name in whole.inputs})
        finally:
            engine.close()


def _name(node: ir.Node, at: int) -> str:
    value = node.inputs[at]
    return value.name or "" if value is not None else ""
