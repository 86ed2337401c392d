"""Attention that is written out: `softmax(q k^T scale + mask) v`, the scale before or after the product."""

from dataclasses import dataclass

import onnx_ir as ir

from flagsplit.targets.cloud.cuda.lowering.registry import DOMAIN
from flagsplit.targets.cloud.cuda.passes.rewriting import insert, maker, operands, put, reader, scalar, sizes

_MOVES = ("Reshape", "Transpose", "Unsqueeze", "Squeeze")


@dataclass(eq=False)
class _Scores:
    """What a softmax is taken of."""

    product: ir.Node
    scale: float
    mask: ir.Value | None


def fuse_attention(graph: ir.Graph) -> None:
    """Find all, in place."""
    for node in list(graph):
        if node.op_type == "Softmax" and not node.domain and node.graph is graph:
            _fuse(graph, node)


def _fuse(graph: ir.Graph, softmax: ir.Node) -> None:
    rows = sizes(softmax.inputs[0])
    if rows is None or softmax.attributes.get_int("axis", -1) not in (-1, len(rows) - 1):
        return
    start, weights = _unflattened(softmax)
    shape = sizes(start)
    scores = _scores(start)
    mixed = reader(weights, "MatMul")
    if shape is None or len(shape) not in (3, 4) or scores is None or mixed is None or mixed.inputs[0] is not weights:
        return
    q, turned, v = *scores.product.inputs, mixed.inputs[1]
    out = sizes(mixed.outputs[0])
    if q is None or turned is None or v is None or out is None:
        return
    if any(len(sizes(each) or ()) != len(shape) or (sizes(each) or ())[:-2] != shape[:-2] for each in (q, turned, v)):
        return
    q, by_q = _without_scale(q)
    turned, by_k = _without_scale(turned)
    k = _turned_back(graph, turned, softmax)
    inputs = [q, k, v] if scores.mask is None else [q, k, v, scores.mask]
    put(graph, mixed.outputs[0], "Attention", inputs, {"scale": scores.scale * by_q * by_k}, DOMAIN)


def _unflattened(softmax: ir.Node) -> tuple[ir.Value | None, ir.Value]:
    """What a softmax is taken of and gives, before and after reshapes that leave its axis whole."""
    start, end = softmax.inputs[0], softmax.outputs[0]
    before, after = maker(start, "Reshape", "Flatten"), reader(end, "Reshape")
    if before is None or after is None or before.inputs[0] is None or start is None or len(start.uses()) != 1:
        return start, end
    whole, rows = sizes(before.inputs[0]), sizes(start)
    if not whole or not rows or whole[-1] != rows[-1] or sizes(after.outputs[0]) != whole:
        return start, end
    return before.inputs[0], after.outputs[0]


def _scores(value: ir.Value | None) -> _Scores | None:
    """Back from a softmax to the product of queries and keys: one mask on the way, and any numbers."""
    scale, mask = 1.0, None
    while True:
        node = maker(value, "MatMul", "Add", "Mul", "Div")
        if node is None or value is None or len(value.uses()) != 1:
            return None
        if node.op_type == "MatMul":
            return _Scores(node, scale, mask)
        if node.op_type == "Add":
            found = next(((one, other) for one, other in operands(node) if _leads_to_product(one)), None)
            if mask is not None or found is None or scale != 1.0:
                return None
            value, mask = found
            continue
        number = scalar(node.inputs[1]) if node.op_type == "Div" else None
        if node.op_type == "Div":
            if not number:
                return None
            scale, value = scale / number, node.inputs[0]
            continue
        factor = next(((one, scalar(other)) for one, other in operands(node) if scalar(other) is not None), None)
        if factor is None or factor[1] is None:
            return None
        value, scale = factor[0], scale * factor[1]


def _leads_to_product(value: ir.Value | None) -> bool:
    for _ in range(3):
        node = maker(value, "MatMul", "Mul", "Div")
        if node is None:
            return False
        if node.op_type == "MatMul":
            return node.inputs[1] is not None and node.inputs[1].const_value is None
        value = next((each for each in node.inputs if scalar(each) is None), None)
    return False


def _without_scale(value: ir.Value) -> tuple[ir.Value, float]:
    """A value and the number that it was multiplied with, taken out, also from before moves of its elements."""
    at, moves = value, list[ir.Node]()
    while len(at.uses()) == 1 and (node := maker(at, *_MOVES)) is not None and node.inputs[0] is not None:
        moves.append(node)
        at = node.inputs[0]
    node = maker(at, "Mul", "Div")
    if node is None or len(at.uses()) != 1:
        return value, 1.0
    number = scalar(node.inputs[1])
    source = node.inputs[0]
    if node.op_type == "Mul" and number is None:
        number, source = scalar(node.inputs[0]), node.inputs[1]
    if not number or source is None or sizes(source) != sizes(at):
        return value, 1.0
    factor = number if node.op_type == "Mul" else 1 / number
    if not moves:
        return source, factor
    moves[-1].replace_input_with(0, source)
    return value, factor


def _turned_back(graph: ir.Graph, turned: ir.Value, before: ir.Node) -> ir.Value:
    """Keys as queries are, one row each: without the Transpose that turned them, or by one more."""
    shape = sizes(turned)
    assert shape is not None
    back = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
    swapped = [shape[axis] for axis in back]
    node = maker(turned, "Transpose")
    source, order = turned, back
    if node is not None and node.inputs[0] is not None:
        perm = [int(axis) for axis in node.attributes.get_ints("perm", ()) or range(len(shape))[::-1]]
        source, order = node.inputs[0], [perm[axis] for axis in back]
    if order == list(range(len(shape))):
        return source
    return insert(graph, before, "Transpose", source, f"{turned.name}/keys", swapped, {"perm": order})
