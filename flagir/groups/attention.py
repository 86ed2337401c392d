"""Attention: `softmax(q k^T * scale + mask) v`, with what only turns and reshapes q, k, v and the result.

The projections before and after are groups of their own, and the mask stays outside: it is often made once for all
layers.
"""

import onnx_ir as ir

from flagsplit.flagir.groups.pattern import View, is_constant, is_op, scalar
from flagsplit.flagir.reads import activations_read

_BEFORE_SOFTMAX = (
    "Add Sub Mul Div Where Clip Cast Tanh Reshape Flatten Squeeze Unsqueeze Transpose Max Min Identity".split()
)
_AFTER_SOFTMAX = "Cast Reshape Mul Where Dropout Squeeze Unsqueeze Transpose Identity".split()
_MOVES = "Reshape Transpose Squeeze Unsqueeze Flatten Slice Split Expand".split()
_SCALES = ("Mul", "Div")
_MOST_STEPS = 8


def find(view: View, node: ir.Node) -> frozenset[ir.Node]:
    """The group around a softmax, or the operator."""
    if is_op(node, "Attention"):
        return frozenset((node,))
    if not is_op(node, "Softmax"):
        return frozenset()
    scores = _back(view, node.inputs[0], _MOST_STEPS)
    mixed = _forth(view, node.outputs[0], _MOST_STEPS)
    if not scores or not mixed:
        return frozenset()
    found = {node, *scores, *mixed}
    _add_moves_before(view, found)
    _add_moves_after(view, mixed[-1], found)
    return frozenset(found)


def _is_product(node: ir.Node | None) -> bool:
    """Whether a node multiplies two activations."""
    return node is not None and is_op(node, "MatMul", "Einsum") and not any(map(is_constant, node.inputs))


def _back(view: View, value: ir.Value | None, steps: int) -> tuple[ir.Node, ...]:
    """The way from a value back to the product that it comes from, the product last; empty if there is none."""
    maker = view.maker(value, "MatMul", "Einsum", *_BEFORE_SOFTMAX)
    if maker is None or not steps:
        return ()
    if is_op(maker, "MatMul", "Einsum"):
        return (maker,) if _is_product(maker) else ()
    for source in maker.inputs:
        way = _back(view, source, steps - 1)
        if way:
            return (maker, *way)
    return ()


def _forth(view: View, value: ir.Value, steps: int) -> tuple[ir.Node, ...]:
    """The way from a value on to the product that takes it as its first factor, the product last."""
    for reader in view.readers(value) if steps else ():
        if _is_product(reader):
            return (reader,) if reader.inputs[0] is value else ()
        way = _forth(view, reader.outputs[0], steps - 1) if is_op(reader, *_AFTER_SOFTMAX) else ()
        if way:
            return (reader, *way)
    return ()


def _add_moves_before(view: View, found: set[ir.Node]) -> None:
    """Add what turns q, k and v, if nobody else reads what it makes."""
    pending = list(found)
    while pending:
        for value in activations_read(pending.pop()):
            maker = value.producer()
            if maker is None or maker in found or not (is_op(maker, *_MOVES) or _is_scale(maker)):
                continue
            if all(found.issuperset(view.readers(made)) and not made.is_graph_output() for made in maker.outputs):
                found.add(maker)
                pending.append(maker)


def _is_scale(node: ir.Node) -> bool:
    return is_op(node, *_SCALES) and any(scalar(value) is not None for value in node.inputs)


def _add_moves_after(view: View, product: ir.Node, found: set[ir.Node]) -> None:
    """Add what turns the result back."""
    at = product.outputs[0]
    while (reader := view.reader(at)) is not None and is_op(reader, *_MOVES) and reader.inputs[0] is at:
        if len(reader.outputs) != 1:
            break
        found.add(reader)
        at = reader.outputs[0]
