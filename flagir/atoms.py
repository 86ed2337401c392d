"""The parts that segments have in common, so that a tier can hold each weight once whatever plan it runs.

An *atom* is a maximal convex group of units (blocks, mostly) that no segment of a tier divides. Every segment is a
chain of atoms: running them in order, each fed with what those before it made, is running the segment. Segments are cut
in `flagsplit.flagir.segments`.
"""

import hashlib
import heapq
import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from flagsplit.flagir.reads import activations_read, weights_read
from flagsplit.flagir.segments import Segment, segment_of
from flagsplit.flagir.visits import visits

Chains = Mapping[str, tuple[Segment, ...]]
"""By id of a segment, its atoms in the order in which they run."""


@dataclass(eq=False)
class _Group:
    """Units that stay together: their kind (the segments that have them), and who reads them."""

    kind: frozenset[int]
    units: list[int]
    readers: set[int]


def atoms_of(model: ir.Model, segments: Sequence[Segment], unit_of: Mapping[str, str]) -> Chains:
    """Divide the segments of one tier into atoms.

    Args:
        model: the model that all of them can be taken out of.
        segments: the tier's distinct segments, of all plans.
        unit_of: for each node of the model, by name, the unit that no cut divides; nodes that are not named are units
            of their own.

    Returns:
        The chain of every segment. An atom that is the same as a segment is that segment; the others have ids of their
        own.
    """
    nodes = list(model.graph)
    inside = _kinds(segments)
    units = _units(nodes, unit_of, inside)
    kinds = [inside.get(unit[0].name or "", frozenset[int]()) for unit in units]
    owner = {node: at for at, unit in enumerate(units) for node in unit}
    needed = [
        sorted({owner[maker] for node in unit for v in activations_read(node) if (maker := v.producer())} - {at})
        for at, unit in enumerate(units)
    ]
    groups = _groups(kinds, needed)
    known = {(segment.nodes, segment.inputs, segment.outputs): segment for segment in segments}
    given = {name for segment in segments for name in segment.outputs}
    made: dict[int, Segment] = {}
    for number, group in enumerate(groups):
        if kinds[group[0]]:
            atom = _atom(model, [node for at in group for node in units[at]], given)
            made[number] = known.get((atom.nodes, atom.inputs, atom.outputs), atom)
    return {
        segment.id: tuple(atom for number, atom in made.items() if at in kinds[groups[number][0]])
        for at, segment in enumerate(segments)
    }


def weight_bytes_of(model: ir.Model, segments: Sequence[Segment]) -> dict[str, int]:
    """Bytes of the initializers that each segment reads, by its id; a tensor that it reads twice counts once."""
    by_name = {node.name: node for node in model.graph}
    found = {}
    for segment in segments:
        read = dict.fromkeys(value for name in segment.nodes for value in weights_read(by_name[name]))
        found[segment.id] = sum(value.const_value.nbytes for value in read if value.const_value is not None)
    return found


def _units(
    nodes: Sequence[ir.Node], unit_of: Mapping[str, str], inside: Mapping[str, frozenset[int]]
) -> list[list[ir.Node]]:
    """Nodes of one unit that the same segments have, together; the tier's other nodes alone, nobody holds them."""
    found: dict[tuple[str, frozenset[int] | None], list[ir.Node]] = {}
    for node in nodes:
        name = node.name or ""
        unit, kind = unit_of.get(name), inside.get(name)
        found.setdefault((name, None) if unit is None or kind is None else (unit, kind), []).append(node)
    return list(found.values())


def _kinds(segments: Sequence[Segment]) -> dict[str, frozenset[int]]:
    """For each node, which segments have it."""
    inside: dict[str, set[int]] = {}
    for at, segment in enumerate(segments):
        for name in segment.nodes:
            inside.setdefault(name, set()).add(at)
    return {name: frozenset(those) for name, those in inside.items()}


def _atom(model: ir.Model, nodes: Sequence[ir.Node], given: Collection[str]) -> Segment:
    """A group as a segment. Its id says what goes in and out: it may give more than a segment of the same nodes.

    What a segment gives need not be read in this model: it may be a graph output under a name that a plan gave it.
    """
    cut = segment_of(model, {node.name or "" for node in nodes})
    inside = set(cut.nodes)
    made = [value.name or "" for node in model.graph if node.name in inside for value in node.outputs]
    outputs = tuple(name for name in made if name in given or name in cut.outputs)
    text = "\0".join(("atom", *cut.nodes, "", *cut.inputs, "", *outputs))
    return replace(cut, id=hashlib.sha256(text.encode()).hexdigest()[:16], outputs=outputs)


def _groups(kinds: Sequence[frozenset[int]], needed: Sequence[Sequence[int]]) -> list[list[int]]:
    """Units of equal kind in convex groups, as few as merging in turn gets to, in an order in which they can run."""
    numbers = {kind: number for number, kind in enumerate(dict.fromkeys(kinds))}
    stops = visits([numbers[kind] for kind in kinds], needed, len(numbers))
    elsewhere = numbers.get(frozenset())
    together: list[list[int]] = []
    for stop in stops:
        together.extend([[unit] for unit in stop.items] if stop.tier == elsewhere else [list(stop.items)])
    owner = {unit: number for number, items in enumerate(together) for unit in items}
    groups = {number: _Group(kinds[items[0]], items, set()) for number, items in enumerate(together)}
    for unit, makers in enumerate(needed):
        for maker in makers:
            if owner[maker] != owner[unit]:
                groups[owner[maker]].readers.add(owner[unit])
    alike: dict[frozenset[int], list[int]] = {}
    for number, group in groups.items():
        alike.setdefault(group.kind, []).append(number)
    alike.pop(frozenset(), None)
    for those in alike.values():
        for one, other in itertools.combinations(those, 2):
            if one in groups and other in groups and not _is_between(groups, one, other):
                _merge(groups, one, other)
    return [sorted(groups[number].units) for number in _in_order(groups)]


def _is_between(groups: Mapping[int, _Group], first: int, second: int) -> bool:
    """Whether a way leads from one group to the other through a third; merging the two would close a circle."""
    for start, end in ((first, second), (second, first)):
        seen, todo = {start}, [reader for reader in groups[start].readers if reader != end]
        while todo:
            at = todo.pop()
            if at == end:
                return True
            if at not in seen:
                seen.add(at)
                todo.extend(groups[at].readers)
    return False


def _merge(groups: dict[int, _Group], kept: int, gone: int) -> None:
    group = groups.pop(gone)
    groups[kept].units.extend(group.units)
    groups[kept].readers |= group.readers
    for other in groups.values():
        if gone in other.readers:
            other.readers.discard(gone)
            other.readers.add(kept)
    groups[kept].readers.discard(kept)


def _in_order(groups: Mapping[int, _Group]) -> list[int]:
    """A topological order of the groups, the same for the same groups."""
    waits = dict.fromkeys(groups, 0)
    for group in groups.values():
        for reader in group.readers:
            waits[reader] += 1
    ready = [number for number, count in waits.items() if not count]
    heapq.heapify(ready)
    order = []
    while ready:
        number = heapq.heappop(ready)
        order.append(number)
        for reader in groups[number].readers:
            waits[reader] -= 1
            if not waits[reader]:
                heapq.heappush(ready, reader)
    return order
