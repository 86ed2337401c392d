"""ONNX's shape inference, on a proto that holds no large weights, with what the library lacks or gets wrong made good.

It has no rule for `GroupNormalization`, stumbles over a `MeanVarianceNormalization` without axes, takes an `STFT` that
does not say so for two-sided, and propagates the values of a constant `Range` however long it is.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from flagsplit.flagir.types import ValueType, dims_of

_INLINE_BYTES = 1024
_MAX_RANGE = 1 << 20
_MOST_ROUNDS = 8
_MOST_KNOWN = 1 << 16
"""Elements of a constant that is followed; those that decide shapes are few."""
_SAME_SHAPE = {"GroupNormalization": "InstanceNormalization", "MeanVarianceNormalization": "Relu"}
"""Operators that take and give the same types and shapes as others, for which there is a rule."""


def weightless_proto(model: ir.Model, *, declared: bool) -> onnx.ModelProto:
    """The model with large initializers as inputs and without placement.

    Args:
        model: stays as it is.
        declared: keep the shapes of intermediate values and outputs where they are whole, else drop them all. A
            dimension that is declared as unknown would hide what inference finds out about it.
    """
    proto = onnx.ModelProto(ir_version=model.ir_version)
    proto.opset_import.extend(
        onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()
    )
    graph = proto.graph
    graph.name = model.graph.name or "model"
    graph.input.extend(ir.serde.serialize_value(value) for value in model.graph.inputs)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.nbytes <= _INLINE_BYTES:
            graph.initializer.append(_inline(tensor, value.name or ""))
        elif tensor is not None:
            graph.input.append(onnx.helper.make_tensor_value_info(value.name or "", int(tensor.dtype), dims_of(tensor)))
    for node in model.graph:
        graph.node.append(ir.serde.serialize_node(node))
        del graph.node[-1].device_configurations[:]
        graph.value_info.extend(
            ir.serde.serialize_value(value)
            for value in node.outputs
            if value.name and value.type is not None and not value.is_graph_output()
        )
    graph.output.extend(ir.serde.serialize_value(value) for value in model.graph.outputs)
    for each in graphs_of(graph):
        forget_shapes(each, partial_only=declared)
    share_constants(graph)
    return proto


def infer(proto: onnx.ModelProto, *, strict: bool) -> onnx.ModelProto:
    """Shape inference with data propagation.

    Args:
        proto: from `weightless_proto`; changed.
        strict: raise where operators contradict each other, else leave those values open.

    Raises:
        Exception: whatever the library raises.
    """
    for graph in graphs_of(proto.graph):
        for node in graph.node:
            if node.op_type in _SAME_SHAPE and not node.domain:
                node.op_type = _SAME_SHAPE[node.op_type]
                del node.attribute[:]
            elif node.op_type == "STFT" and not any(each.name == "onesided" for each in node.attribute):
                node.attribute.append(onnx.helper.make_attribute("onesided", 1))
    return onnx.shape_inference.infer_shapes(
        proto, check_type=strict, strict_mode=strict, data_prop=not _has_long_range(proto.graph)
    )


def settled(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Inference for a model of known sizes, which also follows what is computed from sizes, such as a `Range` of them.

    Args:
        proto: from `weightless_proto` or the like, its inputs of known shapes; stays as it is.

    Returns:
        The model with the types that are known; nodes of the main graph that sizes alone decide became constants.
    """
    proto = _copied(proto)
    for _ in range(_MOST_ROUNDS):
        inferred = infer(_copied(proto), strict=False)
        if not _evaluate(proto.graph, inferred.graph):
            break
    return inferred


def known_types(graph: onnx.GraphProto) -> dict[str, ValueType]:
    """The types that inference gave to the values of a graph and of those in it; an open dimension counts as 1."""
    found = {}
    for each in graphs_of(graph):
        for info in (*each.input, *each.value_info, *each.output):
            kind = info.type.tensor_type
            if kind.elem_type and kind.HasField("shape"):
                shape = tuple(dim.dim_value if dim.HasField("dim_value") else 1 for dim in kind.shape.dim)
                found[info.name] = ValueType(ir.DataType(kind.elem_type), shape)
    return found


def _copied(proto: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return copy


def _evaluate(graph: onnx.GraphProto, inferred: onnx.GraphProto) -> bool:
    """Turn, in place, nodes that read constants and known shapes into constants; whether there were any."""
    shapes = {
        info.name: [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        for info in (*inferred.input, *inferred.value_info)
        if info.type.tensor_type.HasField("shape")
        and all(dim.HasField("dim_value") for dim in info.type.tensor_type.shape.dim)
    }
    known = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = False
    for node in graph.node:
        if node.op_type == "Constant":
            continue
        if node.op_type == "Shape" and node.input[0] in shapes:
            feeds = {node.input[0]: np.broadcast_to(np.float32(0), shapes[node.input[0]])}
        elif node.input and all(name in known for name in node.input if name) and not _has_body(node):
            feeds = {name: known[name] for name in node.input if name}
        else:
            continue
        made = _run(node, feeds)
        known |= made
        if len(node.output) == 1 and made:
            constant = onnx.numpy_helper.from_array(made[node.output[0]])
            node.CopyFrom(onnx.helper.make_node("Constant", [], [*node.output], name=node.name, value=constant))
            found = True
    return found


def _has_body(node: onnx.NodeProto) -> bool:
    return any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)


def _run(node: onnx.NodeProto, feeds: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """What a node makes of small arrays; nothing where it fails, or makes much."""
    try:
        values = ReferenceEvaluator(node).run(None, dict(feeds))
    except Exception:  # noqa: BLE001 - what cannot be computed stays unknown, as it was
        return {}
    arrays = [np.asarray(value) for value in values]
    small = all(array.size <= _MOST_KNOWN for array in arrays)
    return dict(zip(node.output, arrays, strict=True)) if small else {}


def _inline(tensor: ir.TensorProtocol, name: str) -> onnx.TensorProto:
    if isinstance(tensor, ir.ExternalTensor):
        tensor = ir.Tensor(tensor.numpy(), tensor.dtype)
    proto = ir.serde.serialize_tensor(tensor)
    proto.name = name
    return proto


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all that lie in it, the outer one first."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                yield from graphs_of(inner)


def share_constants(graph: onnx.GraphProto) -> None:
    """Give subgraphs copies of the constants they capture: inference knows captured types, but not their values."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for each in itertools.islice(graphs_of(graph), 1, None):
        read = dict.fromkeys(name for node in each.node for name in node.input)
        each.initializer.extend(constants[name] for name in read if name in constants)


def forget_shapes(graph: onnx.GraphProto, *, partial_only: bool = False) -> None:
    """Drop the shapes of what a graph makes, all of them or those with a dimension that is unknown."""
    for info in (*graph.value_info, *graph.output):
        kind = info.type.tensor_type
        if partial_only and all(dim.WhichOneof("value") for dim in kind.shape.dim):
            continue
        if info.type.HasField("tensor_type"):
            kind.ClearField("shape")
        else:
            info.ClearField("type")
    if not partial_only:
        del graph.value_info[:]


def _has_long_range(graph: onnx.GraphProto) -> bool:
    scalars = {
        tensor.name: float(onnx.numpy_helper.to_array(tensor).reshape(-1)[0])
        for tensor in graph.initializer
        if tensor.data_type != onnx.TensorProto.STRING and list(tensor.dims) in ([], [1])
    }
    for each in graphs_of(graph):
        for node in each.node:
            start, limit, step = (scalars.get(name, 0.0) for name in [*node.input, "", "", ""][:3])
            if node.op_type == "Range" and abs(limit - start) > _MAX_RANGE * abs(step):
                return True
    return False
