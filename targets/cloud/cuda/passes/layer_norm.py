"""Layer and root-mean-square norms that are written out become one operator.

    d = x - mean(x)      y = d / sqrt(mean(d^2) + eps) * scale + bias

Without the first step it is the root-mean-square norm. The square may be Pow or Mul, the division Div or a Mul by a
reciprocal.
"""

import numpy as np
import onnx_ir as ir

from flagsplit.targets.cloud.cuda.passes.rewriting import (
    Doubles,
    constant,
    integers,
    is_about,
    maker,
    operands,
    put,
    reader,
    scalar,
    sizes,
    weight,
)


def fuse_norms(graph: ir.Graph) -> None:
    """Find all, in place."""
    for node in list(graph):
        if node.op_type == "Sqrt" and not node.domain and node.graph is graph:
            _fuse(graph, node)


def _fuse(graph: ir.Graph, root: ir.Node) -> None:
    spread = _spread(root)
    if spread is None:
        return
    deviation, epsilon, axes = spread
    shape = sizes(deviation)
    if shape is None or sorted(axis % len(shape) for axis in axes) != list(range(len(shape) - len(axes), len(shape))):
        return
    quotient = _quotient(root, deviation)
    if quotient is None:
        return
    normal = shape[len(shape) - len(axes) :]
    x = _centered(deviation, axes)
    scale, after = _times(quotient, normal)
    bias, last = _plus(after, normal) if x is not None else (None, after)
    dtype, name = deviation.dtype, last.name
    assert dtype is not None
    inputs = [x or deviation, weight(graph, np.ones(normal) if scale is None else scale, dtype, f"{name}/scale")]
    if bias is not None:
        inputs.append(weight(graph, bias, dtype, f"{name}/bias"))
    operator = "RMSNormalization" if x is None else "LayerNormalization"
    put(graph, last, operator, inputs, {"axis": -len(axes), "epsilon": epsilon})


def _spread(root: ir.Node) -> tuple[ir.Value, float, list[int]] | None:
    """For `sqrt(mean(d^2) + eps)`: d, eps and the axes of the mean."""
    for mean, epsilon in operands(maker(root.inputs[0], "Add")):
        made, number = maker(mean, "ReduceMean"), scalar(epsilon)
        square = maker(made.inputs[0], "Pow", "Mul") if made is not None else None
        if made is None or number is None or square is None or not made.attributes.get_int("keepdims", 1):
            continue
        base, other = square.inputs
        axes = integers(made.inputs[1]) if len(made.inputs) > 1 else None
        if base is None or not axes or not (is_about(other, 2.0) if square.op_type == "Pow" else base is other):
            continue
        return base, number, axes
    return None


def _centered(deviation: ir.Value, axes: list[int]) -> ir.Value | None:
    """For `x - mean(x)`: x."""
    sub = maker(deviation, "Sub")
    mean = maker(sub.inputs[1], "ReduceMean") if sub is not None else None
    if sub is None or mean is None or mean.inputs[0] is not sub.inputs[0] or len(mean.inputs) < 2:
        return None
    kept = mean.attributes.get_int("keepdims", 1)
    return sub.inputs[0] if kept and integers(mean.inputs[1]) == axes else None


def _quotient(root: ir.Node, deviation: ir.Value) -> ir.Value | None:
    """What is made of d by dividing it by the root."""
    value = root.outputs[0]
    inverse = reader(value, "Reciprocal") or reader(value, "Div")
    if inverse is not None and (inverse.op_type == "Reciprocal" or is_about(inverse.inputs[0], 1.0)):
        product = reader(inverse.outputs[0], "Mul")
        numerators = [each for each in product.inputs if each is not inverse.outputs[0]] if product is not None else []
        found = product
    elif inverse is not None and inverse.inputs[1] is value:
        numerators, found = [inverse.inputs[0]], inverse
    else:
        return None
    if len(numerators) != 1 or found is None or numerators[0] is None:
        return None
    again = numerators[0]
    if again is deviation or _same_difference(again, deviation):
        return found.outputs[0]
    return None


def _same_difference(a: ir.Value, b: ir.Value) -> bool:
    """Some exporters subtract the mean a second time."""
    first, second = maker(a, "Sub"), maker(b, "Sub")
    return first is not None and second is not None and tuple(first.inputs) == tuple(second.inputs)


def _times(value: ir.Value, normal: tuple[int, ...]) -> tuple[Doubles | None, ir.Value]:
    return _with(value, "Mul", normal)


def _plus(value: ir.Value, normal: tuple[int, ...]) -> tuple[Doubles | None, ir.Value]:
    return _with(value, "Add", normal)


def _with(value: ir.Value, operator: str, normal: tuple[int, ...]) -> tuple[Doubles | None, ir.Value]:
    """The constant of the normalized axes that follows, and the value after it; or none, and the same value."""
    node = reader(value, operator)
    for one, other in operands(node):
        found = constant(other)
        if one is not value or found is None or node is None:
            continue
        if (
            found.size == int(np.prod(normal))
            and found.reshape(-1).size
            and _trailing(found.shape) == _trailing(normal)
        ):
            return found.reshape(normal), node.outputs[0]
    return None, value


def _trailing(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Sizes without leading ones."""
    first = next((at for at, size in enumerate(shape) if size != 1), len(shape))
    return shape[first:]
