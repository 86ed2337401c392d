"""Rewriting what the compiler does not take, or computes badly, in operators that it does.

- GELU in parts becomes one Gelu; any other Erf a rational function (Abramowitz and Stegun 7.1.26, error below 2e-7).
- Scales and shifts of channels are folded into the convolution before them (`fold_scales`).
- What it computes badly takes another form (`exact_forms`).
- An average over windows with paddings is a depthwise convolution: the emulator gives other numbers on many of them.
- The compiler gets integers at the edges wrong in two cases that were seen: it forgets to widen outputs of 64 bits, and
  a Gather reads indices of 32 bits in the wrong order. So the edges have the other width, in which both come right.
"""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from flagsplit.flagir.groups.pattern import is_about, is_op
from flagsplit.flagir.passes.graph_edits import drop_unused, replace_node
from flagsplit.targets.mobile.qnn.exact_forms import EXACT_FORMS, LEAST_EXPONENT
from flagsplit.targets.mobile.qnn.fold_scales import fold_scales

INPUTS_PASSED_AS = {"int32": "int64"}
"""NumPy element types of inputs that the compiled model takes as another."""

OUTPUTS_PASSED_AS = {"int64": "int32"}
"""The same of outputs."""


def prepare(model: ir.Model) -> ir.Model:
    """A copy of a chip part as the compiler takes it, weights included.

    Args:
        model: a canonical model of fixed shapes; it stays as it is.
    """
    copy = model.clone()
    graph = copy.graph
    for value in graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            value.const_value = ir.Tensor(tensor.numpy(), name=value.name)
    fold_scales(graph)
    for node in list(graph):
        for rewrite in _REWRITES:
            if rewrite(graph, node):
                break
    drop_unused(graph)
    _widen_inputs(graph)
    _narrow_outputs(graph)
    return copy


def _make_gelu(graph: ir.Graph, node: ir.Node) -> bool:
    """The parts of `x * (1 + erf(x / sqrt 2)) / 2`, multiplied in any order."""
    source = _scaled_by_root(node) if is_op(node, "Erf") else None
    at = _only_reader(node.outputs[0]) if source is not None else None
    if at is None or not is_op(at, "Add") or not any(is_about(value, 1.0) for value in at.inputs):
        return False
    value, needed = at.outputs[0], {"x", "half"}
    while needed:
        at = _only_reader(value)
        if at is None or not is_op(at, "Mul"):
            return False
        other = next((each for each in at.inputs if each is not value), None)
        gives = _factor(other, source)
        if not gives or not gives <= needed:
            return False
        needed -= gives
        value = at.outputs[0]
    assert at is not None
    replace_node(graph, at, [ir.node("Gelu", [source], name=at.name)])
    return True


def _scaled_by_root(erf: ir.Node) -> ir.Value | None:
    """x, where an Erf is of x over the root of 2."""
    scaled = erf.inputs[0].producer() if erf.inputs[0] is not None else None
    if scaled is None or not is_op(scaled, "Div", "Mul"):
        return None
    wanted = 2**0.5 if is_op(scaled, "Div") else 0.5**0.5
    first, second = scaled.inputs
    if is_about(second, wanted):
        return first
    return second if is_op(scaled, "Mul") and is_about(first, wanted) else None


def _factor(value: ir.Value | None, source: ir.Value | None) -> set[str]:
    if value is None:
        return set()
    if value is source:
        return {"x"}
    if is_about(value, 0.5):
        return {"half"}
    maker = value.producer()
    if maker is not None and is_op(maker, "Mul") and source in maker.inputs:
        return {"x", "half"} if any(is_about(each, 0.5) for each in maker.inputs) else set()
    return set()


def _make_rational(graph: ir.Graph, node: ir.Node) -> bool:
    """Any Erf: `sign(x) * (1 - t * p(t) * exp(-x * x))` with `t = 1 / (1 + 0.3275911 * |x|)`."""
    if not is_op(node, "Erf"):
        return False
    x, made = node.inputs[0], list[ir.Node]()
    assert x is not None
    kind, shape = x.dtype or ir.DataType.FLOAT, x.shape

    def op(name: str, *inputs: ir.Value) -> ir.Value:
        made.append(ir.node(name, inputs, name=f"{node.name}.{len(made)}"))
        value = made[-1].outputs[0]
        value.name, value.dtype, value.shape = f"{node.name}.v{len(made)}", kind, shape
        return value

    def number(value: float) -> ir.Value:
        return _constant(graph, f"{node.name}.c{value}", np.array(value, kind.numpy()))

    one = number(1.0)
    t = op("Reciprocal", op("Add", op("Mul", op("Abs", x), number(0.3275911)), one))
    series = number(1.061405429)
    for each in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = op("Add", op("Mul", series, t), number(each))
    tail = op("Mul", op("Mul", series, t), op("Exp", op("Neg", op("Min", op("Mul", x, x), number(-LEAST_EXPONENT)))))
    op("Mul", op("Sign", x), op("Sub", one, tail))
    replace_node(graph, node, made)
    return True


def _make_depthwise(graph: ir.Graph, node: ir.Node) -> bool:
    """An AveragePool with paddings."""
    if not is_op(node, "AveragePool") or node.attributes.get_int("ceil_mode", 0) != 0:
        return False
    x, kernel = node.inputs[0], [*node.attributes.get_ints("kernel_shape", ())]
    pads, count = [*node.attributes.get_ints("pads", ())], len(kernel)
    starts, ends = pads[:count], pads[count:]
    if x is None or x.shape is None or x.dtype is None or not any(pads):
        return False
    _, channels, *sizes = [int(size) for size in x.shape.dims if isinstance(size, int)]
    kind, strides = x.dtype.numpy(), [*node.attributes.get_ints("strides", [1] * count)]
    equal = np.full((channels, 1, *kernel), 1 / np.prod(kernel))
    weights = _constant(graph, f"{node.name}.equal", equal.astype(kind))
    attributes: dict[str, int | list[int]] = {
        "kernel_shape": kernel,
        "strides": strides,
        "pads": pads,
        "group": channels,
    }
    made = [ir.node("Conv", [x, weights], attributes=attributes, name=node.name)]
    if not node.attributes.get_int("count_include_pad", 0):
        axes = zip(sizes, starts, ends, kernel, strides, strict=True)
        shares = _constant(graph, f"{node.name}.shares", _shares([*axes]).astype(kind))
        summed = made[0].outputs[0]
        summed.name, summed.type, summed.shape = f"{node.name}.summed", node.outputs[0].type, node.outputs[0].shape
        made.append(ir.node("Mul", [summed, shares], name=f"{node.name}.scaled"))
    replace_node(graph, node, made)
    return True


def _shares(axes: list[tuple[int, int, int, int, int]]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """For each window its size over how much of it is no padding; axes as size, paddings, kernel and stride."""
    shares = np.ones((1, 1))
    for size, start, end, kernel, stride in axes:
        first = np.arange(-start, size + end - kernel + 1, stride)
        inside = np.minimum(first + kernel, size) - np.maximum(first, 0)
        shares = shares[..., None] * (kernel / inside)
    return shares


_REWRITES: tuple[Callable[[ir.Graph, ir.Node], bool], ...] = (
    _make_gelu,
    _make_rational,
    _make_depthwise,
    *EXACT_FORMS,
)


def _widen_inputs(graph: ir.Graph) -> None:
    for value in graph.inputs:
        if value.dtype == ir.DataType.INT32:
            cast = ir.node("Cast", [value], attributes={"to": int(ir.DataType.INT32)}, name=f"{value.name}.cast")
            made = cast.outputs[0]
            made.name, made.dtype, made.shape = f"{value.name}.narrow", ir.DataType.INT32, value.shape
            value.replace_all_uses_with(made)
            cast.replace_input_with(0, value)
            value.type = ir.TensorType(ir.DataType.INT64)  # the type's object may be the original's as well
            graph.insert_before(graph[0], cast)


def _narrow_outputs(graph: ir.Graph) -> None:
    for at, value in enumerate(graph.outputs):
        if value.dtype == ir.DataType.INT64:
            name, value.name = value.name, f"{value.name}.wide"
            cast = ir.node("Cast", [value], attributes={"to": int(ir.DataType.INT32)}, name=f"{name}.narrow")
            made = cast.outputs[0]
            made.name, made.dtype, made.shape = name, ir.DataType.INT32, value.shape
            graph.append(cast)
            graph.outputs[at] = made


def _constant(graph: ir.Graph, name: str, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> ir.Value:
    found = graph.initializers.get(name)
    if found is None:
        found = ir.Value(name=name, const_value=ir.Tensor(array, name=name))
        found.dtype, found.shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
        graph.register_initializer(found)
    return found


def _only_reader(value: ir.Value) -> ir.Node | None:
    uses = value.uses()
    return next(iter(uses)).node if len(uses) == 1 and not value.is_graph_output() else None
