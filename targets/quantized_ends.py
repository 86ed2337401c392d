"""Values of a segment that come in as floating point but stand for integers: the host makes these of them again.

Where a value that was quantized is read on two tiers, it may cross between them as what its DequantizeLinear gives.
Quantizing that with the same scale gives the same integers, so a chip that computes on integers still gets them. What a
codec left of it is quantized so, too.
"""

from collections.abc import Mapping, MutableMapping

import onnx_ir as ir

from flagsplit.flagir import ValueType
from flagsplit.flagir.codecs.functions import DOMAIN

_AGAIN = ".int8.again"


def requantized_inputs(part: ir.Model, model: ir.Model, types: Mapping[str, ValueType]) -> ir.Model | None:
    """Let a part take integers in place of what a DequantizeLinear outside of it gives.

    Args:
        part: of `model`; changed in place.
        model: the whole.
        types: element types and sizes of the values of the model.

    Returns:
        What makes the integers; None if there are none.
    """
    graph = part.graph
    makers = {node.outputs[0].name: maker for node in model.graph if (maker := _taken_back_by(node)) is not None}
    inputs, outputs, nodes, constants = [], [], [], dict[str, ir.Value]()
    for at, value in enumerate(list(graph.inputs)):
        maker = makers.get(value.name)
        if maker is None or maker.inputs[0] is None or value.name not in types:
            continue
        name, shape = f"{value.name}{_AGAIN}", ir.Shape(types[value.name or ""].shape)
        kind = maker.inputs[0].type
        taken = ir.Value(name=name, type=kind, shape=shape)
        back = ir.node("DequantizeLinear", [taken, *_copies(maker, graph.initializers)], name=f"{name}.dequantize")
        value.replace_all_uses_with(back.outputs[0], replace_graph_outputs=True)
        graph.inputs[at] = taken
        graph.insert_before(graph[0], [back])
        back.outputs[0].name, back.outputs[0].type, back.outputs[0].shape = value.name, value.type, value.shape
        given = ir.Value(name=value.name, type=value.type, shape=shape)
        made = ir.Value(name=name, type=kind, shape=shape)
        nodes.append(
            ir.node("QuantizeLinear", [given, *_copies(maker, constants)], outputs=[made], name=f"{name}.quantize")
        )
        inputs.append(given)
        outputs.append(made)
    if not nodes:
        return None
    whole = ir.Graph(
        inputs, outputs, nodes=nodes, initializers=list(constants.values()), opset_imports={"": 23}, name="requantized"
    )
    return ir.Model(whole, ir_version=10)


def _taken_back_by(node: ir.Node) -> ir.Node | None:
    """What takes back the integers that a node's output stands for, by itself or before a codec."""
    if node.domain == DOMAIN and node.op_type.startswith("Decode"):
        payload = node.inputs[0]
        encode = payload.producer() if payload is not None else None
        source = encode.inputs[0] if encode is not None else None
        maker = source.producer() if source is not None else None
        return maker if maker is not None and _takes_back(maker) else None
    return node if _takes_back(node) else None


def _takes_back(node: ir.Node) -> bool:
    """Whether a node takes back integers of one constant scale."""
    if node.op_type != "DequantizeLinear" or node.domain or node.inputs[0] is None:
        return False
    numbers = [value for value in node.inputs[1:] if value is not None]
    constant = all(value.const_value is not None and value.const_value.size == 1 for value in numbers)
    return constant and node.inputs[0].const_value is None and len(node.inputs) == 3


def _copies(maker: ir.Node, known: MutableMapping[str, ir.Value]) -> list[ir.Value]:
    """Scale and zero point of a node among the constants of another graph."""
    found = []
    for value in maker.inputs[1:]:
        assert value is not None
        name = value.name or ""
        if name not in known:
            known[name] = ir.Value(name=name, type=value.type, shape=value.shape, const_value=value.const_value)
        found.append(known[name])
    return found


def joined(first: ir.Model | None, then: ir.Model | None) -> ir.Model | None:
    """Two models as one: each node of the second reads an output of the first, or a further input."""
    if first is None or then is None:
        return then if first is None else first
    made = first.clone()
    graph, known = made.graph, {value.name: value for value in (*made.graph.outputs, *made.graph.inputs)}
    outputs = {value.name for value in made.graph.outputs}
    constants = list(then.graph.initializers.values())
    then.graph.inputs.clear()
    then.graph.outputs.clear()
    then.graph.initializers.clear()
    for value in constants:
        if (value.name or "") in graph.initializers:
            value.replace_all_uses_with(graph.initializers[value.name or ""])
        else:
            graph.register_initializer(value)
    for node in list(then.graph):
        source = node.inputs[0]
        assert source is not None
        then.graph.remove(node)
        if source.name in known:
            node.replace_input_with(0, known[source.name])
            if source.name in outputs:
                graph.outputs.remove(known[source.name])
        else:
            graph.inputs.append(source)
        graph.append(node)
        graph.outputs.append(node.outputs[0])
    return made
