"""The splitter's one entry point: from a graph, a line of tiers and an SLA to a pool, a choice and its reasons."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flagsplit.flagir.blockgraph import BlockGraph
from flagsplit.splitter.baselines import Baseline, single_tier_baselines
from flagsplit.splitter.constraints import Support
from flagsplit.splitter.costs import CostModel, Tier
from flagsplit.splitter.explain import explain_choice
from flagsplit.splitter.links import Link
from flagsplit.splitter.pool import Choice, Pool
from flagsplit.splitter.pool_builder import build_pool
from flagsplit.splitter.problem import Bypass, Problem, make_problem
from flagsplit.splitter.sla import SLA
from flagsplit.splitter.solvers import Solution, solve


@dataclass(frozen=True)
class PlanningResult:
    """All that planning found out.

    Attributes:
        pool: the plans to ship.
        chosen: the choice at the nominal state.
        reasons: sentences for people, most important first.
        baselines: the whole graph on each tier, allowed or not.
        solution: objective, bound and solver of the nominal optimum.
        problem: what was solved, for what-if questions.
    """

    pool: Pool
    chosen: Choice
    reasons: tuple[str, ...]
    baselines: tuple[Baseline, ...]
    solution: Solution
    problem: Problem


def plan_model(
    graph: BlockGraph,
    tiers: Sequence[Tier],
    links: Sequence[Link],
    sla: SLA | None = None,
    supports: Mapping[str, Support] | None = None,
    costs: CostModel | None = None,
    milp_seconds: float = 10.0,
    bypasses: Sequence[Bypass] = (),
) -> PlanningResult:
    """Plan a model.

    Args:
        graph: its blocks and values.
        tiers: the line, the requester's own tier first.
        links: `links[i]` joins `tiers[i]` and `tiers[i + 1]`.
        sla: the policy; the default minimizes latency.
        supports: by tier name, what the tier's target cannot run.
        costs: replaces the modelled costs.
        milp_seconds: time limit of the exact search if a cap or bound binds.
        bypasses: direct links between tiers that are not neighbors.

    Raises:
        PolicyError: the request is malformed, contradicts itself, or no plan can keep the SLA.
    """
    return plan_problem(make_problem(graph, tiers, links, sla, supports, costs, bypasses), milp_seconds)


def plan_problem(problem: Problem, milp_seconds: float = 10.0) -> PlanningResult:
    """`plan_model` for a problem that is put together already.

    Raises:
        PolicyError: no plan can keep the SLA.
    """
    solution = solve(problem, milp_seconds=milp_seconds)
    pool = build_pool(problem, solution)
    chosen = pool.choose(problem.nominal)
    return PlanningResult(
        pool=pool,
        chosen=chosen,
        reasons=explain_choice(problem, pool, chosen),
        baselines=single_tier_baselines(problem),
        solution=solution,
        problem=problem,
    )
