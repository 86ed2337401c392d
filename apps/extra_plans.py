"""Plans that a build ships besides those that the pool needs: baselines to measure, or placements of the user's own.

What the pool needs is found in `flagsplit.splitter.pool_builder`; the session chooses among all plans alike.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from flagsplit.errors import PolicyError
from flagsplit.splitter.pipeline import PlanningResult
from flagsplit.splitter.plan import Plan
from flagsplit.splitter.plan_maker import make_plan
from flagsplit.splitter.pool_builder import bias_of, bounds_of
from flagsplit.splitter.problem import Problem

ExtraPlans = Callable[[Problem], Mapping[str, Sequence[int] | Plan]]
"""Given what is to be solved, further plans by name: the tier's position for each block, or a plan made from it."""


def add_plans(planning: PlanningResult, extra: ExtraPlans) -> PlanningResult:
    """The same planning with further plans at the end of the pool; what the pool has is not added again.

    Raises:
        PolicyError: a placement does not fit the problem, or its name is taken.
    """
    problem, pool = planning.problem, planning.pool
    plans, bias = list(pool.plans), list(pool.bias)
    known = {(plan.placement, plan.cuts, plan.route) for plan in plans}
    for name, wanted in extra(problem).items():
        placement = wanted.placement if isinstance(wanted, Plan) else wanted
        _check(problem, name, placement)
        plan = replace(wanted, name=name) if isinstance(wanted, Plan) else make_plan(problem, placement, name)
        if (plan.placement, plan.cuts, plan.route) in known:
            continue
        known.add((plan.placement, plan.cuts, plan.route))
        plans.append(plan)
        bias.append(bias_of(problem, plan))
    return replace(planning, pool=replace(pool, plans=tuple(plans), bias=tuple(bias), bounds=bounds_of(problem, plans)))


def _check(problem: Problem, name: str, placement: Sequence[int]) -> None:
    blocks, tiers = problem.constraints.allowed.shape
    if len(placement) != blocks or not all(0 <= tier < tiers for tier in placement):
        raise PolicyError(f"plan {name!r}: expected a tier from 0 to {tiers - 1} for each of {blocks} blocks")
    for block, tier in enumerate(placement):
        if not problem.constraints.allowed[block, tier]:
            why = problem.constraints.reasons[block, tier]
            block_name, tier_name = problem.graph.blocks[block].name, problem.tiers[tier].name
            raise PolicyError(f"plan {name!r}: block {block_name!r} cannot run on {tier_name}: {why}")
