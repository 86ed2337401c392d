"""Plans that a build ships besides those that the pool needs: baselines to measure, or placements of the user's own.

What the pool needs is found in `flagsplit.splitter.pool_builder`; the session chooses among all plans alike.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from flagsplit.errors import PolicyError
from flagsplit.splitter.evaluate import Usage
from flagsplit.splitter.pipeline import PlanningResult
from flagsplit.splitter.plan_maker import make_plan
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.rates import REQUESTS, energy_rates

ExtraPlans = Callable[[Problem], Mapping[str, Sequence[int]]]
"""Given what is to be solved, further placements by name: the tier's position for each block."""


def add_plans(planning: PlanningResult, extra: ExtraPlans) -> PlanningResult:
    """The same planning with further plans at the end of the pool; a placement that the pool has is not added again.

    Raises:
        PolicyError: a placement does not fit the problem, or its name is taken.
    """
    problem, pool = planning.problem, planning.pool
    plans, bias = list(pool.plans), list(pool.bias)
    known = {plan.placement for plan in plans}
    for name, placement in extra(problem).items():
        _check(problem, name, placement)
        if tuple(placement) in known:
            continue
        known.add(tuple(placement))
        plans.append(make_plan(problem, placement, name))
        bias.append(_bias(problem, placement))
    return replace(planning, pool=replace(pool, plans=tuple(plans), bias=tuple(bias)))


def _check(problem: Problem, name: str, placement: Sequence[int]) -> None:
    blocks, tiers = problem.constraints.allowed.shape
    if len(placement) != blocks or not all(0 <= tier < tiers for tier in placement):
        raise PolicyError(f"plan {name!r}: expected a tier from 0 to {tiers - 1} for each of {blocks} blocks")
    for block, tier in enumerate(placement):
        if not problem.constraints.allowed[block, tier]:
            why = problem.constraints.reasons[block, tier]
            block_name, tier_name = problem.graph.blocks[block].name, problem.tiers[tier].name
            raise PolicyError(f"plan {name!r}: block {block_name!r} cannot run on {tier_name}: {why}")


def _bias(problem: Problem, placement: Sequence[int]) -> float:
    """The weighted price and energy, as `Pool.bias` has them."""
    usage = Usage.for_objective(problem, np.array([placement], dtype=np.int64))
    weights = problem.sla.objective
    energy = usage.measure(energy_rates(problem)) * weights.energy
    return float((usage.price_usd * (weights.price * REQUESTS) + energy)[0])
