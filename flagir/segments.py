"""Cutting a placed graph into what each tier runs, in the order in which a request visits the tiers.

A request travels the line of tiers like a lift: at each tier it runs all that is ready there, then goes on in its
direction while there is work ahead, else turns. Each visit that runs something is a step, and what it runs a segment.
That covers any placement, those that come back to a tier included, and makes every segment convex.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from flagsplit.errors import InternalError
from flagsplit.flagir.reads import activations_read, readers_of, weights_read


@dataclass(frozen=True)
class Segment:
    """A convex part of the graph that one tier runs in one go.

    Attributes:
        id: digest of its nodes; equal parts of different plans have equal ids.
        nodes: names of its nodes, in execution order.
        inputs: values that it needs from elsewhere, initializers left out.
        outputs: values that others need from it, graph outputs included.
    """

    id: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Step:
    """One visit of a request to a tier that runs something there."""

    tier: int
    segment: Segment


def cut_into_steps(model: ir.Model, placement: Mapping[str, int], tier_count: int) -> tuple[Step, ...]:
    """The steps of a request under a placement.

    Args:
        model: a canonical model.
        placement: tier position for each node name.
        tier_count: how many tiers the line has; a request starts at tier 0.

    Returns:
        Steps in execution order; every node is in exactly one.
    """
    waiting = {
        node: sum(1 for maker in {v.producer() for v in activations_read(node)} if maker is not None)
        for node in model.graph
    }
    value_readers = readers_of(model.graph)
    readers = {
        node: dict.fromkeys(reader for value in node.outputs for reader in value_readers.get(value, ()))
        for node in waiting
    }
    order = {node: index for index, node in enumerate(waiting)}
    pending = [sum(1 for node in waiting if placement[node.name or ""] == tier) for tier in range(tier_count)]
    ready: list[set[ir.Node]] = [set() for _ in range(tier_count)]
    for node, count in waiting.items():
        if not count:
            ready[placement[node.name or ""]].add(node)
    steps: list[Step] = []
    tier, direction = 0, 1
    while any(pending):
        ran = _run_ready(tier, ready, waiting, readers, placement)
        if ran:
            pending[tier] -= len(ran)
            steps.append(Step(tier, _segment(sorted(ran, key=order.__getitem__), value_readers)))
        elif not any(ready):
            raise InternalError("the placed graph has a cycle; canonical graphs have none")
        ahead = pending[tier + 1 :] if direction > 0 else pending[:tier]
        if not any(ahead):
            direction = -direction
        if any(pending):
            tier += direction
    return tuple(steps)


def _run_ready(
    tier: int,
    ready: list[set[ir.Node]],
    waiting: dict[ir.Node, int],
    readers: Mapping[ir.Node, Iterable[ir.Node]],
    placement: Mapping[str, int],
) -> list[ir.Node]:
    ran: list[ir.Node] = []
    while ready[tier]:
        node = ready[tier].pop()
        ran.append(node)
        for reader in readers[node]:
            waiting[reader] -= 1
            if not waiting[reader]:
                ready[placement[reader.name or ""]].add(reader)
    return ran


def _segment(nodes: Sequence[ir.Node], readers: Mapping[ir.Value, Sequence[ir.Node]]) -> Segment:
    inside = set(nodes)
    inputs = dict.fromkeys(
        value.name or "" for node in nodes for value in activations_read(node) if value.producer() not in inside
    )
    outputs = [
        value.name or ""
        for node in nodes
        for value in node.outputs
        if value.is_graph_output() or not inside.issuperset(readers.get(value, ()))
    ]
    names = tuple(node.name or "" for node in nodes)
    digest = hashlib.sha256("\0".join(names).encode()).hexdigest()[:16]
    return Segment(digest, names, tuple(inputs), tuple(outputs))


def extract(model: ir.Model, segment: Segment) -> ir.Model:
    """A segment as a model of its own, with the weights it needs and nothing else.

    Args:
        model: the canonical model that the segment was cut from; it stays as it is.
        segment: from `cut_into_steps` of the same model.

    Returns:
        A valid model; its initializers share their tensors with `model`.
    """
    wanted = set(segment.nodes)
    nodes = [node for node in model.graph if node.name in wanted]
    values: dict[str, ir.Value] = {}
    weights: dict[ir.Value, None] = {}
    for node in nodes:
        weights.update(dict.fromkeys(weights_read(node)))
        values.update({value.name or "": value for value in (*activations_read(node), *node.outputs)})
    view = ir.GraphView(
        [values[name] for name in segment.inputs],
        [values[name] for name in segment.outputs],
        nodes=nodes,
        initializers=tuple(weights),
        opset_imports=model.graph.opset_imports,
        name=f"{model.graph.name}/{segment.id}",
    )
    graph = view.clone()
    for node in graph:
        node.device_configurations = ()
    return ir.Model(graph, ir_version=model.ir_version, producer_name="flagsplit")
