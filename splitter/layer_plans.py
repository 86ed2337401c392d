"""Plans that divide a decoder's loop itself: the first layers on one tier, the rest on others, for every token anew.

The graph is a chain of layers, the embedding in the first and the head in the last. Every token goes up through it and
comes back, so each link between the two tiers that share it carries a message up and one down for each step. There are
so few such placements that all of them are looked at: the optimum is exact, caps and bounds included. What a chain's
blocks cost is read off a program in `flagsplit.flagir.programs.chain`.
"""

import itertools
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flagsplit.errors import PolicyError
from flagsplit.splitter.baselines import Baseline
from flagsplit.splitter.explain import against_sentence, headline
from flagsplit.splitter.grid import Grid
from flagsplit.splitter.limits import violations_of
from flagsplit.splitter.pipeline import PlanningResult
from flagsplit.splitter.plan import Plan
from flagsplit.splitter.plan_maker import make_plan, tier_set_name
from flagsplit.splitter.pool_builder import bias_of, pool_of, why_not_all_on
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.solvers import Solution
from flagsplit.splitter.state import State

SOLVER = "enumeration"
_SEED = 21
_MS = 1e3


def layers_before(placement: Sequence[int]) -> int:
    """How many layers run before the last tier in use."""
    return sum(tier != placement[-1] for tier in placement)


def plan_name(tiers: Sequence[str], placement: Sequence[int]) -> str:
    """ "all-TIER", or the two tiers joined by "+" with the number of layers that the first has: "phone+cloud@4"."""
    name = tier_set_name(tiers, placement)
    return name if len(set(placement)) == 1 else f"{name}@{layers_before(placement)}"


def placements_of(problem: Problem) -> NDArray[np.int64]:
    """Every placement of a chain that the constraints allow: whole on a tier, or its first layers on the first tier.

    A token goes between two tiers, so a third one may relay it and runs no layers.
    """
    blocks, tiers = problem.constraints.allowed.shape
    rows = [[tier] * blocks for tier in range(tiers)]
    rows += [[0] * split + [tier] * (blocks - split) for tier in range(1, tiers) for split in range(1, blocks)]
    found = np.array(rows, dtype=np.int64)
    allowed = problem.constraints.allowed[np.arange(blocks), found].all(axis=1)
    return found[allowed]


def plan_layers(problem: Problem) -> PlanningResult:
    """The best way to divide a chain, and the pool of those that are best somewhere.

    Args:
        problem: over a chain of `flagsplit.flagir.programs.chain`, with its steps. By-passes are left aside.

    Raises:
        PolicyError: no plan can keep the SLA; the message says what each single tier lacks.
    """
    started = time.perf_counter()
    problem = problem if not problem.bypasses else problem.with_links(problem.links, ())
    found = placements_of(problem)
    plans = [_plan(problem, row) for row in found if not violations_of(problem, row)]
    absent = {f"all-{tier.name}": why for k, tier in enumerate(problem.tiers) if (why := why_not_all_on(problem, k))}
    if not plans:
        why = "; ".join(f"{name}: {reason}" for name, reason in absent.items())
        raise PolicyError(f"no plan keeps the SLA, whichever layers run where: {why}")
    search = _search(problem, plans)
    costs = _scores(problem, plans, [problem.nominal])[:, 0]
    first = int(costs.argmin())
    pool = pool_of(problem, search, first, absent)
    chosen = pool.choose(problem.nominal)
    best = float(costs[first])
    solution = Solution(plans[first].placement, best, best, SOLVER, time.perf_counter() - started)
    baselines = tuple(_baseline(problem, k, absent) for k in range(len(problem.tiers)))
    reasons = _reasons(problem, plans, chosen.plan, baselines)
    return PlanningResult(pool, chosen, reasons, baselines, solution, problem)


def every_division(problem: Problem) -> tuple[Baseline, ...]:
    """Every way to divide a chain between the first tier and the last, allowed or not, by layers on the first."""
    blocks, far = len(problem.graph.blocks), len(problem.tiers) - 1
    rows = [tuple(0 if at < split else far for at in range(blocks)) for split in range(1, blocks)] if far else []
    return tuple(_row(problem, row) for row in rows)


def _row(problem: Problem, placement: tuple[int, ...]) -> Baseline:
    chosen = np.arange(len(placement)), np.array(placement)
    barred = np.flatnonzero(~problem.constraints.allowed[chosen])
    if barred.size:
        block = int(barred[0])
        why = problem.constraints.reasons.get((block, placement[block]), "left out")
        return Baseline(_plan(problem, placement), f"{problem.graph.blocks[block].name}: {why}")
    broken = "; ".join(str(violation) for violation in violations_of(problem, placement))
    return Baseline(_plan(problem, placement), broken or None)


def _baseline(problem: Problem, tier: int, absent: Mapping[str, str]) -> Baseline:
    plan = _plan(problem, (tier,) * len(problem.graph.blocks))
    return Baseline(plan, absent.get(plan.name))


def _plan(problem: Problem, placement: Sequence[int] | NDArray[np.int64]) -> Plan:
    row = [int(k) for k in placement]
    return make_plan(problem, row, plan_name(problem.tier_names, row))


@dataclass(frozen=True)
class _Search:
    """All plans in all states; see `flagsplit.splitter.pool_builder.Searched`."""

    grid: Grid
    states: Sequence[State]
    sampled: int
    cells: Sequence[Sequence[int]]
    plans: Sequence[Plan]
    optima: Mapping[tuple[int, ...], NDArray[np.float64]]
    exact: bool = True


def _search(problem: Problem, plans: Sequence[Plan]) -> _Search:
    grid = Grid.for_links(len(problem.links), len(problem.graph.blocks))
    rng = random.Random(_SEED)  # noqa: S311 - spreads states, guards nothing
    several = len(problem.tiers) > 1
    between = [
        grid.between(problem.nominal, rng) for _ in range(grid.samples(len(problem.graph.blocks)) if several else 0)
    ]
    states = [*grid.states(problem.nominal), *between]
    scores = _scores(problem, plans, states)
    optima = {}
    others = range(1, len(problem.tiers))
    for tiers in ((0, *rest) for size in range(len(problem.tiers)) for rest in itertools.combinations(others, size)):
        usable = [i for i, plan in enumerate(plans) if set(plan.placement) <= set(tiers)]
        if usable:
            optima[tiers] = scores[usable].min(axis=0)
    return _Search(grid, states, len(between), list(grid.cells(problem.nominal)), plans, optima)


def _scores(problem: Problem, plans: Sequence[Plan], states: Sequence[State]) -> NDArray[np.float64]:
    """What the SLA minimizes, by plan and state."""
    if problem.sla.objective.goal == "throughput":
        return np.array([[plan.bottleneck_s(state) for state in states] for plan in plans])
    weight = problem.sla.objective.latency
    return np.array([[weight * plan.latency_s(s) + bias_of(problem, plan) for s in states] for plan in plans])


def _reasons(problem: Problem, plans: Sequence[Plan], chosen: Plan, baselines: Sequence[Baseline]) -> tuple[str, ...]:
    nominal, goal = problem.nominal, problem.sla.objective.goal
    found = [headline(chosen, nominal), _step_sentence(problem, chosen)]
    found += [against_sentence(chosen, each, nominal, goal) for each in baselines if each.plan.name != chosen.name]
    divided = [plan for plan in plans if len(plan.used_tiers) > 1]
    if len(chosen.used_tiers) == 1 and divided:
        best = min(divided, key=lambda plan: float(_scores(problem, [plan], [nominal])[0, 0]))
        compute, moved = _parts(best, nominal)
        own, own_moved = _parts(chosen, nominal)
        found.append(
            f"Do not split the loop: the best division, {best.name}, takes {compute:.3g} ms of computing and "
            f"{moved:.3g} ms of transfer in {problem.steps} round trips, against {own:.3g} and {own_moved:.3g} ms."
        )
    elif len(chosen.used_tiers) == 1:
        found.append("Do not split the loop: no division of its layers keeps the SLA.")
    return tuple(found)


def _parts(plan: Plan, state: State) -> tuple[float, float]:
    compute_s = sum(s * slow for s, slow in zip(plan.features.tier_seconds, state.slowdown, strict=True))
    return compute_s * _MS, (plan.latency_s(state) - compute_s) * _MS


def _step_sentence(problem: Problem, plan: Plan) -> str:
    """What a token costs, where, and what crosses for it."""
    steps = problem.steps
    each = ", ".join(
        f"{plan.features.tier_seconds[k] / steps * _MS:.3g} ms on {plan.tiers[k]}" for k in plan.used_tiers
    )
    grows = sum(loop.growth_bytes for block in problem.graph.blocks for loop in block.loops)
    state = f"{grows / 1e3:.4g} kB of keys and values each"
    if len(plan.used_tiers) == 1:
        return f"{steps} steps expected, of {each}; {state}; no step passes a link by itself."
    _, transfer = _parts(plan, problem.nominal)
    up = sum(plan.features.up_bytes) / steps / 1e3
    return (
        f"{steps} steps expected, of {each} and {transfer / steps:.3g} ms of transfer: each is a round trip with "
        f"{up:.3g} kB up; {state}, on the tier of its layer."
    )
