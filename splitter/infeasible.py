"""What would have to give where no plan keeps the SLA: for each limit, the least that is enough or can be reached."""

import math

from flagsplit.splitter import milp
from flagsplit.splitter.limits import memory_limit
from flagsplit.splitter.milp_form import Goal
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.rates import bound_rates
from flagsplit.splitter.sla import BYTES_PER_MB

_PROVEN = 1e-6


def limits_of(problem: Problem) -> milp.Limits:
    """The problem's caps and bounds in the form that the programs take; caps that cannot bind are left out."""
    caps = {
        name: float(cap) / BYTES_PER_MB
        for name, cap in zip(problem.tier_names, problem.memory_bytes, strict=True)
        if cap < problem.everything_bytes
    }
    return milp.Limits(bound_rates(problem), caps)


def why_infeasible(problem: Problem, limits: milp.Limits, seconds: float) -> str:
    """Which limit to relax and how far; if no single one helps, the best that each can reach on its own."""
    names = milp.named_limits(limits)
    share = seconds / max(2 * len(names), 1)
    helps = {name: _least(problem, limits, name, share, alone=False) for name in names}
    if not names:
        return "no plan keeps the SLA"
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
    goal: Goal = tier if tier is not None else limits.measures[name][0]
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
