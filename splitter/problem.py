"""One placement problem: a graph, a line of tiers, an SLA, and the arrays that the solvers share."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from flagsplit.errors import PolicyError
from flagsplit.flagir.blockgraph import GRAPH_INPUT, BlockGraph
from flagsplit.splitter.constraints import Constraints, Support, build_constraints
from flagsplit.splitter.costs import CostModel, Tier, model_costs
from flagsplit.splitter.links import Link
from flagsplit.splitter.sla import BYTES_PER_MB, SLA
from flagsplit.splitter.state import State


@dataclass(frozen=True, eq=False)
class ValueTable:
    """The graph's values as arrays; the request itself is pseudo-block `n`, always on tier 0.

    It produces every graph input and consumes every graph output, which charges the way there and back.

    Attributes:
        size_bytes: by value.
        producer: by value, block index or n.
        endpoints: producer and consumers of all values, one value after the other.
        starts: by value, where its endpoints start.
        first_live, last_live: by value, block indices between which it is held; last < first: never.
    """

    size_bytes: NDArray[np.float64]
    producer: NDArray[np.int64]
    endpoints: NDArray[np.int64]
    starts: NDArray[np.int64]
    first_live: NDArray[np.int64]
    last_live: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Problem:
    """Everything a solver needs. Make it with `make_problem`.

    Attributes:
        predecessors: by block, the blocks whose results it needs.
        memory_bytes: by tier, cap on resident bytes: the SLA's, else the device's memory.
        nominal: the state in which bounds hold and figures are predicted.
    """

    graph: BlockGraph
    tiers: tuple[Tier, ...]
    links: tuple[Link, ...]
    sla: SLA
    supports: Mapping[str, Support]
    costs: CostModel
    constraints: Constraints
    values: ValueTable
    predecessors: tuple[tuple[int, ...], ...]
    weight_bytes: NDArray[np.float64]
    memory_bytes: NDArray[np.float64]
    nominal: State

    @property
    def tier_names(self) -> tuple[str, ...]:
        """Names of the tiers, in line order."""
        return tuple(tier.name for tier in self.tiers)

    def restricted_to(self, tiers: Collection[int]) -> "Problem":
        """The same problem with blocks on these tiers only; the others still relay.

        Raises PolicyError if that leaves a block without a tier.
        """
        mask = np.isin(np.arange(len(self.tiers)), list(tiers))
        allowed = self.constraints.allowed & mask
        stuck = np.flatnonzero(~allowed.any(axis=1))
        if stuck.size:
            block = int(stuck[0])
            why = "; ".join(f"not {self.tiers[k].name}: {self.constraints.reasons[block, k]}" for k in sorted(tiers))
            raise PolicyError(f"block {self.graph.blocks[block].name!r} has no tier left: {why}")
        return replace(self, constraints=replace(self.constraints, allowed=allowed))

    def with_sla(self, sla: SLA) -> "Problem":
        """The same graph, devices and costs under another SLA."""
        constraints = build_constraints(self.graph, self.tier_names, sla, self.supports)
        return replace(self, sla=sla, constraints=constraints, memory_bytes=_memory_caps(self.tiers, sla))


def make_problem(
    graph: BlockGraph,
    tiers: Sequence[Tier],
    links: Sequence[Link],
    sla: SLA | None = None,
    supports: Mapping[str, Support] | None = None,
    costs: CostModel | None = None,
) -> Problem:
    """Put a problem together and check that it makes sense.

    Args:
        graph: blocks and values.
        tiers: the line, the requester's own tier first.
        links: `links[i]` joins `tiers[i]` and `tiers[i + 1]`.
        sla: the policy; the default minimizes latency.
        supports: by tier name, what it cannot run; a tier without an entry runs everything.
        costs: replaces the modelled costs, for instance by measured ones.

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
    return Problem(
        graph=graph,
        tiers=tuple(tiers),
        links=tuple(links),
        sla=sla,
        supports=supports or {},
        costs=costs or model_costs(graph, tiers, links),
        constraints=build_constraints(graph, names, sla, supports or {}),
        values=_value_table(graph),
        predecessors=_predecessors(graph),
        weight_bytes=np.array([block.weight_bytes for block in graph.blocks], dtype=np.float64),
        memory_bytes=_memory_caps(tiers, sla),
        nominal=State.nominal(links),
    )


def _predecessors(graph: BlockGraph) -> tuple[tuple[int, ...], ...]:
    needs: list[dict[int, None]] = [{} for _ in graph.blocks]
    for value in graph.values:
        for consumer in value.consumers if value.producer != GRAPH_INPUT else ():
            needs[consumer][value.producer] = None
    return tuple(tuple(need) for need in needs)


def _memory_caps(tiers: Sequence[Tier], sla: SLA) -> NDArray[np.float64]:
    return np.array(
        [
            sla.memory_mb[tier.name] * BYTES_PER_MB if tier.name in sla.memory_mb else tier.device.memory.value
            for tier in tiers
        ]
    )


def _value_table(graph: BlockGraph) -> ValueTable:
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
        size_bytes=np.array([value.size_bytes for value in graph.values], dtype=np.float64),
        producer=np.array(producers, dtype=np.int64),
        endpoints=np.array(endpoints, dtype=np.int64),
        starts=np.array(starts, dtype=np.int64),
        first_live=np.array(first_live, dtype=np.int64),
        last_live=np.array(last_live, dtype=np.int64),
    )
