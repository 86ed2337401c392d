"""Putting codecs on a placed graph: an Encode where a value is made, a Decode on each tier that reads it.

Nothing is cut here. Once the nodes are placed, `cut_into_steps` cuts at the encoded tensors by itself.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from flagsplit.errors import ModelError
from flagsplit.flagir.codecs.functions import DOMAIN, DOMAIN_VERSION, function
from flagsplit.flagir.codecs.names import encoded_name
from flagsplit.flagir.codecs.table import NO_CODEC, Codec, codec, encoded_forms
from flagsplit.flagir.placement import plans_on, read_placement
from flagsplit.flagir.reads import readers_of


@dataclass(frozen=True)
class BoundaryCut:
    """A value that leaves the tier of its producer in one direction.

    Attributes:
        value: the value's name.
        from_tier: position of the tier that makes it; tier 0 has the graph's inputs.
        to_tier: position of the farthest tier that this is about; those between read the same.
        codec: how it travels.
    """

    value: str
    from_tier: int
    to_tier: int
    codec: str = NO_CODEC


def boundary_cuts(model: ir.Model) -> tuple[BoundaryCut, ...]:
    """What nodes of other tiers read under the one plan of a model, by producer, upward before downward.

    Answers that go back to tier 0 are not among them: a graph output leaves as it was made.

    Raises:
        ModelError: the model has no plan or several.
    """
    placed = _Placed(model)
    found = []
    for name, value in placed.values.items():
        home = placed.home(value)
        away = sorted(placed.tier(reader) for reader in placed.readers.get(value, ()))
        if away and away[-1] > home:
            found.append(BoundaryCut(name, home, away[-1]))
        if away and away[0] < home:
            found.append(BoundaryCut(name, home, away[0]))
    return tuple(found)


def apply_codecs(model: ir.Model, cuts: Iterable[BoundaryCut]) -> None:
    """Put codecs on a placed model, in place.

    A value is encoded once by each codec that it travels with, on the tier that makes it, and decoded once on each tier
    that reads it. A tier takes the cut that ends nearest beyond it; a tier that no cut reaches, and the tier that made
    the value, read the value itself, and so does whoever reads the graph's outputs.

    Args:
        model: a canonical model with one plan.
        cuts: what travels how; those of codec "none" and those left out travel as they are.

    Raises:
        ModelError: the model has no plan or several, or a cut names a value that does not travel that way or that its
            codec does not take. The model is as it was.
    """
    placed = _Placed(model)
    hops = [hop for each in _by_value(cuts).values() for hop in _hops(placed, each)]
    names = _Names(model)
    encoded: dict[tuple[str, str], Sequence[ir.Value]] = {}
    for hop in hops:
        key = hop.value.name or "", hop.codec.name
        if key not in encoded:
            encoded[key] = _encode(placed, hop, names)
        _decode(placed, hop, encoded[key], names)
    for name in dict.fromkeys(way + hop.codec.functions for hop in hops for way in ("Encode", "Decode")):
        made = function(name)
        model.functions[made.identifier()] = made
        model.opset_imports[DOMAIN] = DOMAIN_VERSION


class _Placed:
    """A model under its one plan."""

    def __init__(self, model: ir.Model) -> None:
        plans = plans_on(model)
        if len(plans) != 1:
            raise ModelError(
                f"expected a model with one plan, came one with {len(plans)} ({', '.join(plans) or 'none'}); "
                f"codecs belong to a plan"
            )
        (plan,) = plans
        self.graph = model.graph
        self.configuration = next(each for each in model.device_configurations if each.name == plan)
        self._placement = read_placement(model, plan)
        self.readers = readers_of(model.graph)
        self.holders = dict(_holders(model.graph))
        made = (value for node in model.graph for value in node.outputs if value.name)
        self.values: Mapping[str, ir.Value] = {v.name or "": v for v in (*model.graph.inputs, *made)}

    def tier(self, node: ir.Node) -> int:
        return self._placement[node.name or ""]

    def home(self, value: ir.Value) -> int:
        maker = value.producer()
        return self.tier(maker) if maker is not None else 0

    def place(self, node: ir.Node, tier: int) -> None:
        node.set_pipeline_stage(self.configuration, tier)


def _holders(graph: ir.Graph) -> Iterator[tuple[ir.Node, ir.Node]]:
    """For each node, subgraphs included, the node of the main graph that it is or that holds it."""
    holder: ir.Node | None = None
    for node in ir.traversal.RecursiveGraphIterator(graph):
        holder = node if node.graph is graph or holder is None else holder
        yield node, holder


@dataclass(frozen=True)
class _Hop:
    """A value that one tier gets from another by a codec."""

    value: ir.Value
    from_tier: int
    to_tier: int
    codec: Codec
    readers: tuple[ir.Node, ...]


def _by_value(cuts: Iterable[BoundaryCut]) -> dict[tuple[str, int, bool], list[BoundaryCut]]:
    """The cuts of each value and direction, nearest first.

    Raises:
        ModelError: two cuts of a value end at the same tier.
    """
    found: dict[tuple[str, int, bool], list[BoundaryCut]] = {}
    for cut in cuts:
        found.setdefault((cut.value, cut.from_tier, cut.to_tier > cut.from_tier), []).append(cut)
    for each in found.values():
        each.sort(key=lambda cut: abs(cut.to_tier - cut.from_tier))
        for one, other in itertools.pairwise(each):
            if one.to_tier == other.to_tier:
                raise ModelError(f"value {one.value!r} has two cuts that end at tier {one.to_tier}; give one")
    return found


def _hops(placed: _Placed, cuts: Sequence[BoundaryCut]) -> list[_Hop]:
    """What the cuts of one value in one direction mean, tier by tier."""
    hops: list[_Hop] = []
    done: set[int] = set()
    for cut in cuts:
        value = placed.values.get(cut.value)
        if value is None or placed.home(value) != cut.from_tier:
            where = "no such value" if value is None else f"made on tier {placed.home(value)}"
            raise ModelError(f"expected a value of tier {cut.from_tier}, came {cut.value!r}: {where}")
        low, high = sorted((cut.from_tier, cut.to_tier))
        tiers = {placed.tier(reader) for reader in placed.readers.get(value, ())} - done - {cut.from_tier}
        reached = sorted(tier for tier in tiers if low <= tier <= high)
        if not reached and cut.codec != NO_CODEC:
            why = "it is an answer, which leaves as it is" if value.is_graph_output() else "no node there reads it"
            raise ModelError(
                f"value {cut.value!r} does not go from tier {cut.from_tier} to tier {cut.to_tier}: {why}; "
                f"give it codec 'none'"
            )
        done.update(reached)
        if cut.codec == NO_CODEC:
            continue
        chosen = codec(cut.codec)
        encoded_forms(chosen, value.dtype, _dims(value))
        for tier in reached:
            readers = tuple(node for node in placed.readers[value] if placed.tier(node) == tier)
            hops.append(_Hop(value, cut.from_tier, tier, chosen, readers))
    return hops


def _dims(value: ir.Value) -> list[int | str]:
    return [dim if isinstance(dim, int) else str(dim.value) for dim in value.shape or ()]


def _attributes(hop: _Hop) -> dict[str, int]:
    return {} if hop.codec.axis is None else {"axis": hop.codec.axis(len(_dims(hop.value)))}


def _encode(placed: _Placed, hop: _Hop, names: "_Names") -> Sequence[ir.Value]:
    forms = encoded_forms(hop.codec, hop.value.dtype, _dims(hop.value))
    stem = f"{hop.value.name}.{hop.codec.name}"
    outputs = [
        ir.Value(
            name=names.value(encoded_name(hop.value.name or "", hop.codec.name, role)),
            type=ir.TensorType(dtype),
            shape=ir.Shape(dims),
        )
        for role, (dtype, dims) in forms.items()
    ]
    node = ir.node(
        f"Encode{hop.codec.functions}",
        [hop.value],
        _attributes(hop),
        domain=DOMAIN,
        outputs=outputs,
        name=names.node(f"{stem}.encode"),
    )
    placed.place(node, hop.from_tier)
    maker = hop.value.producer()
    if maker is None:
        placed.graph.insert_before(placed.graph[0], node)
    else:
        placed.graph.insert_after(maker, node)
    return outputs


def _decode(placed: _Placed, hop: _Hop, encoded: Sequence[ir.Value], names: "_Names") -> None:
    stem = f"{hop.value.name}.{hop.codec.name}.at_{hop.to_tier}"
    output = ir.Value(name=names.value(stem), type=hop.value.type, shape=hop.value.shape)
    node = ir.node(
        f"Decode{hop.codec.functions}",
        encoded,
        _attributes(hop),
        domain=DOMAIN,
        outputs=[output],
        name=names.node(f"{stem}.decode"),
    )
    placed.place(node, hop.to_tier)
    placed.graph.insert_before(hop.readers[0], node)
    for user, index in tuple(hop.value.uses()):
        if placed.holders.get(user) in hop.readers:
            user.replace_input_with(index, output)


class _Names:
    """Names that a graph does not have yet."""

    def __init__(self, model: ir.Model) -> None:
        self._values = {name for scope in model.graphs() for name in ir.convenience.create_value_mapping(scope)}
        self._nodes = {node.name or "" for node in model.graph}

    def value(self, wanted: str) -> str:
        return _fresh(wanted, self._values)

    def node(self, wanted: str) -> str:
        return _fresh(wanted, self._nodes)


def _fresh(wanted: str, taken: set[str]) -> str:
    tries = itertools.chain([wanted], (f"{wanted}_{count}" for count in itertools.count(1)))
    name = next(each for each in tries if each not in taken)
    taken.add(name)
    return name
