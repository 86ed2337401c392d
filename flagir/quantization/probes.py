"""Looking inside a model while it runs: ranges of its activations, and how int8 weights shift what they make.

Each is one model made from the canonical one, with more outputs; an engine that the caller has runs it on samples.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from flagsplit.flagir.quantization.observers import ObserverName, new_observer
from flagsplit.flagir.quantization.params import (
    Array,
    QuantParams,
    quantized_weights,
    weight_scales,
)
from flagsplit.flagir.quantization.rewrite import content_of
from flagsplit.flagir.quantization.scheme import Int8Node, Scheme, observed

Sample = Mapping[str, Array]
Run = Callable[[ir.Model, Iterable[Sample]], Iterator[dict[str, Array]]]
"""Runs a model on samples of its inputs, one after the other, and gives its outputs by name for each."""


def ranges_on(
    model: ir.Model, samples: Sequence[Sample], run: Run, observer: ObserverName
) -> dict[str, tuple[float, float]]:
    """Lowest and highest of every float32 activation, as an observer holds them.

    Args:
        model: canonical; it stays as it is.
        samples: of its inputs.
        run: the caller's engine.
        observer: by name; see `flagsplit.flagir.quantization.observers`.
    """
    probe = model.clone()
    inputs = {value.name for value in probe.graph.inputs}
    seen = [value for value in observed(probe.graph) if value.name not in inputs]
    _also_give(probe.graph, seen)
    observers = {value.name or "": new_observer(observer) for value in observed(model.graph)}
    for turn in range(max((each.passes for each in observers.values()), default=0)):
        for sample, made in zip(samples, run(probe, samples), strict=True):
            for name, each in observers.items():
                each.see(sample[name] if name in sample else made[name], turn)
    return {name: each.range() for name, each in observers.items()}


def bias_corrections(model: ir.Model, scheme: Scheme, samples: Sequence[Sample], run: Run) -> dict[str, Array]:
    """What to add to each bias so that int8 weights do not shift the mean of an output channel.

    By Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019), with means from
    samples: beside each node runs one with the weights' rounding errors, whose mean is the shift.

    Args:
        model: canonical; it stays as it is.
        scheme: of its graph.
        samples: of its inputs.
        run: the caller's engine.

    Returns:
        One number for each output channel, by the name of the node with the weights.
    """
    probe = model.clone()
    nodes = {node.name: node for node in probe.graph}
    shifts: dict[str, str] = {}
    for each in scheme.nodes:
        if each.weights is None or each.bias is None:
            continue
        made = _shift(probe.graph, nodes[each.name], each, scheme.params)
        shifts[each.name] = made.name or ""
    if not shifts:
        return {}
    sums: dict[str, Array] = {}
    for made_values in run(probe, samples):
        for name, value in shifts.items():
            sums[name] = made_values[value].astype(np.float64) + sums.get(name, np.float64(0))
    return {name: np.asarray(-total / len(samples), np.float32) for name, total in sums.items()}


def _shift(graph: ir.Graph, node: ir.Node, each: Int8Node, params: Mapping[str, QuantParams]) -> ir.Value:
    """The mean by channel of what the rounding errors of the weights add."""
    assert each.weights is not None
    weights = content_of(node.inputs[1])
    error = _rounded(node, each, params) - np.asarray(weights, np.float32)
    constant = _constant(graph, f"{each.name}.error", error)
    beside = _append(graph, node.op_type, [node.inputs[0], constant], node.attributes.values(), f"{each.name}.shift")
    rank = 2 if node.op_type == "Gemm" else len(node.outputs[0].shape or ())
    channels = 1 if node.op_type in ("Conv", "ConvTranspose") else rank - 1
    axes = _constant(graph, f"{each.name}.axes", np.array([at for at in range(rank) if at != channels], np.int64))
    keep = [ir.AttrInt64("keepdims", 0)]
    mean = _append(graph, "ReduceMean", [beside, axes], keep, f"{each.name}.mean")
    graph.outputs.append(mean)
    return mean


def _rounded(node: ir.Node, each: Int8Node, params: Mapping[str, QuantParams]) -> Array:
    """Weights as int8 stands for them."""
    assert each.weights is not None
    weights, axis = content_of(node.inputs[1]), each.weights.axis
    source = node.inputs[0]
    known = params.get(source.name or "") if source is not None else None
    bias = _bias_of(each)
    scales = weight_scales(weights, axis, 1.0 if known is None else known.scale, bias)
    shape = [-1 if at == axis else 1 for at in range(weights.ndim)]
    return np.asarray(quantized_weights(weights, scales, axis) * scales.reshape(shape), np.float32)


def _bias_of(each: Int8Node) -> Array | None:
    inputs = each.bias.node.inputs if each.bias is not None else ()
    value = inputs[each.bias.at] if each.bias is not None and each.bias.at < len(inputs) else None
    return None if value is None else content_of(value)


def _append(
    graph: ir.Graph,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Iterable[ir.Attr],
    name: str,
) -> ir.Value:
    node = ir.Node("", op_type, inputs, attributes, name=name)
    node.outputs[0].name = name
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph.append(node)
    return node.outputs[0]


def _constant(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    name = f"probe.{name}"
    found = graph.initializers.get(name)
    if found is None:
        tensor = ir.Tensor(array, name=name)
        found = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=tensor.shape)
        graph.register_initializer(found)
    return found


def _also_give(graph: ir.Graph, values: Iterable[ir.Value]) -> None:
    given = set(graph.outputs)
    graph.outputs.extend(value for value in values if value not in given)
