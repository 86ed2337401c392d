"""Builds the pool: solves over a grid of states and sets of tiers, keeps what is needed, says how good that is.

Three kinds of plan are always in: the nominal optimum, every single-tier plan that keeps the SLA, and the best plan for
each set of tiers that can be left when others die. The others enter while they lower the worst regret over the grid
and over states drawn between its corners. Choosing from the pool at run time is in `flagsplit.splitter.pool`, which
needs no solver; what is searched where is in `flagsplit.splitter.pool_search`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flagsplit.splitter.grid import Grid
from flagsplit.splitter.limits import violations_of
from flagsplit.splitter.plan import Plan
from flagsplit.splitter.plan_maker import tier_set_name
from flagsplit.splitter.pool import Pool, PoolCertificate
from flagsplit.splitter.pool_bounds import PoolBound
from flagsplit.splitter.pool_search import PoolSearch
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.rates import (
    MJ_PER_J,
    MS_PER_S,
    REQUESTS,
    Rates,
    carbon_rates,
    energy_rates,
    price_rates,
)
from flagsplit.splitter.solvers import Solution, solve
from flagsplit.splitter.state import State

_SAME = 1e-7
"""Relative difference of costs that counts as none: far above the rounding of the flow, far below a real gain."""

_GOOD_ENOUGH = 2e-4
"""Worst regret, relative, at which no more plans are added."""


def build_pool(
    problem: Problem,
    nominal: Solution | None = None,
    grid: Grid | None = None,
    most_plans: int = 16,
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
    grid = grid or Grid.for_links(len(problem.links) + len(problem.bypasses), len(problem.graph.blocks))
    absent = {f"all-{tier.name}": why for k, tier in enumerate(problem.tiers) if (why := why_not_all_on(problem, k))}
    search = PoolSearch(problem, grid, milp_seconds)
    first = search.add(nominal.placement, nominal.route)
    for k, tier in enumerate(problem.tiers):
        if f"all-{tier.name}" not in absent:
            search.add_everywhere((k,) * len(problem.graph.blocks))
    search.run()
    return pool_of(problem, search, first, absent, most_plans)


class Searched(Protocol):
    """What was found in every state: see `flagsplit.splitter.pool_search.PoolSearch`."""

    @property
    def grid(self) -> Grid:
        """Of the states."""

    @property
    def states(self) -> Sequence[State]:
        """Corners, then states between."""

    @property
    def sampled(self) -> int:
        """How many are between."""

    @property
    def cells(self) -> Sequence[Sequence[int]]:
        """Corners of each cell."""

    @property
    def plans(self) -> Sequence[Plan]:
        """All that keep the SLA."""

    @property
    def optima(self) -> Mapping[tuple[int, ...], NDArray[np.float64]]:
        """By set of tiers, the least score in each state."""

    @property
    def exact(self) -> bool:
        """Whether these are proven."""


def pool_of(problem: Problem, search: Searched, first: int, absent: Mapping[str, str], most_plans: int = 16) -> Pool:
    """The pool of what was found.

    Args:
        problem: what was searched.
        search: what was found.
        first: index of the nominal optimum in the plans that were found.
        absent: single-tier plans that are not among them, to the reason.
        most_plans: as for `build_pool`.
    """
    candidates = _Candidates(problem, search.plans, [problem.nominal, *search.states])
    chosen = candidates.select(first, search, most_plans)
    return _make_pool(problem, candidates, chosen, absent, _certify(candidates, chosen, search))


def why_not_all_on(problem: Problem, tier: int) -> str | None:
    """Why the whole graph cannot run on one tier, or None if it can."""
    barred = np.flatnonzero(~problem.constraints.allowed[:, tier])
    if barred.size:
        block = int(barred[0])
        more = f" (and {barred.size - 1} more blocks)" if barred.size > 1 else ""
        why = problem.constraints.reasons.get((block, tier), "left out")
        return f"block {problem.graph.blocks[block].name!r}{more} cannot run there: {why}"
    broken = violations_of(problem, (tier,) * len(problem.graph.blocks))
    return "; ".join(str(violation) for violation in broken) or None


def bias_of(problem: Problem, plan: Plan) -> float:
    """What a plan's score holds beside latency: its weighted price, energy and carbon."""
    weights, figures = problem.sla.objective, plan.predicted
    energy_j = figures.first_tier_energy_j if problem.sla.energy_scope == "first" else figures.total_energy_j
    price = weights.price * plan.features.price_usd * REQUESTS
    return price + weights.energy * energy_j + weights.carbon * plan.features.carbon_g * REQUESTS


def bounds_of(problem: Problem, plans: Sequence[Plan]) -> tuple[PoolBound, ...]:
    """The SLA's bounds on price, energy and carbon, as functions of the state."""
    bounds, first = problem.sla.bounds, problem.sla.energy_scope == "first"
    found = []
    if bounds.price_per_1k_usd is not None:
        values = {plan.name: plan.predicted.price_per_1k_usd for plan in plans}
        measure = problem.costs.usd_per_s * REQUESTS, price_rates(problem).times(REQUESTS)
        found.append(_bound(problem, "price_per_1k_usd", bounds.price_per_1k_usd, plans, values, measure))
    if bounds.energy_mj is not None:
        joules = {p.name: p.predicted.first_tier_energy_j if first else p.predicted.total_energy_j for p in plans}
        values = {name: energy_j * MJ_PER_J for name, energy_j in joules.items()}
        scope = np.array([not first or k == 0 for k in range(len(problem.tiers))])
        measure = problem.costs.power_w * scope * MJ_PER_J, energy_rates(problem).times(MJ_PER_J)
        found.append(_bound(problem, "energy_mj", bounds.energy_mj, plans, values, measure))
    if bounds.carbon_per_1k_g is not None:
        values = {plan.name: plan.predicted.carbon_per_1k_g for plan in plans}
        measure = problem.costs.power_w * problem.costs.carbon_g_per_j * REQUESTS, carbon_rates(problem).times(REQUESTS)
        found.append(_bound(problem, "carbon_per_1k_g", bounds.carbon_per_1k_g, plans, values, measure))
    return tuple(found)


def _bound(
    problem: Problem,
    name: str,
    limit: float,
    plans: Sequence[Plan],
    values: Mapping[str, float],
    measure: tuple[NDArray[np.float64], Rates],
) -> PoolBound:
    """A bound whose busy seconds, and whose seconds of sending, count as long as they take.

    Bytes over by-passes count what they do at the nominal state.
    """
    nominal, (per_second, charged) = problem.nominal, measure
    bypasses = [0.0] * len(problem.bypasses)
    line = slice(len(problem.links))
    rates = [
        *per_second,
        *(charged.up_byte / np.array(nominal.up_s_per_byte[line])),
        *bypasses,
        *(charged.down_byte / np.array(nominal.down_s_per_byte[line])),
        *bypasses,
        *[0.0] * (2 * len(nominal.up_s_per_message)),
    ]
    moving = np.array(rates) * nominal.vector()
    fixed = {plan.name: max(0.0, values[plan.name] - float(plan.features.latency_vector() @ moving)) for plan in plans}
    return PoolBound(name, limit, fixed, tuple(float(rate) for rate in rates))


class _Candidates:
    """Plans that keep the SLA, with their score in the nominal state (column 0) and every state of the search."""

    def __init__(self, problem: Problem, plans: Sequence[Plan], states: Sequence[State]) -> None:
        self.plans = list(plans)
        self.bias = np.array([bias_of(problem, plan) for plan in plans])
        phi = np.array([plan.features.latency_vector() for plan in plans])
        theta = np.stack([state.vector() for state in states], axis=1)
        if problem.sla.objective.goal == "throughput":
            stages = plans[0].features.stages
            self.costs: NDArray[np.float64] = np.stack(
                [(phi[:, :stages] * column[:stages]).max(axis=1) for column in theta.T], axis=1
            )
        else:
            self.costs = problem.sla.objective.latency * (phi @ theta) + self.bias[:, np.newaxis]
        self._used = [frozenset(plan.placement) for plan in plans]

    def usable(self, tiers: Sequence[int]) -> NDArray[np.bool_]:
        """Which candidates compute on these tiers only."""
        return np.array([used <= set(tiers) for used in self._used])

    def select(self, first: int, search: Searched, most: int) -> list[int]:
        """Indices of the plans to ship, the nominal optimum first."""
        chosen = dict.fromkeys([first])
        singles: dict[frozenset[int], list[int]] = {}
        for i, used in enumerate(self._used):
            if len(used) == 1:
                singles.setdefault(used, []).append(i)
        for same in singles.values():
            chosen[min(same, key=lambda i: (self.costs[i, 0], i))] = None
        for tiers in search.optima:
            usable = self.usable(tiers)
            if usable.any():
                chosen[int(np.where(usable, self.costs[:, 0], np.inf).argmin())] = None
        regret = self._regret(search)
        while len(chosen) < most:
            now = regret[list(chosen)].min(axis=0)
            if now.max(initial=0.0) <= _GOOD_ENOUGH:
                break
            # The worst point decides; among plans that help it alike, the one that helps everywhere.
            gains = np.minimum(regret, now)
            best = min(range(len(regret)), key=lambda i: (gains[i].max(), gains[i].sum()))
            if best in chosen or gains[best].sum() >= now.sum():
                break
            chosen[best] = None
        return list(chosen)

    def _regret(self, search: Searched) -> NDArray[np.float64]:
        """Relative excess of every candidate over the best candidate, for each set of tiers and state."""
        columns = []
        for tiers in search.optima:
            usable = self.usable(tiers)
            if usable.any():
                costs = np.where(usable[:, np.newaxis], self.costs[:, 1:], np.inf)
                columns.append(excess(costs, costs.min(axis=0)))
        # Out of reach is worse than any regret, but two plans out of reach must still compare.
        return np.minimum(np.concatenate(columns, axis=1), 1e12) if columns else np.zeros((len(self.plans), 0))


def excess(costs: NDArray[np.float64], best: NDArray[np.float64]) -> NDArray[np.float64]:
    """Relative excess of costs over the best, 0 where both are 0."""
    scale = np.maximum(best, np.finfo(np.float64).tiny)
    with np.errstate(over="ignore"):  # of a best cost of nearly nothing: infinitely more is what it says
        relative: NDArray[np.float64] = np.maximum(costs - best, 0.0) / scale
    return relative


def _certify(candidates: _Candidates, chosen: Sequence[int], search: Searched) -> PoolCertificate:
    cells = certified = 0
    worst = sampled = 0.0
    corners_end = len(search.states) - search.sampled
    for tiers, optima in search.optima.items():
        usable = candidates.usable(tiers)
        rows = [i for i in chosen if usable[i]]
        regret = excess(candidates.costs[rows, 1:], optima)
        sampled = max(sampled, float(regret[:, corners_end:].min(axis=0, initial=np.inf).max(initial=0.0)))
        for corners in search.cells:
            cells += 1
            if search.exact:
                bound = float(regret[:, corners].max(axis=1).min(initial=np.inf))
                certified += bound <= _SAME
                worst = max(worst, bound)
    grid = search.grid
    return PoolCertificate(
        exact=search.exact,
        cells=cells,
        certified_cells=certified,
        regret_bound=worst if search.exact else None,
        bandwidth_factors=(min(grid.bandwidth), max(grid.bandwidth)),
        rtt_factors=(min(grid.rtt), max(grid.rtt)),
        slowdown_factors=(min(grid.slowdown), max(grid.slowdown)),
        sampled=search.sampled,
        sampled_regret=sampled if search.exact else None,
    )


def _make_pool(
    problem: Problem,
    candidates: _Candidates,
    chosen: Sequence[int],
    absent: Mapping[str, str],
    certificate: PoolCertificate,
) -> Pool:
    first, *rest = chosen
    order = [first, *sorted(rest, key=lambda i: (candidates.costs[i, 0], candidates.plans[i].placement, i))]
    seen: dict[str, int] = {}
    plans = []
    for i in order:
        if problem.steps > 1:
            plans.append(candidates.plans[i])
            continue
        base = tier_set_name(problem.tier_names, candidates.plans[i].placement)
        seen[base] = seen.get(base, 0) + 1
        numbered = "+" in base or seen[base] > 1
        plans.append(replace(candidates.plans[i], name=f"{base}-{seen[base]}" if numbered else base))
    bound_ms = problem.sla.bounds.latency_ms
    return Pool(
        plans=tuple(plans),
        latency_weight=problem.sla.objective.latency,
        bias=tuple(float(candidates.bias[i]) for i in order),
        latency_bound_s=None if bound_ms is None else bound_ms / MS_PER_S,
        absent=dict(absent),
        certificate=certificate,
        goal=problem.sla.objective.goal,
        preferred=_preferred(problem, plans),
        bounds=bounds_of(problem, plans),
    )


def _preferred(problem: Problem, plans: Sequence[Plan]) -> str | None:
    """The plan that the mode wants whenever it can be had."""
    wanted = {"prefer_on_device": 0, "prefer_in_cloud": len(problem.tiers) - 1}.get(problem.sla.mode or "")
    return next((plan.name for plan in plans if plan.used_tiers == (wanted,)), None)
