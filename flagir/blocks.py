"""Which nodes belong together: the blocks that no cut may divide.

An engine fuses a contraction with the cheap operators around it, and a cut between them would both undo that and ship
a tensor that the engine never writes. So fused groups (`flagsplit.flagir.groups`) and the nodes outside of them are
units, and units are merged along edges where that cannot create a cycle: a set of units all of whose results go to one
other set joins it. A block holds at most one unit that contracts, except that a loop keeps with the nodes before it
that read its weights, and with all that lies between.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from flagsplit.flagir.blockgraph import GRAPH_INPUT, Block, BlockGraph, BlockValue, LoopWork
from flagsplit.flagir.codecs.table import NO_CODEC, codecs_for, encoded_bytes
from flagsplit.flagir.groups import FusedGroup, find_groups
from flagsplit.flagir.reads import activations_read, readers_of, weights_read
from flagsplit.flagir.signatures import features_of, signature_of
from flagsplit.flagir.static_shapes import Skeleton
from flagsplit.flagir.types import is_sendable
from flagsplit.flagir.work import NodeWork, Types, work_of

Readers = Mapping[ir.Value, Sequence[ir.Node]]
Unit = tuple[ir.Node, ...]
"""A fused group or a node alone."""

_ANCHORS = frozenset(("conv", "depthwise", "matmul", "recurrent", "control"))
_GROWTH = 1.25
"""A group does not join a reader that sends more than this many times its bytes: the cut between is the cheaper one."""
_SMALL_BYTES = 1024
"""Shapes and scalars: never worth a cut of their own."""


def block_graph(model: ir.Model, dims: dict[str, int], skeleton: Skeleton | None = None) -> BlockGraph:
    """The cost view of a canonical model.

    Args:
        model: a canonical model.
        dims: the nominal size of every symbolic dimension (`nominal_dims`).
        skeleton: of the same model, if there is one already.

    Raises:
        ModelError: the graph contradicts itself at these sizes.
    """
    types = (skeleton or Skeleton(model)).types(dims)
    nodes = list(model.graph)
    work = {node: work_of(node, types) for node in nodes}
    readers = readers_of(model.graph)
    units = _units(nodes, find_groups(model.graph))
    groups = _ordered(_Grouping(units, work, types, readers).groups(), units, nodes)
    owner = {node: index for index, group in enumerate(groups) for node in group}
    counted: set[ir.Value] = set()
    blocks = tuple(
        _block(index, group, _Sight(work, types, owner, readers), counted) for index, group in enumerate(groups)
    )
    return BlockGraph(model.graph.name or "model", blocks, _values(model, owner, types, readers), dict(dims))


def _units(nodes: Sequence[ir.Node], fused: Sequence[FusedGroup]) -> list[Unit]:
    """Fused groups and single nodes in topological order; groups that stand in each other's way are given up."""
    while True:
        taken = {node: group.nodes for group in fused for node in group.nodes}
        units = list(dict.fromkeys(taken.get(node, (node,)) for node in nodes))
        components = _components(_edges(units))
        tangled = {
            node for component in components if len(component) > 1 for index in component for node in units[index]
        }
        if not tangled:
            return [units[index] for (index,) in components]
        fused = [group for group in fused if tangled.isdisjoint(group.nodes)]


def _edges(units: Sequence[Unit]) -> list[set[int]]:
    """For each unit, the units that read what it makes."""
    owner = {node: index for index, unit in enumerate(units) for node in unit}
    edges: list[set[int]] = [set() for _ in units]
    for node, index in owner.items():
        for value in activations_read(node):
            maker = value.producer()
            if maker is not None and owner[maker] != index:
                edges[owner[maker]].add(index)
    return edges


class _Grouping:
    """Union of units into groups; a group is known by its last unit's position."""

    def __init__(
        self, units: Sequence[Unit], works: Mapping[ir.Node, NodeWork], types: Types, value_readers: Readers
    ) -> None:
        self._count = len(units)
        self._units = units
        owner = {node: index for index, unit in enumerate(units) for node in unit}
        self._parent = list(range(len(units)))
        self._anchors = [int(any(works[node].op_class in _ANCHORS for node in unit)) for unit in units]
        self._successors = _edges(units)
        self._leaves = [False] * len(units)
        self._out_bytes = [0] * len(units)
        self._in_bytes = [0] * len(units)
        self._uncuttable = [False] * len(units)
        for index, node in ((index, node) for index, unit in enumerate(units) for node in unit):
            entering = [v for v in activations_read(node) if (maker := v.producer()) is None or owner[maker] != index]
            self._in_bytes[index] = max([self._in_bytes[index], *(_bytes(value, types) for value in entering)])
            for value in node.outputs:
                elsewhere = any(owner[reader] != index for reader in value_readers.get(value, ()))
                self._leaves[index] |= value.is_graph_output()
                self._out_bytes[index] += _bytes(value, types) if elsewhere or value.is_graph_output() else 0
                self._uncuttable[index] |= elsewhere and not is_sendable(value)
        self._weight_readers: dict[Hashable, set[int]] = {}
        for node, index in owner.items():
            for weight in filter(_is_large, weights_read(node)):
                self._weight_readers.setdefault(_identity(weight), set()).add(index)

    def groups(self) -> list[list[int]]:
        for index in reversed(range(self._count)):
            self._join_reader(index, with_anchor=False)
        for index in reversed(range(self._count)):
            if self._root(index) == index and not self._anchors[index]:
                self._join_reader(index, with_anchor=True)
        self._join_uncuttable()
        self._join_loops()
        members: dict[int, list[int]] = {}
        for index in range(self._count):
            members.setdefault(self._root(index), []).append(index)
        return list(members.values())

    def _root(self, index: int) -> int:
        while self._parent[index] != index:
            self._parent[index] = self._parent[self._parent[index]]
            index = self._parent[index]
        return index

    def _join_reader(self, index: int, *, with_anchor: bool) -> None:
        """Let the group whose last unit is `index` join the one group that reads its results.

        All other units of a group are read inside it alone, so its last unit speaks for it. The first round lets
        contractions take the cheap nodes that follow them; the second lets a cheap group that is left over join the
        contraction that it prepares, unless a cut after it would be cheaper than the cut before it.
        """
        readers = {self._root(reader) for reader in self._successors[index]}
        if len(readers) != 1 or self._leaves[index]:
            return
        (reader,) = readers
        if reader == index or self._anchors[index] + self._anchors[reader] > 1:
            return
        sent, small = self._out_bytes[index], self._out_bytes[index] <= _SMALL_BYTES
        if self._anchors[reader] and not (with_anchor and (small or sent >= self._in_bytes[index])):
            return
        if not small and self._out_bytes[reader] > _GROWTH * sent:
            return
        self._merge(index, reader)

    def _merge(self, index: int, root: int) -> None:
        self._parent[index] = root
        self._anchors[root] += self._anchors[index]
        self._in_bytes[root] = max(self._in_bytes[root], self._in_bytes[index])

    def _join_uncuttable(self) -> None:
        """What cannot be sent, such as a sequence or strings, joins maker and readers, and all that lies between."""
        for index, uncuttable in enumerate(self._uncuttable):
            if uncuttable and any(True for _ in self._successors[index]):
                for reader in self._successors[index]:
                    self._unite(index, reader)

    def _join_loops(self) -> None:
        """A loop goes with the nodes before it that read its weights: they are its first trip unrolled."""
        for index, unit in enumerate(self._units):
            for node in unit:
                if node.op_type == "Loop" and not node.domain:
                    for weight in filter(_is_large, weights_read(node)):
                        for reader in self._weight_readers[_identity(weight)]:
                            self._unite(reader, index)

    def _unite(self, index: int, other: int) -> None:
        a, b = self._root(index), self._root(other)
        if a != b:
            self._parent[a] = b


def _is_large(weight: ir.Value) -> bool:
    return weight.const_value is not None and weight.const_value.nbytes > _SMALL_BYTES


def _identity(weight: ir.Value) -> Hashable:
    """The same for initializers that are stored once."""
    tensor = weight.const_value
    return (tensor.path, tensor.offset, tensor.nbytes) if isinstance(tensor, ir.ExternalTensor) else id(tensor)


def _bytes(value: ir.Value, types: Types) -> int:
    kind = types.get(value.name or "")
    return kind.size_bytes if kind is not None else 0


def _ordered(groups: list[list[int]], units: Sequence[Unit], nodes: Sequence[ir.Node]) -> list[Unit]:
    """Groups of units as nodes in topological order; groups that would form a cycle are merged into one."""
    merged = [tuple(node for index in group for node in units[index]) for group in groups]
    position = {node: index for index, node in enumerate(nodes)}
    return [
        tuple(sorted((node for number in component for node in merged[number]), key=position.__getitem__))
        for component in _components(_edges(merged))
    ]


def _components(edges: Sequence[set[int]]) -> list[list[int]]:
    """Strongly connected components in topological order (Tarjan, without recursion)."""
    order: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    on_stack: set[int] = set()
    found: list[list[int]] = []
    for start in reversed(range(len(edges))):
        if start in order:
            continue
        walk = [(start, iter(sorted(edges[start], reverse=True)))]
        order[start] = low[start] = len(order)
        stack.append(start)
        on_stack.add(start)
        while walk:
            at, following = walk[-1]
            for follower in following:
                if follower not in order:
                    order[follower] = low[follower] = len(order)
                    stack.append(follower)
                    on_stack.add(follower)
                    walk.append((follower, iter(sorted(edges[follower], reverse=True))))
                    break
                if follower in on_stack:
                    low[at] = min(low[at], order[follower])
            else:
                walk.pop()
                if walk:
                    low[walk[-1][0]] = min(low[walk[-1][0]], low[at])
                if low[at] == order[at]:
                    cut = stack.index(at)
                    found.append(stack[cut:])
                    on_stack.difference_update(stack[cut:])
                    del stack[cut:]
    return found[::-1]


@dataclass(frozen=True)
class _Sight:
    """What is known of the whole graph when one block is described."""

    work: Mapping[ir.Node, NodeWork]
    types: Types
    owner: Mapping[ir.Node, int]
    readers: Readers

    def enters(self, node: ir.Node, index: int) -> list[ir.Value]:
        return [v for v in activations_read(node) if (maker := v.producer()) is None or self.owner[maker] != index]

    def leaves(self, value: ir.Value, index: int) -> bool:
        return value.is_graph_output() or any(self.owner[reader] != index for reader in self.readers.get(value, ()))


def _block(index: int, group: tuple[ir.Node, ...], sight: _Sight, counted: set[ir.Value]) -> Block:
    work = [sight.work[node] for node in group]
    flops: dict[str, float] = {}
    for each in work:
        for name, count in each.by_class.items():
            flops[name] = flops.get(name, 0.0) + count
    entering = dict.fromkeys(value for node in group for value in sight.enters(node, index))
    leaving = [value for node in group for value in node.outputs if sight.leaves(value, index)]
    fresh = dict.fromkeys(value for node in group for value in weights_read(node) if value not in counted)
    counted.update(fresh)
    loops = tuple(each.loop for each in work if each.loop is not None)
    heaviest = max(range(len(group)), key=lambda at: (work[at].op_class in _ANCHORS, work[at].flops))
    return Block(
        index=index,
        name=group[heaviest].name or f"block_{index}",
        nodes=tuple(node.name or "" for node in group),
        op_types=tuple(node.op_type for node in group),
        flops=flops,
        read_bytes=sum(_bytes(value, sight.types) for value in entering),
        write_bytes=sum(_bytes(value, sight.types) for value in leaving),
        weight_bytes=sum(value.const_value.nbytes for value in fresh if value.const_value is not None),
        touched_weight_bytes=sum(each.touched_weight_bytes for each in work),
        signature=signature_of(group, leaving, sight.types) if all(_is_fixed(loop) for loop in loops) else "",
        features=features_of(group, work, sight.types),
        loops=loops,
    )


def _is_fixed(loop: LoopWork) -> bool:
    """Whether it runs as often whatever comes in, so that what it took once tells what it takes."""
    return loop.basis != "said"


def _values(model: ir.Model, owner: Mapping[ir.Node, int], types: Types, readers: Readers) -> tuple[BlockValue, ...]:
    consumers = {value: {owner[node] for node in nodes} for value, nodes in readers.items()}
    made = sorted(((owner[node], value) for node in owner for value in node.outputs), key=lambda pair: pair[0])
    found = []
    for index, value in (*((GRAPH_INPUT, value) for value in model.graph.inputs), *made):
        elsewhere = tuple(sorted(consumers.get(value, set()) - {index}))
        if elsewhere or value.is_graph_output() or index == GRAPH_INPUT:
            leaves = value.is_graph_output()
            size = _bytes(value, types)
            found.append(BlockValue(value.name or "", size, index, elsewhere, leaves, _codec_bytes(value, types)))
    return tuple(found)


def _codec_bytes(value: ir.Value, types: Types) -> dict[str, int]:
    """The value's size by each lossy codec; none takes a value whose rank the data decide, and so its channels."""
    kind = types.get(value.name or "")
    if kind is None or value.shape is None:
        return {}
    return {name: encoded_bytes(name, kind) for name in codecs_for(kind) if name != NO_CODEC}
