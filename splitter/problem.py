"""One placement problem: a graph, a line of tiers, an SLA, and the arrays that the solvers share."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from flagsplit.errors import PolicyError
from flagsplit.flagir.blockgraph import GRAPH_INPUT, BlockGraph
from flagsplit.flagir.visits import readers_of_each
from flagsplit.splitter.codecs import CODEC_COSTS, NONE, allowed_codecs
from flagsplit.splitter.constraints import Constraints, Support, build_constraints
from flagsplit.splitter.costs import CostModel, Tier, check_costs, model_costs, on_other_links
from flagsplit.splitter.links import Link
from flagsplit.splitter.memory import held_bytes, memory_caps
from flagsplit.splitter.sla import SLA
from flagsplit.splitter.state import State


@dataclass(frozen=True, eq=False)
class ValueTable:
    """The graph's values as arrays; the request itself is pseudo-block `n`, always on tier 0.

    It produces every graph input and consumes every graph output, which charges the way there and back.

    Attributes:
        size_bytes: by value, as it is.
        coded_bytes: by codec and value, "none" first; infinite where the codec is not allowed.
        is_output: by value; an answer goes back to tier 0 as it is.
        producer: by value, block index or n.
        endpoints: producer and consumers of all values, one value after the other.
        starts: by value, where its endpoints start.
        first_live, last_live: by value, block indices between which it is held; last < first: never.
    """

    size_bytes: NDArray[np.float64]
    coded_bytes: NDArray[np.float64]
    is_output: NDArray[np.bool_]
    producer: NDArray[np.int64]
    endpoints: NDArray[np.int64]
    starts: NDArray[np.int64]
    first_live: NDArray[np.int64]
    last_live: NDArray[np.int64]


@dataclass(frozen=True)
class Bypass:
    """A link between two tiers that are not neighbors. Plans that run nothing in between may take it.

    Attributes:
        near, far: indices of the tiers, near < far - 1.
        link: its figures; up is towards `far`.
    """

    near: int
    far: int
    link: Link


@dataclass(frozen=True, eq=False)
class Problem:
    """Everything a solver needs. Make it with `make_problem`.

    The solvers know a line of tiers only. By-passes are other, shorter lines: `flagsplit.splitter.routes`.

    Attributes:
        codecs: names of the codecs that some value may use, "none" first.
        predecessors: by block, the blocks whose results it needs.
        held_bytes: by block and tier, what a block holds while it runs beside weights and values between blocks: the
            state of its loops, for each of the streams that the SLA wants of the tier; shape (n, K).
        memory_bytes: by tier, cap on resident bytes: the SLA's, else the device's memory.
        nominal: the state in which bounds hold and figures are predicted.
        steps: how often a request that is divided between tiers goes round between them: once, or for every token where
            a loop itself is divided (`flagsplit.splitter.layer_plans`).
    """

    graph: BlockGraph
    tiers: tuple[Tier, ...]
    links: tuple[Link, ...]
    sla: SLA
    supports: Mapping[str, Support]
    costs: CostModel
    constraints: Constraints
    values: ValueTable
    codecs: tuple[str, ...]
    bypasses: tuple[Bypass, ...]
    predecessors: tuple[tuple[int, ...], ...]
    weight_bytes: NDArray[np.float64]
    held_bytes: NDArray[np.float64]
    memory_bytes: NDArray[np.float64]
    nominal: State
    steps: int = 1

    @property
    def tier_names(self) -> tuple[str, ...]:
        """Names of the tiers, in line order."""
        return tuple(tier.name for tier in self.tiers)

    @cached_property
    def readers(self) -> list[list[int]]:
        """By block, the blocks that need its results."""
        return readers_of_each(self.predecessors)

    @cached_property
    def everything_bytes(self) -> float:
        """All weights, all values and the state of all loops together: no tier can hold more."""
        return float(self.weight_bytes.sum() + self.values.size_bytes.sum() + self.held_bytes.max(axis=1).sum())

    @cached_property
    def is_limited(self) -> bool:
        """Whether a cap or bound of the SLA may be in the way; tiers that must be used do not count."""
        bounds = self.sla.bounds.model_dump()
        caps_bind = bool((self.memory_bytes < self.everything_bytes).any())
        return caps_bind or self.sla.requests_per_s is not None or any(limit is not None for limit in bounds.values())

    @cached_property
    def all_connected(self) -> bool:
        """Whether every block depends on an input and an output on it, so that none runs without a tensor to move."""
        n = len(self.graph.blocks)
        fed, used = [False] * n, [False] * n
        for value in self.graph.values:
            for consumer in value.consumers if value.producer == GRAPH_INPUT else ():
                fed[consumer] = True
            if value.producer != GRAPH_INPUT and value.is_output:
                used[value.producer] = True
        for v, needs in enumerate(self.predecessors):
            fed[v] = fed[v] or any(fed[p] for p in needs)
        for v in reversed(range(n)):
            for p in self.predecessors[v]:
                used[p] = used[p] or used[v]
        return all(fed) and all(used) and bool((self.values.size_bytes > 0).all())

    def restricted_to(self, tiers: Collection[int]) -> "Problem":
        """The same problem with blocks on these tiers only; the others still relay.

        Raises PolicyError if that leaves a block without a tier.
        """
        mask = np.isin(np.arange(len(self.tiers)), list(tiers))
        allowed = self.constraints.allowed & mask
        stuck = np.flatnonzero(~allowed.any(axis=1))
        if stuck.size:
            block = int(stuck[0])
            left_out = "left out"
            why = "; ".join(
                f"not {self.tiers[k].name}: {self.constraints.reasons.get((block, k), left_out)}" for k in sorted(tiers)
            )
            raise PolicyError(f"block {self.graph.blocks[block].name!r} has no tier left: {why}")
        return replace(self, constraints=replace(self.constraints, allowed=allowed))

    def with_sla(self, sla: SLA) -> "Problem":
        """The same graph, devices and costs under another SLA."""
        codecs, values = _value_table(self.graph, sla)
        return replace(
            self,
            sla=sla,
            constraints=build_constraints(self.graph, self.tiers, sla, self.supports),
            held_bytes=held_bytes(self.graph, self.tiers, sla),
            memory_bytes=memory_caps(self.tiers, sla),
            values=values,
            codecs=codecs,
        )

    def with_links(self, links: Sequence[Link], bypasses: Sequence[Bypass] | None = None) -> "Problem":
        """The same graph and policy over other links."""
        return replace(
            self,
            links=tuple(links),
            bypasses=self.bypasses if bypasses is None else tuple(bypasses),
            costs=on_other_links(self.costs, range(len(self.tiers)), [tier.device for tier in self.tiers], links),
            nominal=State.nominal(links, [b.link for b in (self.bypasses if bypasses is None else bypasses)]),
        )


def make_problem(
    graph: BlockGraph,
    tiers: Sequence[Tier],
    links: Sequence[Link],
    sla: SLA | None = None,
    supports: Mapping[str, Support] | None = None,
    costs: CostModel | None = None,
    bypasses: Sequence[Bypass] = (),
) -> Problem:
    """Put a problem together and check that it makes sense.

    Args:
        graph: blocks and values.
        tiers: the line, the requester's own tier first.
        links: `links[i]` joins `tiers[i]` and `tiers[i + 1]`.
        sla: the policy; the default minimizes latency.
        supports: by tier name, what it cannot run; a tier without an entry runs everything.
        costs: replaces the modelled costs, for instance by measured ones.
        bypasses: direct links between tiers that are not neighbors.

    Raises:
        PolicyError: the line is malformed, or the SLA contradicts itself, the graph or the tiers.
    """
    sla = sla or SLA()
    names = [tier.name for tier in tiers]
    if not graph.blocks:
        raise PolicyError(f"graph {graph.name!r} has no blocks, so there is nothing to place")
    if not graph.outputs:
        raise PolicyError(f"graph {graph.name!r} has no outputs, so no request would get an answer")
    if not tiers or len(set(names)) != len(names):
        raise PolicyError(f"tiers: expected one or more with different names, got {', '.join(names) or 'none'}")
    if len(links) != len(tiers) - 1:
        raise PolicyError(f"links: expected {len(tiers) - 1} for {len(tiers)} tiers, got {len(links)}")
    _check_bypasses(bypasses, names)
    codecs, values = _value_table(graph, sla)
    costs = costs or model_costs(graph, tiers, links)
    check_costs(costs, len(graph.blocks), len(tiers))
    return Problem(
        graph=graph,
        tiers=tuple(tiers),
        links=tuple(links),
        sla=sla,
        supports=supports or {},
        costs=costs,
        constraints=build_constraints(graph, tiers, sla, supports or {}),
        values=values,
        codecs=codecs,
        bypasses=tuple(bypasses),
        predecessors=_predecessors(graph),
        weight_bytes=np.array([block.weight_bytes for block in graph.blocks], dtype=np.float64),
        held_bytes=held_bytes(graph, tiers, sla),
        memory_bytes=memory_caps(tiers, sla),
        nominal=State.nominal(links, [bypass.link for bypass in bypasses]),
    )


def _check_bypasses(bypasses: Sequence[Bypass], names: Sequence[str]) -> None:
    for bypass in bypasses:
        if not 0 <= bypass.near < bypass.far - 1 < len(names) - 1:
            line = ", ".join(names)
            raise PolicyError(f"bypass {bypass.near}-{bypass.far}: expected two tiers of {line} that are not neighbors")
    if len({(bypass.near, bypass.far) for bypass in bypasses}) != len(bypasses):
        raise PolicyError("bypass: expected one link at most between two tiers")


def _predecessors(graph: BlockGraph) -> tuple[tuple[int, ...], ...]:
    needs: list[dict[int, None]] = [{} for _ in graph.blocks]
    for value in graph.values:
        for consumer in value.consumers if value.producer != GRAPH_INPUT else ():
            needs[consumer][value.producer] = None
    return tuple(tuple(need) for need in needs)


def _value_table(graph: BlockGraph, sla: SLA) -> tuple[tuple[str, ...], ValueTable]:
    allowed = allowed_codecs(sla.accuracy, graph.values)
    codecs = (NONE, *(name for name in CODEC_COSTS if any(name in each for each in allowed)))
    coded = [
        [value.codec_bytes[name] if name in each else np.inf for value, each in zip(graph.values, allowed, strict=True)]
        for name in codecs[1:]
    ]
    plain = [value.size_bytes for value in graph.values]
    return codecs, _table(graph, np.array([plain, *coded], dtype=np.float64))


def _table(graph: BlockGraph, coded_bytes: NDArray[np.float64]) -> ValueTable:
    request = len(graph.blocks)
    endpoints: list[int] = []
    starts, first_live, last_live, producers = [], [], [], []
    for value in graph.values:
        producer = request if value.producer == GRAPH_INPUT else value.producer
        producers.append(producer)
        starts.append(len(endpoints))
        endpoints += [producer, *value.consumers]
        if value.is_output:
            endpoints.append(request)
        first_live.append(max(value.producer, 0))
        last_live.append(request - 1 if value.is_output else max((value.producer, *value.consumers)))
    return ValueTable(
        size_bytes=coded_bytes[0],
        coded_bytes=coded_bytes,
        is_output=np.array([value.is_output for value in graph.values], dtype=bool),
        producer=np.array(producers, dtype=np.int64),
        endpoints=np.array(endpoints, dtype=np.int64),
        starts=np.array(starts, dtype=np.int64),
        first_live=np.array(first_live, dtype=np.int64),
        last_live=np.array(last_live, dtype=np.int64),
    )
