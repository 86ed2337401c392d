"""What recognisers ask of a graph: who makes a value, who reads it, and whether it is a constant."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from flagsplit.flagir.reads import activations_read, readers_of

_CONTRACTIONS = frozenset(
    "Conv ConvInteger QLinearConv DeformConv ConvTranspose MatMul MatMulInteger QLinearMatMul Gemm Einsum Attention "
    "LSTM GRU RNN".split()
)
_ARITHMETIC = frozenset("Add Sub Mul Div Pow Softplus".split())
_MOST_HEAD_NODES = 8
_MOST_TAIL_NODES = 4


def is_op(node: ir.Node | None, *names: str) -> bool:
    """Whether a node is one of these standard operators."""
    return node is not None and not node.domain and node.op_type in names


def is_contraction(node: ir.Node) -> bool:
    """Whether a node is work of its own: a contraction, control flow, or a function of some other domain."""
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return (
        bool(node.domain)
        or node.op_type in _CONTRACTIONS
        or any(attribute.type in kinds for attribute in node.attributes.values())
    )


def is_constant(value: ir.Value | None) -> bool:
    """Whether a value is an initializer."""
    return value is not None and value.is_initializer()


def scalar(value: ir.Value | None) -> float | None:
    """The number in a constant of one element, else None."""
    tensor = value.const_value if value is not None and value.is_initializer() else None
    if tensor is None or tensor.size != 1 or tensor.dtype == ir.DataType.STRING:
        return None
    return float(np.asarray(tensor.numpy()).reshape(-1)[0])


def is_about(value: ir.Value | None, number: float) -> bool:
    """Whether a value is this constant, as far as half precision tells."""
    came = scalar(value)
    return came is not None and abs(came - number) <= 1e-3 * abs(number)


class View:
    """A graph, and which of its nodes are in groups already."""

    def __init__(self, graph: ir.Graph) -> None:
        self.nodes = tuple(graph)
        self.position: Mapping[ir.Node, int] = {node: index for index, node in enumerate(self.nodes)}
        self._readers = readers_of(graph)
        self.kinds: dict[ir.Node, str] = {}
        self.members: dict[ir.Node, frozenset[ir.Node]] = {}

    def readers(self, value: ir.Value) -> tuple[ir.Node, ...]:
        """The nodes that read a value, those that hold a subgraph that reads it included."""
        return self._readers.get(value, ())

    def reader(self, value: ir.Value) -> ir.Node | None:
        """The one node that reads a value; None if there are several or the graph returns it."""
        found = self.readers(value)
        return found[0] if len(found) == 1 and not value.is_graph_output() else None

    def maker(self, value: ir.Value | None, *names: str) -> ir.Node | None:
        """The node of this operator that makes a value, else None."""
        made_by = value.producer() if value is not None else None
        return made_by if is_op(made_by, *names) and made_by in self.position else None

    def closure(self, nodes: Collection[ir.Node]) -> frozenset[ir.Node]:
        """The nodes and all that lies on a path from one of them to another: the least convex set that holds them."""
        inside = set(nodes)
        first = min(self.position[node] for node in inside)
        last = max(self.position[node] for node in inside)
        between = self.nodes[first : last + 1]
        after = _reached(between, inside, lambda node: (value.producer() for value in activations_read(node)))
        before = _reached(
            between[::-1], inside, lambda node: (reader for value in node.outputs for reader in self.readers(value))
        )
        return frozenset(inside | (after & before))

    def activation_after(self, value: ir.Value) -> frozenset[ir.Node]:
        """The activation that a value goes into and nowhere else: one node or a group; empty if there is none."""
        readers = self.readers(value)
        if not readers or value.is_graph_output():
            return frozenset()
        group = self.members.get(readers[0], frozenset())
        if self.kinds.get(readers[0], "") in ("gelu", "swish") and group.issuperset(readers):
            return group
        return frozenset(readers) if len(readers) == 1 and is_op(readers[0], *_ACTIVATIONS) else frozenset()


_ACTIVATIONS = frozenset(
    "Relu LeakyRelu PRelu Sigmoid Tanh Clip HardSigmoid HardSwish Elu Selu Celu Gelu Mish Softplus Softsign".split()
)
_FOLLOWERS = ("BatchNormalization", "Mul", "Div", "Add", "Sub")


def with_followers(view: View, node: ir.Node) -> frozenset[ir.Node]:
    """A contraction, the normalization, scales and biases by constants that follow it, and an activation after them."""
    found = {node}
    at = node.outputs[0]
    while (reader := view.reader(at)) is not None and is_op(reader, *_FOLLOWERS):
        if reader in view.members or any(value is not at and not is_constant(value) for value in reader.inputs):
            break
        found.add(reader)
        at = reader.outputs[0]
    return frozenset(found | view.activation_after(at))


def gated(view: View, gate: ir.Node, *, adds: bool) -> frozenset[ir.Node]:
    """The nodes of `x * gate(f(x))` with constant factors anywhere, f being arithmetic with constants.

    Args:
        view: the graph.
        gate: the node of the gate's function.
        adds: whether a constant is added to the gate before it is multiplied.

    Returns:
        The nodes; empty if this is something else.
    """
    found = {gate}
    at, head, added = gate.outputs[0], None, False
    while len(found) <= _MOST_TAIL_NODES and (reader := view.reader(at)) is not None:
        other = _other(reader, at)
        if is_op(reader, "Add") and adds and not added and scalar(other) is not None:
            added = True
        elif is_op(reader, "Mul") and not is_constant(other) and head is None and added == adds:
            head = _head(view, gate.inputs[0], other)
            if head is None:
                return frozenset()
        elif not _is_factor(reader, at):
            break
        found.add(reader)
        at = reader.outputs[0]
    return frozenset(found | head) if head is not None else frozenset()


def _other(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """The other operand of a node of two."""
    others = [each for each in node.inputs if each is not value]
    return others[0] if len(node.inputs) == 2 and len(others) == 1 else None


def _is_factor(node: ir.Node, value: ir.Value) -> bool:
    """Whether a node multiplies or divides a value by a constant number."""
    by = scalar(_other(node, value))
    return by is not None and (is_op(node, "Mul") or (is_op(node, "Div") and node.inputs[0] is value))


def _head(view: View, inside: ir.Value | None, outside: ir.Value | None) -> frozenset[ir.Node] | None:
    """The nodes from x to the gate, x being what the gate is multiplied with, or that before a constant factor."""
    direct = _arithmetic(view, inside, outside)
    if direct is not None:
        return direct
    factor = view.maker(outside, "Mul", "Div")
    if factor is None:
        return None
    for source in factor.inputs:
        others = [value for value in factor.inputs if value is not source]
        path = _arithmetic(view, inside, source)
        if path is not None and all(scalar(value) is not None for value in others):
            return path | {factor}
    return None


def _arithmetic(view: View, end: ir.Value | None, start: ir.Value | None) -> frozenset[ir.Node] | None:
    """The nodes that make one value of another and of constants; None if there is more to it."""
    found: set[ir.Node] = set()
    pending = [end]
    while pending:
        value = pending.pop()
        if value is None:
            return None
        if value is start or is_constant(value):
            continue
        maker = view.maker(value, *_ARITHMETIC)
        if maker is None or len(found) == _MOST_HEAD_NODES:
            return None
        if maker not in found:
            found.add(maker)
            pending.extend(maker.inputs)
    return frozenset(found)


def _reached(
    order: Sequence[ir.Node], start: Collection[ir.Node], before: Callable[[ir.Node], Iterable[ir.Node | None]]
) -> set[ir.Node]:
    """The nodes of an order that have one of `start` before them."""
    found = set(start)
    for node in order:
        if node not in found and any(other in found for other in before(node)):
            found.add(node)
    return found
