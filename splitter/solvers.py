"""One function that solves a placement problem, and how it decides.

The minimum cut is exact as long as no cap or bound gets in its way, and its value bounds every other plan. Where one
does, dual prices on the broken limits give a first plan, and the program of `flagsplit.splitter.milp` finishes it or
proves that there is none; then the error says what would have to give.
"""

import math
import time
from dataclasses import dataclass, replace

import numpy as np

from flagsplit.errors import PolicyError
from flagsplit.splitter import milp
from flagsplit.splitter.evaluate import Usage, memory_limit, violations
from flagsplit.splitter.mincut import CutNetwork, CutResult
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.rates import Rates, bound_rates, objective_rates
from flagsplit.splitter.sla import BYTES_PER_MB
from flagsplit.splitter.state import State

_PROVEN = 1e-6
_DUAL_STEPS = 10


@dataclass(frozen=True)
class Solution:
    """The answer to a placement problem.

    Attributes:
        placement: tier index of each block.
        objective: the SLA's weighted objective, in seconds where the latency weight is 1.
        bound: proven lower bound on the objective of any plan that keeps the SLA.
        solver: "min-cut", "milp-highs" or "dual-prices".
        seconds: wall time it took.
    """

    placement: tuple[int, ...]
    objective: float
    bound: float
    solver: str
    seconds: float

    @property
    def gap(self) -> float:
        """Relative distance between objective and bound; 0 is proven optimal."""
        return max(0.0, (self.objective - self.bound) / self.objective) if self.objective > 0 else 0.0

    @property
    def proven(self) -> bool:
        """Whether the placement is optimal up to rounding."""
        return self.gap <= _PROVEN


def solve(
    problem: Problem, state: State | None = None, milp_seconds: float = 10.0, *, diagnose: bool = True
) -> Solution:
    """The best placement under the problem's SLA.

    Args:
        problem: what to place where.
        state: theta that the objective is taken in, nominal by default; bounds always hold at the nominal state.
        milp_seconds: time limit for the exact search when a cap or bound is broken by the plain optimum.
        diagnose: whether to spend more time on finding out what would have to give if nothing keeps the SLA.

    Raises:
        PolicyError: no placement keeps the caps and bounds; the message says what would have to give.
    """
    started = time.perf_counter()
    rates = objective_rates(problem, state or problem.nominal)
    network = CutNetwork(problem, problem.constraints.allowed)
    cut = network.least(rates)
    if cut.exact and not violations(problem, cut.placement):
        return Solution(cut.placement, cut.objective, cut.bound, "min-cut", time.perf_counter() - started)
    solution = _solve_limited(problem, rates, network, cut, milp_seconds, diagnose)
    return replace(solution, seconds=time.perf_counter() - started)


def _solve_limited(
    problem: Problem, rates: Rates, network: CutNetwork, cut: CutResult, milp_seconds: float, diagnose: bool
) -> Solution:
    limits = limits_of(problem)
    start = _dual_prices(problem, rates, network, limits)
    found = milp.minimize(problem, rates, limits, milp_seconds, start.placement if start else None)
    if found.infeasible and start is None:
        raise PolicyError(_why_infeasible(problem, limits, milp_seconds) if diagnose else "no plan keeps the SLA")
    bound = max(cut.bound, found.bound if math.isfinite(found.bound) else -math.inf)
    if found.placement is not None and (start is None or found.value <= start.objective):
        return Solution(found.placement, found.value, min(bound, found.value), "milp-highs", 0.0)
    if start is not None:
        return Solution(start.placement, start.objective, min(bound, start.objective), "dual-prices", 0.0)
    raise PolicyError(
        f"no plan that keeps {', '.join(milp.named_limits(limits))} was found in {milp_seconds:g} s, nor proof that "
        f"there is none: allow more time or relax one"
    )


def limits_of(problem: Problem) -> milp.Limits:
    """The problem's caps and bounds in the form that the program takes."""
    caps = problem.memory_bytes / BYTES_PER_MB
    return milp.Limits(bound_rates(problem), dict(zip(problem.tier_names, caps.tolist(), strict=True)))


def _dual_prices(problem: Problem, rates: Rates, network: CutNetwork, limits: milp.Limits) -> CutResult | None:
    """The best plan that keeps the limits, among cuts under rising prices on what they limit, and single tiers."""
    reference = max(network.least(rates).objective, 1e-12)
    pressures = [
        _weights_on(problem, k, 1 / max(cap, 1.0)) for k, cap in enumerate(problem.memory_bytes) if np.isfinite(cap)
    ]
    pressures += [measure.times(1 / limit) for measure, limit in limits.measures.values()]
    tried = {network.least(rates + p.times(reference * 4.0**i)).placement for p in pressures for i in _powers()}
    every = pressures[0]
    for pressure in pressures[1:]:
        every += pressure
    tried |= {network.least(rates + every.times(reference * 4.0**i)).placement for i in _powers()}
    allowed = network.allowed.all(axis=0)
    tried.add(network.least(rates).placement)
    tried |= {(int(k),) * len(network.allowed) for k in np.flatnonzero(allowed)}
    kept = [_measured(problem, rates, p) for p in sorted(tried) if not violations(problem, p)]
    return min(kept, key=lambda result: result.objective, default=None)


def _powers() -> range:
    return range(-_DUAL_STEPS // 2, _DUAL_STEPS // 2)


def _measured(problem: Problem, rates: Rates, placement: tuple[int, ...]) -> CutResult:
    value = float(Usage(problem, np.array([placement])).measure(rates)[0])
    return CutResult(placement, value, -math.inf)


def _weights_on(problem: Problem, tier: int, price: float) -> Rates:
    """A measure that charges a tier for the weight bytes placed on it."""
    unary = np.zeros_like(problem.costs.seconds)
    unary[:, tier] = problem.weight_bytes * price
    nothing = np.zeros(len(problem.links))
    return Rates(unary, nothing, nothing, nothing, nothing)


def _why_infeasible(problem: Problem, limits: milp.Limits, seconds: float) -> str:
    """Which limit to relax and how far; if no single one helps, the best that each can reach on its own."""
    names = milp.named_limits(limits)
    share = seconds / (2 * len(names))
    helps = {name: _least(problem, limits, name, share, alone=False) for name in names}
    advice = [
        f"{name} {_given(limits, name):.6g} -> {_reached(least)}" for name, least in helps.items() if least.placement
    ]
    if advice:
        return f"no plan keeps the SLA; any one of these changes makes it possible: {'; '.join(advice)}"
    known = "is enough" if all(least.infeasible for least in helps.values()) else "was found to be enough in time"
    reach = {name: _least(problem, limits, name, share, alone=True) for name in names}
    broken = [
        f"{name} {_given(limits, name):.6g}, reachable at best {_reached(least)}"
        for name, least in reach.items()
        if least.placement and least.value > _given(limits, name)
    ]
    story = "; ".join(broken) or f"{', '.join(names)} contradict each other"
    return f"no plan keeps the SLA, and no single change {known}: {story}; relax more than one"


def _given(limits: milp.Limits, name: str) -> float:
    for tier, cap in limits.memory_mb.items():
        if memory_limit(tier) == name:
            return cap
    return limits.measures[name][1]


def _least(problem: Problem, limits: milp.Limits, name: str, seconds: float, *, alone: bool) -> milp.MilpResult:
    """The least value of one limited quantity under the other limits, or under none."""
    others = milp.Limits(
        {} if alone else {key: limit for key, limit in limits.measures.items() if key != name},
        {} if alone else {tier: cap for tier, cap in limits.memory_mb.items() if memory_limit(tier) != name},
    )
    tier = next((tier for tier in limits.memory_mb if memory_limit(tier) == name), None)
    goal: Rates | str = tier if tier is not None else limits.measures[name][0]
    return milp.minimize(problem, goal, others, seconds)


def _reached(least: milp.MilpResult) -> str:
    """The least value, marked where the search ended before it was proven to be the least."""
    return _up(least.value) + (" or less" if least.bound < least.value * (1 - _PROVEN) - _PROVEN else "")


def _up(value: float) -> str:
    """A figure with six digits that is not below `value`, so that it would do as the new limit."""
    if value <= 0:
        return "0"
    step: float = 10.0 ** (math.floor(math.log10(value)) - 5)
    return f"{math.ceil(value / step - 1e-9) * step:.6g}"
