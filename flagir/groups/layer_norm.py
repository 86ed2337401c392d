"""Layer normalization and its kin: the operators of that name, and the arithmetic that older exporters write for it.

    d = x - mean(x)      y = d / sqrt(mean(d^2) + eps) * scale + bias

without the first step it is the root-mean-square norm. The square may be Pow or Mul, the division Div or a Mul by a
reciprocal.
"""

import onnx_ir as ir

from flagsplit.flagir.groups.pattern import View, is_about, is_constant, is_op, scalar

_OPERATORS = ("LayerNormalization", "RMSNormalization", "GroupNormalization", "InstanceNormalization")


def find(view: View, node: ir.Node) -> frozenset[ir.Node]:
    """The group around a norm operator or a square root."""
    if is_op(node, *_OPERATORS):
        return frozenset((node,))
    if not is_op(node, "Sqrt"):
        return frozenset()
    spread = _spread(view, node)
    if spread is None:
        return frozenset()
    deviation, found = spread
    found.add(node)
    centered = _centered(view, deviation)
    divided = _divided(view, node.outputs[0], found)
    if divided is None:
        return frozenset()
    quotient, numerator = divided
    again = _centered(view, numerator)  # some exporters subtract the mean a second time
    same = numerator is deviation or (centered and again and centered[0] is again[0])
    if not same:
        return frozenset()
    for _, nodes in filter(None, (centered, again)):
        found |= nodes
    found.add(quotient)
    return frozenset(found | _scaled(view, quotient.outputs[0]))


def _spread(view: View, root: ir.Node) -> tuple[ir.Value, set[ir.Node]] | None:
    """For `sqrt(mean(d^2) + eps)`: d, and the nodes before the root."""
    add = view.maker(root.inputs[0], "Add")
    if add is None:
        return None
    mean = next((made for value in add.inputs if (made := view.maker(value, "ReduceMean")) is not None), None)
    if mean is None or all(scalar(value) is None for value in add.inputs):
        return None
    square = view.maker(mean.inputs[0], "Pow", "Mul")
    if square is None or square.inputs[0] is None:
        return None
    base, other = square.inputs
    if not (is_about(other, 2.0) if square.op_type == "Pow" else base is other):
        return None
    return square.inputs[0], {add, mean, square}


def _centered(view: View, value: ir.Value | None) -> tuple[ir.Value, set[ir.Node]] | None:
    """For `x - mean(x)`: x and the two nodes."""
    sub = view.maker(value, "Sub")
    mean = view.maker(sub.inputs[1], "ReduceMean") if sub is not None else None
    if sub is None or mean is None or sub.inputs[0] is None or mean.inputs[0] is not sub.inputs[0]:
        return None
    return sub.inputs[0], {sub, mean}


def _divided(view: View, root: ir.Value, found: set[ir.Node]) -> tuple[ir.Node, ir.Value | None] | None:
    """The node that divides by the root, and what it divides; a reciprocal on the way is added to `found`."""
    reader = view.reader(root)
    if is_op(reader, "Reciprocal") or (is_op(reader, "Div") and reader and is_about(reader.inputs[0], 1.0)):
        assert reader is not None
        found.add(reader)
        inverse, reader = reader.outputs[0], view.reader(reader.outputs[0])
        if reader is None or not is_op(reader, "Mul"):
            return None
        return reader, next((value for value in reader.inputs if value is not inverse), None)
    if reader is None or not is_op(reader, "Div") or reader.inputs[1] is not root:
        return None
    return reader, reader.inputs[0]


def _scaled(view: View, value: ir.Value) -> set[ir.Node]:
    """A Mul and an Add by constants, if they follow."""
    found: set[ir.Node] = set()
    for name in ("Mul", "Add"):
        reader = view.reader(value)
        if reader is not None and is_op(reader, name) and any(is_constant(each) for each in reader.inputs):
            found.add(reader)
            value = reader.outputs[0]
    return found
