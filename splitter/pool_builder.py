"""Builds the pool: solves over a grid of states and sets of tiers, keeps what is needed, says how good that is.

Three kinds of plan are always in: the nominal optimum, every single-tier plan that keeps the SLA, and the best plan for
each set of tiers that can be left when others die. The others enter while they lower the worst regret over the
grid. Choosing from the pool at run time is in `flagsplit.splitter.pool`, which needs no solver.
"""

import contextlib
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from flagsplit.errors import PolicyError
from flagsplit.splitter.evaluate import Usage
from flagsplit.splitter.limits import violations_of
from flagsplit.splitter.mincut import CutNetwork
from flagsplit.splitter.plan_maker import make_plan, tier_set_name
from flagsplit.splitter.pool import Pool, PoolCertificate
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.rates import MS_PER_S, REQUESTS, energy_rates, objective_rates
from flagsplit.splitter.solvers import Solution, solve
from flagsplit.splitter.state import State

_SAME = 1e-7
"""Relative difference of costs that counts as none: far above the rounding of the flow, far below a real gain."""


@dataclass(frozen=True)
class Grid:
    """Factors on the nominal links; the pool is built, and certified, for the box that they span."""

    bandwidth: tuple[float, ...]
    rtt: tuple[float, ...]

    @classmethod
    def for_links(cls, links: int) -> "Grid":
        """A grid whose number of states stays near 100 for any number of links."""
        if links <= 2:
            return cls((1 / 16, 1 / 4, 1.0, 4.0, 16.0), (0.25, 1.0, 4.0))
        return cls((1 / 8, 1.0, 8.0) if links == 3 else (1 / 8, 8.0), (0.25, 4.0))

    def states(self, nominal: State) -> list[State]:
        """The grid's states, bandwidth of the first link slowest, round-trip time fastest."""
        links = len(nominal.up_s_per_byte)
        factors = itertools.product(*([self.bandwidth] * links), self.rtt if links else (1.0,))
        return [nominal.scaled(factor[:-1], factor[-1]) for factor in factors]

    def cells(self, links: int) -> Iterator[list[int]]:
        """The corners of each cell, as indices into `states`."""
        shape = (len(self.bandwidth),) * links + ((len(self.rtt),) if links else (1,))
        for low in itertools.product(*(range(max(n - 1, 1)) for n in shape)):
            steps = itertools.product(*((0, 1) if n > 1 else (0,) for n in shape))
            corners = [tuple(a + b for a, b in zip(low, step, strict=True)) for step in steps]
            yield [int(np.ravel_multi_index(corner, shape)) for corner in corners]


@dataclass
class _Search:
    """What the grid search found.

    Attributes:
        optima: by set of tiers, a lower bound on the cost in every state: the optimum, save where round trips repeat.
        placements: optimal somewhere and within the SLA.
        unmet: problems on a set of tiers whose optimum broke the SLA somewhere; these need a program.
    """

    optima: dict[tuple[int, ...], NDArray[np.float64]] = field(default_factory=dict)
    placements: set[tuple[int, ...]] = field(default_factory=set)
    unmet: list[Problem] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        """Whether the optima are those of the problem with all its caps and bounds."""
        return not self.unmet


def build_pool(
    problem: Problem,
    nominal: Solution | None = None,
    grid: Grid | None = None,
    most_plans: int = 12,
    milp_seconds: float = 2.0,
) -> Pool:
    """Make the pool of a problem.

    Args:
        problem: what to place where.
        nominal: its solution at the nominal state, if it is known already.
        grid: states to solve for.
        most_plans: size to stop at; plans that are always in may exceed it.
        milp_seconds: time limit of all exact searches together, needed where a cap or bound binds.

    Raises:
        PolicyError: no plan at all keeps the SLA.
    """
    nominal = nominal or solve(problem, milp_seconds=milp_seconds)
    grid = grid or Grid.for_links(len(problem.links))
    states = grid.states(problem.nominal)
    absent = {f"all-{tier.name}": why for k, tier in enumerate(problem.tiers) if (why := why_not_all_on(problem, k))}
    search = _search(problem, states, milp_seconds)
    search.placements.add(nominal.placement)
    for k, tier in enumerate(problem.tiers):
        if f"all-{tier.name}" not in absent:
            search.placements.add((k,) * len(problem.graph.blocks))
    candidates = _Candidates(problem, sorted(search.placements), [problem.nominal, *states])
    chosen = candidates.select(nominal.placement, search, most_plans)
    return _make_pool(problem, candidates, chosen, absent, _certify(candidates, chosen, search, grid))


def why_not_all_on(problem: Problem, tier: int) -> str | None:
    """Why the whole graph cannot run on one tier, or None if it can."""
    barred = np.flatnonzero(~problem.constraints.allowed[:, tier])
    if barred.size:
        block = int(barred[0])
        more = f" (and {barred.size - 1} more blocks)" if barred.size > 1 else ""
        why = problem.constraints.reasons[block, tier]
        return f"block {problem.graph.blocks[block].name!r}{more} cannot run there: {why}"
    broken = violations_of(problem, (tier,) * len(problem.graph.blocks))
    return "; ".join(str(violation) for violation in broken) or None


def _search(problem: Problem, states: Sequence[State], milp_seconds: float) -> _Search:
    search = _Search()
    others = range(1, len(problem.tiers))
    for rest in itertools.chain.from_iterable(itertools.combinations(others, n) for n in range(len(problem.tiers))):
        try:
            part = problem.restricted_to((0, *rest))
        except PolicyError:
            continue
        _search_part(part, (0, *rest), states, search)
    _solve_unmet(problem, states, search, milp_seconds)
    return search


def _search_part(part: Problem, tiers: tuple[int, ...], states: Sequence[State], search: _Search) -> None:
    network = CutNetwork(part, part.constraints.allowed)
    cuts = [network.least(objective_rates(part, state)) for state in states]
    keeps = {placement: not violations_of(part, placement) for placement in {cut.placement for cut in cuts}}
    search.optima[tiers] = np.array([cut.bound for cut in cuts])
    search.placements |= {placement for placement, kept in keeps.items() if kept}
    if not all(keeps.values()):
        search.unmet.append(part)


def _solve_unmet(problem: Problem, states: Sequence[State], search: _Search, seconds: float) -> None:
    """Programs where the cuts broke a limit: the nominal state of each set of tiers, then two ends of the grid.

    A program for every state would take too long. The time left is shared by those that are left.
    """
    deadline = time.monotonic() + seconds
    jobs = [(part, problem.nominal) for part in search.unmet]
    jobs += [(part, state) for part in search.unmet[-1:] for state in (states[0], states[-1])]
    for i, (part, state) in enumerate(jobs):
        share = max(deadline - time.monotonic(), 0.0) / (len(jobs) - i)
        with contextlib.suppress(PolicyError):  # no plan on these tiers alone is what a missing survivor means
            search.placements.add(solve(part, state, share, diagnose=False).placement)


class _Candidates:
    """Placements that keep the SLA, with their cost in the nominal state (column 0) and every state of the grid."""

    def __init__(self, problem: Problem, placements: Sequence[tuple[int, ...]], states: Sequence[State]) -> None:
        self.placements = list(placements)
        usage = Usage(problem, np.array(self.placements))
        objective = problem.sla.objective
        priced = usage.price_usd * (objective.price * REQUESTS)
        self.bias = priced + usage.measure(energy_rates(problem)) * objective.energy
        theta = np.stack([state.vector() for state in states], axis=1)
        self.costs: NDArray[np.float64] = objective.latency * (usage.phi @ theta) + self.bias[:, np.newaxis]
        self._used = [frozenset(placement) for placement in self.placements]
        self.tier_count = len(problem.tiers)

    def usable(self, tiers: Sequence[int]) -> NDArray[np.bool_]:
        """Which candidates compute on these tiers only."""
        return np.array([used <= set(tiers) for used in self._used])

    def select(self, nominal: tuple[int, ...], search: _Search, most: int) -> list[int]:
        """Indices of the plans to ship, the nominal optimum first."""
        chosen = dict.fromkeys([self.placements.index(nominal)])
        chosen |= dict.fromkeys(i for i, used in enumerate(self._used) if len(used) == 1)
        for tiers in search.optima:
            usable = self.usable(tiers)
            if usable.any():
                chosen[int(np.where(usable, self.costs[:, 0], np.inf).argmin())] = None
        regret = self._regret(search)
        while len(chosen) < most:
            worst = regret[list(chosen)].min(axis=0).max(initial=0.0)
            gains = np.minimum(regret, regret[list(chosen)].min(axis=0))
            if worst <= _SAME:
                break
            # The worst point decides; among plans that help it alike, the one that helps everywhere.
            best = min(range(len(regret)), key=lambda i: (gains[i].max(), gains[i].sum()))
            if best in chosen:
                break
            chosen[best] = None
        return list(chosen)

    def _regret(self, search: _Search) -> NDArray[np.float64]:
        """Relative excess of every candidate over the best candidate, for each set of tiers and grid state."""
        columns = []
        for tiers in search.optima:
            usable = self.usable(tiers)
            if usable.any():
                costs = np.where(usable[:, np.newaxis], self.costs[:, 1:], np.inf)
                columns.append(excess(costs, costs.min(axis=0)))
        # Out of reach is worse than any regret, but two plans out of reach must still compare.
        return np.minimum(np.concatenate(columns, axis=1), 1e12) if columns else np.zeros((len(self.placements), 0))


def excess(costs: NDArray[np.float64], best: NDArray[np.float64]) -> NDArray[np.float64]:
    """Relative excess of costs over the best, 0 where both are 0."""
    scale = np.maximum(best, np.finfo(np.float64).tiny)
    relative: NDArray[np.float64] = np.maximum(costs - best, 0.0) / scale
    return relative


def _certify(candidates: _Candidates, chosen: Sequence[int], search: _Search, grid: Grid) -> PoolCertificate:
    links = candidates.tier_count - 1
    cells = certified = 0
    worst = 0.0
    for tiers, optima in search.optima.items():
        rows = [i for i in chosen if candidates.usable(tiers)[i]]
        regret = excess(candidates.costs[rows, 1:], optima)
        for corners in grid.cells(links):
            cells += 1
            if search.exact:
                bound = float(regret[:, corners].max(axis=1).min(initial=np.inf))
                certified += bound <= _SAME
                worst = max(worst, bound)
    return PoolCertificate(
        exact=search.exact,
        cells=cells,
        certified_cells=certified,
        regret_bound=worst if search.exact else None,
        bandwidth_factors=(min(grid.bandwidth), max(grid.bandwidth)),
        rtt_factors=(min(grid.rtt), max(grid.rtt)),
    )


def _make_pool(
    problem: Problem,
    candidates: _Candidates,
    chosen: Sequence[int],
    absent: dict[str, str],
    certificate: PoolCertificate,
) -> Pool:
    first, *rest = chosen
    order = [first, *sorted(rest, key=lambda i: (candidates.costs[i, 0], candidates.placements[i]))]
    seen: dict[str, int] = {}
    plans = []
    for i in order:
        base = tier_set_name(problem.tier_names, candidates.placements[i])
        seen[base] = seen.get(base, 0) + 1
        plans.append(make_plan(problem, candidates.placements[i], base if "+" not in base else f"{base}-{seen[base]}"))
    bound_ms = problem.sla.bounds.latency_ms
    return Pool(
        plans=tuple(plans),
        latency_weight=problem.sla.objective.latency,
        bias=tuple(float(candidates.bias[i]) for i in order),
        latency_bound_s=None if bound_ms is None else bound_ms / MS_PER_S,
        absent=absent,
        certificate=certificate,
    )
