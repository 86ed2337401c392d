"""Operators that the compiler takes and computes badly, in forms that it computes well.

- A product of x and its HardSigmoid is fused by the compiler whatever beta is left out: it becomes HardSwish here.
- Softplus is off by 0.01 near zero: it becomes `max(x, 0) + log(1 + exp(-|x|))`.
- Exp beyond 88 on either side gives 0, or minus infinity: it is given no more than fp16 can hold the answer of.
- Sigmoid comes in steps of 1/4096: 2.5 per cent of a probability of 0.003, and 0 after some convolutions. Where it is
  what a segment gives it becomes `1 / (1 + exp(-x))`; inside of a network it stays the one operation that it is.
- No comparison with an infinity is true: it is brought down to the largest of fp16 first, and compared with that.
- A floor that fp16 holds as 0, such as the 1e-12 that keeps a logarithm or a quotient finite, becomes its least number:
  the logarithm of 0 is -7.6 here.
- Indices that count from the end read other elements in GatherElements and ScatterElements: they count from the start.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from flagsplit.flagir.groups.pattern import is_op, scalar
from flagsplit.flagir.passes.graph_edits import replace_node

_LARGEST, _LARGE = 65504.0, 65000.0
"""The largest number of fp16, and one below it by more than a rounding."""
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
_SMALLEST = 2.0**-24
"""The least positive number of fp16."""

_MOVERS = ("Concat", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
LEAST_EXPONENT, _MOST_EXPONENT = -20.0, 12.0
"""Whose exponentials fp16 holds as zero and as infinity."""

_LEAST_LOGIT = -11.0
"""Whose Sigmoid fp16 still tells from zero."""

_SIXTH, _NEAR = 1 / 6, 1e-4


def hard_swish(graph: ir.Graph, node: ir.Node) -> bool:
    """`x * HardSigmoid(x)` with alpha 1/6 and beta 1/2."""
    if not is_op(node, "Mul"):
        return False
    for value, other in (node.inputs, node.inputs[::-1]):
        maker = other.producer() if other is not None else None
        if maker is not None and is_op(maker, "HardSigmoid") and maker.inputs[0] is value:
            alpha, beta = maker.attributes.get_float("alpha", 0.2), maker.attributes.get_float("beta", 0.5)
            if abs(alpha - _SIXTH) < _NEAR and abs(beta - 0.5) < _NEAR:
                replace_node(graph, node, [ir.node("HardSwish", [value], name=node.name)])
                return True
    return False


def softplus(graph: ir.Graph, node: ir.Node) -> bool:
    """Any Softplus."""
    x = node.inputs[0] if is_op(node, "Softplus") else None
    if x is None:
        return False
    build = _Builder(graph, node, x)
    kind = (x.dtype or ir.DataType.FLOAT).numpy()
    most = build.number("most", np.array(-LEAST_EXPONENT, kind))
    small = build.op("Exp", build.op("Neg", build.op("Min", build.op("Abs", x), most)))
    log = build.op("Log", build.op("Add", small, build.number("one", np.ones((), kind))))
    build.op("Add", build.op("Relu", x), log)
    build.replace()
    return True


def held_exp(graph: ir.Graph, node: ir.Node) -> bool:
    """Any Exp."""
    x = node.inputs[0] if is_op(node, "Exp") else None
    if x is None:
        return False
    build = _Builder(graph, node, x)
    kind = (x.dtype or ir.DataType.FLOAT).numpy()
    most, least = (np.array(each, kind) for each in (_MOST_EXPONENT, LEAST_EXPONENT))
    below = build.op("Min", x, build.number("most", most))
    build.op("Exp", build.op("Max", below, build.number("least", least)))
    build.replace()
    return True


def given_sigmoid(graph: ir.Graph, node: ir.Node) -> bool:
    """A Sigmoid that is an output, or becomes one by moving elements only."""
    x = node.inputs[0] if is_op(node, "Sigmoid") else None
    if x is None or not _is_given(node.outputs[0]):
        return False
    build = _Builder(graph, node, x)
    kind = (x.dtype or ir.DataType.FLOAT).numpy()
    one, least = build.number("one", np.ones((), kind)), build.number("least", np.array(_LEAST_LOGIT, kind))
    most = build.number("most", np.array(-LEAST_EXPONENT, kind))
    held = build.op("Min", build.op("Max", x, least), most)
    build.op("Reciprocal", build.op("Add", build.op("Exp", build.op("Neg", held)), one))
    build.replace()
    return True


def _is_given(value: ir.Value) -> bool:
    todo = [value]
    while todo:
        at = todo.pop()
        if at.is_graph_output():
            return True
        readers = [use.node for use in at.uses()]
        todo.extend(reader.outputs[0] for reader in readers if is_op(reader, *_MOVERS) or _is_mean_of_one(reader))
    return False


def _is_mean_of_one(node: ir.Node) -> bool:
    given, made = node.inputs[0] if node.inputs else None, node.outputs[0]
    if not is_op(node, "ReduceMean") or given is None or given.shape is None or made.shape is None:
        return False
    return given.shape.is_static() and bool(np.prod(given.shape.numpy()) == np.prod(made.shape.numpy()))


def equal_infinity(graph: ir.Graph, node: ir.Node) -> bool:
    """`x == inf` and `x == -inf`."""
    if not is_op(node, "Equal"):
        return False
    for value, other in (node.inputs, node.inputs[::-1]):
        number = scalar(other)
        if value is not None and number is not None and np.isinf(number):
            build = _Builder(graph, node, value)
            kind = (value.dtype or ir.DataType.FLOAT).numpy()
            most, limit = (np.array(np.copysign(each, number), kind) for each in (_LARGEST, _LARGE))
            held = build.op("Min" if number > 0 else "Max", value, build.number("most", most))
            build.op("Greater" if number > 0 else "Less", held, build.number("limit", limit))
            build.replace()
            return True
    return False


def held_floor(graph: ir.Graph, node: ir.Node) -> bool:
    """The number in `max(x, number)`, `x + number` and Clip."""
    if not is_op(node, "Max", "Add", "Clip") or len(node.inputs) < 2:
        return False
    for index, value in enumerate(node.inputs[:2]):
        number = scalar(value) if index or node.op_type != "Clip" else None
        if value is None or number is None or not 0 < number < _SMALLEST or value.const_value is None:
            continue
        if value.dtype in _FLOATS:
            least = np.full_like(value.const_value.numpy(), _SMALLEST)
            node.replace_input_with(index, _Builder(graph, node, value).number("least", least))
            return True
    return False


def from_the_start(graph: ir.Graph, node: ir.Node) -> bool:
    """Indices of GatherElements and ScatterElements, constant or not."""
    if not is_op(node, "GatherElements", "ScatterElements"):
        return False
    data, indices = node.inputs[:2]
    size = data.shape[node.attributes.get_int("axis", 0)] if data is not None and data.shape is not None else None
    if indices is None or not isinstance(size, int) or _is_made_here(indices):
        return False
    build = _Builder(graph, node, indices)
    kind = (indices.dtype or ir.DataType.INT64).numpy()
    if indices.const_value is not None:
        numbers = indices.const_value.numpy()
        if not (numbers < 0).any():
            return False
        node.replace_input_with(1, build.number("indices", np.where(numbers < 0, numbers + size, numbers)))
        return True
    negative = build.op("Less", indices, build.number("zero", np.zeros((), kind)), kind=ir.DataType.BOOL)
    more = build.op("Add", indices, build.number("size", np.array(size, kind)))
    node.replace_input_with(1, build.op("Where", negative, more, indices))
    graph.insert_before(node, build.made)
    return True


def _is_made_here(indices: ir.Value) -> bool:
    """Whether nothing can be negative: an ArgMax, ArgMin or TopK counts from the start."""
    return is_op(indices.producer(), "ArgMax", "ArgMin", "TopK")


class _Builder:
    """Nodes in place of one, named after it; values have the type and shape of one that is given.

    Args:
        graph: where to.
        node: in place of which.
        like: the value that the others are like.
    """

    def __init__(self, graph: ir.Graph, node: ir.Node, like: ir.Value) -> None:
        self._graph, self._node, self._like = graph, node, like
        self.made: list[ir.Node] = []

    def op(self, name: str, *inputs: ir.Value, kind: ir.DataType | None = None) -> ir.Value:
        """One more node; its value."""
        at = f"{self._node.name}.{len(self.made)}"
        self.made.append(ir.node(name, inputs, name=at))
        value = self.made[-1].outputs[0]
        value.name, value.shape = f"{at}.made", self._like.shape
        value.dtype = kind or self._like.dtype or ir.DataType.FLOAT
        return value

    def number(self, what: str, array: NDArray[Any]) -> ir.Value:
        """A constant."""
        name = f"{self._node.name}.{what}"
        value = ir.Value(name=name, const_value=ir.Tensor(array, name=name))
        value.dtype, value.shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
        self._graph.register_initializer(value)
        return value

    def replace(self) -> None:
        """Put them there; the last makes the node's value."""
        replace_node(self._graph, self._node, self.made)


EXACT_FORMS: tuple[Callable[[ir.Graph, ir.Node], bool], ...] = (
    hard_swish,
    softplus,
    held_exp,
    given_sigmoid,
    equal_infinity,
    held_floor,
    from_the_start,
)
"""Each rewrites a node if it is of its kind, and says whether it was."""
