"""Which nodes become int8 and with which parameters each of their activations stands, before anything is rewritten."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from flagsplit.flagir.quantization.params import QuantParams, params_of_range
from flagsplit.flagir.quantization.rules import (
    FIXED,
    SAME,
    Weighted,
    bias_add,
    data_inputs,
    refusal,
    runs_on,
    weighted,
)

Ranges = Mapping[str, tuple[float, float]]
"""Lowest and highest that each activation was, by its name."""


@dataclass(frozen=True)
class Bias:
    """Where the bias of a node with weights is added: `node.inputs[at]`, which may be missing so far."""

    node: ir.Node
    at: int


@dataclass(frozen=True)
class Int8Node:
    """A node that computes in int8.

    Attributes:
        node: the node.
        activations: positions of the inputs that stand as int8.
        constants: positions of constant operands that do, weights and bias left out.
        weights: how its weights lie, which are input 1.
        bias: of its product; None if it has no weights, or none can be added.
    """

    node: ir.Node
    activations: tuple[int, ...]
    constants: tuple[int, ...]
    weights: Weighted | None
    bias: Bias | None

    @property
    def name(self) -> str:
        return self.node.name or ""

    @property
    def moves(self) -> bool:
        """Whether it gives what it was given, so that both sides have the same parameters."""
        return self.node.op_type in SAME


@dataclass(frozen=True)
class Scheme:
    """What quantization makes of a graph.

    Attributes:
        nodes: those that compute in int8.
        floating: why each of the others does not, by node name.
        params: of the activations that stand as int8, by name; one that an engine never stores, since its only reader
            computes on in the same go, has none.
    """

    nodes: tuple[Int8Node, ...]
    floating: Mapping[str, str]
    params: Mapping[str, QuantParams]


def observed(graph: ir.Graph) -> list[ir.Value]:
    """The activations whose ranges a scheme may need: all of float32."""
    made = (value for node in graph for value in node.outputs if value.name)
    return [value for value in (*graph.inputs, *made) if value.dtype == ir.DataType.FLOAT]


def scheme_of(graph: ir.Graph, ranges: Ranges, kept: Mapping[str, str]) -> Scheme:
    """Decide for every node.

    Args:
        graph: of a canonical model.
        ranges: from samples.
        kept: nodes that are to stay in floating point, by name, with the reason.
    """
    floating: dict[str, str] = {}
    nodes: list[Int8Node] = []
    for node in graph:
        reason = kept.get(node.name or "") or refusal(node)
        if reason:
            floating[node.name or ""] = reason
        else:
            nodes.append(_int8(node))
    nodes = _without_idle(nodes, floating)
    return Scheme(tuple(nodes), floating, _params(nodes, ranges))


def _int8(node: ir.Node) -> Int8Node:
    kind, bias_at = weighted(node), bias_add(node)
    data = [at for at, value in enumerate(node.inputs) if value is not None and value in data_inputs(node)]
    fixed = [at for at in data if _is_constant(node.inputs[at]) and at != bias_at and not (kind and at == 1)]
    bias = None
    if kind is not None and kind.has_bias:
        bias = Bias(node, 2)
    elif kind is not None:
        after = runs_on(node.outputs[0])
        at = None if after is None else bias_add(after)
        bias = None if after is None or at is None else Bias(after, at)
    return Int8Node(node, tuple(at for at in data if not _is_constant(node.inputs[at])), tuple(fixed), kind, bias)


def _is_constant(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None


def _without_idle(nodes: list[Int8Node], floating: dict[str, str]) -> list[Int8Node]:
    """Without nodes that only move numbers which stand as int8 on neither side: there is nothing to win."""
    while True:
        inside = {each.node for each in nodes}
        idle = [each for each in nodes if each.moves and not _has_neighbour(each, inside)]
        if not idle:
            return nodes
        floating.update({each.name: "it moves numbers that stand in floating point" for each in idle})
        nodes = [each for each in nodes if each not in idle]


def _has_neighbour(each: Int8Node, inside: Collection[ir.Node]) -> bool:
    read = (each.node.inputs[at] for at in each.activations)
    before = (value.producer() for value in read if value is not None)
    after = (use.node for value in each.node.outputs for use in value.uses())
    return any(node in inside for node in (*before, *after) if node is not None)


def _params(nodes: list[Int8Node], ranges: Ranges) -> dict[str, QuantParams]:
    inside = {each.node for each in nodes}
    values: dict[ir.Value, None] = {}
    for each in nodes:
        values.update(dict.fromkeys(_read(each)))
        values.update(dict.fromkeys(value for value in each.node.outputs if value.name))
    stored = [value for value in values if not _passes_through(value, inside)]
    known = {value: FIXED[node.op_type] for node in inside if node.op_type in FIXED for value in node.outputs}
    groups = _Groups(value for value in stored if value not in known)
    for each in nodes:
        if each.moves:
            outputs = [value for value in each.node.outputs if value.name]
            for value in (*_read(each), *outputs):
                groups.join(outputs[0], value)
    made = {value.name or "": params for value, params in known.items()}
    for group in groups.all():
        spans = [ranges[value.name or ""] for value in group if (value.name or "") in ranges]
        low, high = min((low for low, _ in spans), default=0.0), max((high for _, high in spans), default=0.0)
        made.update({value.name or "": params_of_range(low, high) for value in group})
    return made


def _read(each: Int8Node) -> list[ir.Value]:
    read = (each.node.inputs[at] for at in each.activations)
    return [value for value in read if value is not None]


def _passes_through(value: ir.Value, inside: Collection[ir.Node]) -> bool:
    return value.producer() in inside and runs_on(value) in inside


class _Groups:
    """Values that have the same parameters."""

    def __init__(self, values: Iterable[ir.Value]) -> None:
        self._head = {value: value for value in values}

    def join(self, first: ir.Value, second: ir.Value) -> None:
        """Let two values be of one group, if both are of any."""
        if first in self._head and second in self._head:
            self._head[self._find(second)] = self._find(first)

    def all(self) -> list[list[ir.Value]]:
        """Each group, in the order of its first value."""
        found: dict[ir.Value, list[ir.Value]] = {}
        for value in self._head:
            found.setdefault(self._find(value), []).append(value)
        return list(found.values())

    def _find(self, value: ir.Value) -> ir.Value:
        while self._head[value] is not value:
            self._head[value] = self._head[self._head[value]]
            value = self._head[value]
        return value
