"""When each activation is held while a graph runs, and how much is held at most."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from flagsplit.errors import ModelError
from flagsplit.flagir.figures import Types, size_of
from flagsplit.flagir.loops import trips_of, trips_that_count
from flagsplit.flagir.reads import activations_read, subgraphs_of
from flagsplit.flagir.work import is_view


@dataclass(frozen=True)
class Lifetime:
    """When a value is held, as positions in the order of execution; both ends are included.

    Attributes:
        first: the node that makes it; -1 for an input of the graph.
        last: the last node that reads it or a view of it; that of the last node if the graph returns it.
    """

    first: int
    last: int


@dataclass(frozen=True)
class Peak:
    """The most activation bytes that are held at once, and where."""

    size_bytes: int
    node: str


def lifetimes(model: ir.Model, order: Sequence[str] | None = None) -> dict[str, Lifetime]:
    """When each activation is held.

    Args:
        model: a canonical model.
        order: names of all nodes in an order of execution; that of the graph by default.

    Raises:
        ModelError: the order leaves a node out, or runs one before what it reads.
    """
    return {value.name or "": lifetime for value, lifetime in _lifetimes(model, _ordered(model, order)).items()}


def peak_activations(model: ir.Model, types: Types, order: Sequence[str] | None = None) -> Peak:
    """The most activation bytes that are held at once.

    While a node runs, what it reads and what it writes is held, and what later nodes need. A view (`Reshape` and the
    like) shares the bytes of its source. A subgraph adds its own peak, `If` that of the larger branch.

    Args:
        model: a canonical model.
        types: of its values, from `Skeleton.types`.
        order: names of all nodes in an order of execution; that of the graph by default.

    Raises:
        ModelError: the order leaves a node out, or runs one before what it reads.
    """
    nodes = _ordered(model, order)
    size_bytes, at = _peak(nodes, _lifetimes(model, nodes), types)
    return Peak(size_bytes, nodes[at].name or "" if nodes else "")


def _lifetimes(model: ir.Model, nodes: Sequence[ir.Node]) -> dict[ir.Value, Lifetime]:
    return _spans(model.graph.inputs, nodes, model.graph.outputs)


def _spans(
    inputs: Iterable[ir.Value], nodes: Sequence[ir.Node], outputs: Iterable[ir.Value]
) -> dict[ir.Value, Lifetime]:
    first: dict[ir.Value, int] = dict.fromkeys(inputs, -1)
    last = dict(first)
    for at, node in enumerate(nodes):
        for value in activations_read(node):
            if value in first:
                last[value] = at
        for value in node.outputs:
            if value.name:
                first[value] = last[value] = at
    for value in outputs:
        if value in first:
            last[value] = max(0, len(nodes) - 1)
    for node in reversed(nodes):
        if _is_view(node) and node.inputs[0] in first and node.outputs[0] in last:
            source = node.inputs[0]
            last[source] = max(last[source], last[node.outputs[0]])
    return {value: Lifetime(first[value], last[value]) for value in first}


def _is_view(node: ir.Node) -> bool:
    return bool(node.inputs) and node.inputs[0] is not None and is_view(node)


def _peak(nodes: Sequence[ir.Node], spans: Mapping[ir.Value, Lifetime], types: Types) -> tuple[int, int]:
    """The peak in bytes and the position of its node."""
    begins = [0] * (len(nodes) + 1)
    ends = [0] * (len(nodes) + 1)
    for value, span in spans.items():
        maker = value.producer()
        if span.first >= 0 and maker is not None and _is_view(maker) and maker.inputs[0] in spans:
            continue
        begins[max(span.first, 0)] += size_of(value, types)
        ends[span.last] += size_of(value, types)
    held, best = 0, (0, 0)
    for at, node in enumerate(nodes):
        held += begins[at]
        inner = _inner_peak(node, types)
        if held + inner > best[0]:
            best = (held + inner, at)
        held -= ends[at]
    return best


def _inner_peak(node: ir.Node, types: Types) -> int:
    """The peak inside a node; of a loop that of its last trip, when what it carries is longest."""
    bodies = subgraphs_of(node)
    if node.op_type == "Loop" and not node.domain and len(bodies) == 1:
        types = trips_that_count(node, types, trips_of(node).count)[-1].types
    of_bodies = ((list(body), body) for body in bodies)
    return max((_peak(nodes, _spans(b.inputs, nodes, b.outputs), types)[0] for nodes, b in of_bodies), default=0)


def _ordered(model: ir.Model, order: Sequence[str] | None) -> list[ir.Node]:
    if order is None:
        return list(model.graph)
    by_name = {node.name or "": node for node in model.graph}
    if sorted(order) != sorted(by_name):
        raise ModelError(f"expected an order of all {len(by_name)} nodes, each once, came {len(order)} names")
    nodes = [by_name[name] for name in order]
    made: set[ir.Value] = {*model.graph.inputs}
    for node in nodes:
        missing = [value.name for value in activations_read(node) if value not in made]
        if missing:
            raise ModelError(f"the order runs {node.name!r} before {missing[0]!r}, which it reads, is made")
        made.update(node.outputs)
    return nodes
