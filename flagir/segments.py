"""Cutting a placed graph into what each tier runs, in the order in which a request visits the tiers.

Each visit (`flagsplit.flagir.visits`) is a step, and what it runs a segment. Any placement can be cut, those that come
back to a tier included, and every segment is convex.
"""

import hashlib
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter

import onnx_ir as ir

from flagsplit.flagir.codecs.functions import COUNT, DOMAIN
from flagsplit.flagir.reads import activations_read, readers_of, weights_read
from flagsplit.flagir.visits import visits


@dataclass(frozen=True)
class Segment:
    """A convex part of the graph that one tier runs in one go.

    Attributes:
        id: digest of its nodes and, if codecs are near, of what goes in and out; equal parts of different plans have
            equal ids.
        nodes: names of its nodes, in execution order.
        inputs: values that it needs from elsewhere, initializers left out.
        outputs: values that others need from it, graph outputs included, and what is counted for who runs it.
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


def cut_into_steps(
    model: ir.Model, placement: Mapping[str, int], tier_count: int, blocks: Iterable[Sequence[str]] = ()
) -> tuple[Step, ...]:
    """The steps of a request under a placement.

    Args:
        model: a canonical model.
        placement: tier position for each node name.
        tier_count: how many tiers the line has; a request starts at tier 0.
        blocks: names of nodes that run as one, convex and each on one tier: an engine that fuses them rounds otherwise
            where some of them run a visit before the rest.

    Returns:
        Steps in execution order; every node is in exactly one.
    """
    nodes = list(model.graph)
    position = {node: index for index, node in enumerate(nodes)}
    items, predecessors = _items(nodes, blocks)
    tiers = [placement[item[0].name or ""] for item in items]
    stops = visits(tiers, predecessors, tier_count)
    readers = readers_of(model.graph)
    steps = []
    for stop in stops:
        ran = sorted((node for index in stop.items for node in items[index]), key=position.__getitem__)
        steps.append(Step(stop.tier, _segment(ran, readers)))
    return tuple(steps)


def _items(
    nodes: Sequence[ir.Node], blocks: Iterable[Sequence[str]]
) -> tuple[list[tuple[ir.Node, ...]], list[list[int]]]:
    """What runs as one, in topological order, and for each item the items whose results it needs."""
    block_of = {name: f"block {number}" for number, block in enumerate(blocks) for name in block}
    owner: dict[ir.Node, Hashable] = {node: block_of.get(node.name or "", node) for node in nodes}
    held: dict[Hashable, list[ir.Node]] = {}
    needs: dict[Hashable, dict[Hashable, None]] = {}
    for node in nodes:
        held.setdefault(owner[node], []).append(node)
        makers = (value.producer() for value in activations_read(node))
        found = dict.fromkeys(owner[maker] for maker in makers if maker is not None)
        found.pop(owner[node], None)
        needs.setdefault(owner[node], {}).update(found)
    order = list(TopologicalSorter(needs).static_order())
    index = {key: at for at, key in enumerate(order)}
    return [tuple(held[key]) for key in order], [[index[need] for need in needs[key]] for key in order]


def segment_of(model: ir.Model, nodes: Collection[str]) -> Segment:
    """Some nodes as one segment; they must be convex.

    Args:
        model: a canonical model.
        nodes: names of nodes of its main graph.
    """
    return _segment([node for node in model.graph if node.name in nodes], readers_of(model.graph))


def _segment(nodes: Sequence[ir.Node], readers: Mapping[ir.Value, Sequence[ir.Node]]) -> Segment:
    inside = set(nodes)
    inputs = dict.fromkeys(
        value.name or "" for node in nodes for value in activations_read(node) if value.producer() not in inside
    )
    outputs = [
        value.name or ""
        for node in nodes
        for value in node.outputs
        if value.is_graph_output() or _is_count(node) or not inside.issuperset(readers.get(value, ()))
    ]
    names = tuple(node.name or "" for node in nodes)
    told_apart = (*inputs, *outputs) if _near_codecs(nodes) else ()
    digest = hashlib.sha256("\0".join((*names, *told_apart)).encode()).hexdigest()[:16]
    return Segment(digest, names, tuple(inputs), tuple(outputs))


def _is_count(node: ir.Node) -> bool:
    return node.domain == DOMAIN and node.op_type == COUNT


def _near_codecs(nodes: Sequence[ir.Node]) -> bool:
    """Whether some encode, decode, or read what was decoded: only then do the nodes not say what goes in and out.

    The same nodes read other values where a plan has no codec, and a value that is encoded for one tier is an output
    itself only if another step reads it as it is.
    """
    makers = (value.producer() for node in nodes for value in activations_read(node))
    return any(node is not None and node.domain == DOMAIN for node in (*nodes, *makers))


def extract(model: ir.Model, segment: Segment) -> ir.Model:
    """A segment as a model of its own, with the weights it needs and nothing else.

    Args:
        model: the canonical model that the segment was cut from; it stays as it is.
        segment: from `cut_into_steps` of the same model.

    Returns:
        A valid model; its initializers share their tensors with `model`. It has the codec functions that it calls.
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
    called = {node.op_identifier() for node in graph}
    functions = [function.clone() for name, function in model.functions.items() if name in called]
    if not functions:
        graph.opset_imports.pop(DOMAIN, None)
    return ir.Model(graph, ir_version=model.ir_version, producer_name="flagsplit", functions=functions)
