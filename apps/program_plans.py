"""Plans that the bundle of a program has whatever is best: the cut at the hidden state, and the first tier alone.

Chips take no loops. A decoder runs beside them, by ONNX Runtime on the CPU, whose artifact every tier has; plans that
need that are posed with the CPU's costs.
"""

from collections.abc import Sequence
from dataclasses import replace

from flagsplit.apps.deployment import Deployment
from flagsplit.apps.extra_plans import add_plans
from flagsplit.apps.groundwork import BuildOptions, Groundwork, pose
from flagsplit.splitter.baselines import why_not
from flagsplit.splitter.costs import Handicaps
from flagsplit.splitter.pipeline import PlanningResult
from flagsplit.splitter.plan import Plan
from flagsplit.splitter.plan_maker import make_plan, tier_set_name
from flagsplit.splitter.pool_builder import bias_of, bounds_of
from flagsplit.splitter.problem import Problem

LINKED_HIDDEN = "encode.hidden"
"""The hidden state in a linked model."""


def beside_chips(ground: Groundwork, deployment: Deployment) -> Groundwork:
    """What is known of a model if tiers with chips run all of it on their CPUs.

    A tier stays as it is where the user named its targets: these have to take what it runs.
    """
    free = [t.name for t, chosen in zip(deployment.tiers, deployment.targets, strict=True) if not chosen.each]
    blocks = range(len(ground.graph.blocks))
    nothing: list[str | None] = [None for _ in blocks]
    supports = {name: nothing if name in free else why for name, why in ground.supports.items()}
    return replace(
        ground,
        supports=supports,
        handicaps={**ground.handicaps, **dict.fromkeys(free, Handicaps(beside=blocks))},
        profiled=replace(ground.profiled, costs=None) if free else ground.profiled,
    )


def add_program_plans(
    planning: PlanningResult, ground: Groundwork, deployment: Deployment, options: BuildOptions
) -> PlanningResult:
    """The planning of a linked program with encoder, with the plans that its bundle always has."""
    planning = add_plans(planning, hidden_plans)
    plan = plan_beside_chip(planning.problem, ground, deployment, options)
    return planning if plan is None or plan.name not in planning.pool.absent else _with(planning, plan)


def plan_beside_chip(
    problem: Problem, ground: Groundwork, deployment: Deployment, options: BuildOptions
) -> Plan | None:
    """The first tier alone, on the CPU beside its chip; None where it has none, has to use it, or may not run all."""
    if deployment.targets[0].each:
        return None
    beside = pose(beside_chips(ground, deployment), deployment, problem.sla, options)
    placement = [0] * len(problem.graph.blocks)
    if why_not(beside, placement) is not None:
        return None
    return make_plan(beside, placement, f"all-{deployment.tiers[0].name}")


def _with(planning: PlanningResult, plan: Plan) -> PlanningResult:
    """The planning with a plan at the end of its pool."""
    problem, pool = planning.problem, planning.pool
    plans, bias = (*pool.plans, plan), (*pool.bias, bias_of(problem, plan))
    absent = {name: why for name, why in pool.absent.items() if name != plan.name}
    pool = replace(pool, plans=plans, bias=bias, absent=absent, bounds=bounds_of(problem, plans))
    kept = (reason for reason in planning.reasons if not reason.startswith(f"{plan.name} is not allowed"))
    ms = plan.predicted.latency_s * 1e3
    why = f"{plan.name} runs on the CPU of {plan.tiers[0]}, for its chip takes no loops; {ms:.4g} ms predicted."
    return replace(planning, pool=pool, reasons=(*kept, why))


def hidden_plans(problem: Problem) -> dict[str, Sequence[int]]:
    """The encoder on the first tier and the rest on another, by name, for each other tier that may run it.

    The cut at the hidden state is what a stream resumes from wherever it goes on.
    """
    graph = problem.graph
    hidden = next((value for value in graph.values if value.name == LINKED_HIDDEN), None)
    if hidden is None or hidden.producer < 0:
        return {}
    before, todo = set[int](), [hidden.producer]
    while todo:
        block = todo.pop()
        if block not in before:
            before.add(block)
            todo += problem.predecessors[block]
    found: dict[str, Sequence[int]] = {}
    for tier in range(1, len(problem.tiers)):
        placement = [0 if block.index in before else tier for block in graph.blocks]
        if why_not(problem, placement) is None:
            found[f"{tier_set_name(problem.tier_names, placement)}-hidden"] = placement
    return found
