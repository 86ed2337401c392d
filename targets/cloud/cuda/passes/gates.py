"""Activations that are written out: GELU, SiLU and hard-swish."""

import math

import onnx_ir as ir

from flagsplit.targets.cloud.cuda.passes.rewriting import is_about, maker, operands, put, reader, scalar


def fuse_gates(graph: ir.Graph) -> None:
    """Find all, in place."""
    for node in list(graph):
        if node.graph is not graph or node.domain:
            continue
        if node.op_type == "Erf":
            _gelu(graph, node)
        elif node.op_type in ("Sigmoid", "HardSigmoid"):
            _gated(graph, node)
        elif node.op_type == "Clip":
            _hard_swish(graph, node)


def _gelu(graph: ir.Graph, erf: ir.Node) -> None:
    """x (1 + erf(x / sqrt 2)) / 2, the factors in any order."""
    x = _times_root_half(maker(erf.inputs[0], "Div", "Mul"))
    add = reader(erf.outputs[0], "Add")
    if x is None or add is None or not any(is_about(other, 1.0) for _, other in operands(add)):
        return
    at, factor, seen = add.outputs[0], 1.0, False
    while not (seen and abs(factor - 0.5) < 1e-3):
        node = reader(at, "Mul", "Div")
        if node is None:
            return
        other = node.inputs[1] if node.inputs[0] is at else node.inputs[0]
        number = scalar(other)
        if node.op_type == "Div" and (node.inputs[0] is not at or not number):
            return
        if number is not None:
            factor = factor / number if node.op_type == "Div" else factor * number
        else:
            more = _factor_of(other, x)
            if more is None or seen:
                return
            factor, seen = factor * more, True
        at = node.outputs[0]
    put(graph, at, "Gelu", [x])


def _times_root_half(node: ir.Node | None) -> ir.Value | None:
    """x of `x / sqrt 2`."""
    if node is None:
        return None
    if node.op_type == "Div":
        return node.inputs[0] if is_about(node.inputs[1], math.sqrt(2)) else None
    return next((one for one, other in operands(node) if is_about(other, math.sqrt(0.5))), None)


def _factor_of(value: ir.Value | None, x: ir.Value) -> float | None:
    """c where a value is `c x`, else None."""
    if value is x:
        return 1.0
    node = maker(value, "Mul", "Div")
    for one, other in operands(node):
        number = scalar(other)
        if one is x and number and node is not None:
            if node.op_type == "Mul":
                return number
            return 1 / number if node.inputs[0] is x else None
    return None


def _is_sixth(node: ir.Node, value: ir.Value, other: ir.Value | None) -> bool:
    """Whether a node makes a sixth of a value."""
    if node.op_type == "Div":
        return node.inputs[0] is value and is_about(other, 6.0)
    return is_about(other, 1 / 6)


def _gated(graph: ir.Graph, gate: ir.Node) -> None:
    """x sigmoid(x), and x hardsigmoid(x) of the parameters of hard-swish."""
    product = reader(gate.outputs[0], "Mul")
    if product is None or gate.inputs[0] is None or gate.inputs[0] not in product.inputs:
        return
    if gate.op_type == "Sigmoid":
        put(graph, product.outputs[0], "Swish", [gate.inputs[0]])
    elif _near(gate.attributes.get_float("alpha", 0.2), 1 / 6) and _near(gate.attributes.get_float("beta", 0.5), 0.5):
        put(graph, product.outputs[0], "HardSwish", [gate.inputs[0]])


def _near(a: float | None, b: float) -> bool:
    return a is not None and abs(a - b) < 1e-4


def _hard_swish(graph: ir.Graph, clip: ir.Node) -> None:
    """x clip(x + 3, 0, 6) / 6, the division before or after the product."""
    bounds = [scalar(value) for value in clip.inputs[1:]]
    add = maker(clip.inputs[0], "Add")
    x = next((one for one, other in operands(add) if is_about(other, 3.0)), None)
    if bounds != [0.0, 6.0] or x is None:
        return
    at, divided, multiplied = clip.outputs[0], False, False
    while not (divided and multiplied):
        node = reader(at, "Mul", "Div")
        if node is None:
            return
        other = node.inputs[1] if node.inputs[0] is at else node.inputs[0]
        if other is x and node.op_type == "Mul" and not multiplied:
            multiplied = True
        elif not divided and _is_sixth(node, at, other):
            divided = True
        else:
            return
        at = node.outputs[0]
    put(graph, at, "HardSwish", [x])
