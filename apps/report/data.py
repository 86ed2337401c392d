"""A report of a plan as plain data for JSON."""

from typing import Any

from flagsplit.apps.cli.plans import calibration_data
from flagsplit.apps.planning import PlanReport
from flagsplit.apps.report.figures import basis, by_link, by_tier, scope_energy_mj, split_ms, times_basis, totals
from flagsplit.splitter.baselines import Baseline
from flagsplit.splitter.knobs import UNITS
from flagsplit.splitter.pareto import Frontier
from flagsplit.splitter.plan import Plan
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.thresholds import BreakingPoint, Flip


def report_data(report: PlanReport) -> dict[str, Any]:
    """Everything that a report knows."""
    problem, solution = report.problem, report.planning.solution
    return {
        "model": report.name,
        "basis": basis(report.plan),
        "plan": _plan(problem, report.plan),
        "solution": {
            "objective": solution.objective,
            "bound": solution.bound,
            "solver": solution.solver,
            "seconds": solution.seconds,
            "certificate": solution.certificate,
            "note": solution.note,
        },
        "baselines": [_baseline(problem, each) for each in report.baselines],
        "reasons": list(report.planning.reasons),
        "rivals": [
            {**_summary(problem, each.plan), "worse_by": each.worse_by, "on_other_tiers": each.on_other_tiers}
            for each in report.rivals
        ],
        "flips": [_flip(each) for each in report.flips],
        "breaks": [_break(each) for each in report.breaks],
        "barred": [
            {"operator": b.operator, "tier": b.tier, "reason": b.reason, "blocks": b.count, "example": b.example}
            for b in report.barred
        ],
        "before": None
        if report.before is None
        else {"objective": report.before.objective, "changed": report.before.placement != report.plan.placement},
        "pool": [_summary(problem, plan) for plan in report.planning.pool.plans],
        "shipped": None if report.shipped is None else [plan.name for plan in report.shipped.plans],
        "frontier": None if report.frontier is None else _frontier(report.frontier),
        "times_basis": {each: times_basis(report.calibrations.get(each)) for each in problem.tier_names},
        "profiles": calibration_data(report.calibrations),
        "notes": list(report.notes),
        "seconds": dict(report.seconds),
    }


def _plan(problem: Problem, plan: Plan) -> dict[str, Any]:
    blocks = problem.graph.blocks
    return {
        **_summary(problem, plan),
        "placement": {blocks[i].name: plan.tiers[k] for i, k in enumerate(plan.placement)},
        "route": [plan.tiers[k] for k in plan.route] or list(plan.tiers),
        "tier_figures": [vars(each) for each in by_tier(problem, plan)],
        "link_figures": [{**vars(each), "codecs": list(each.codecs)} for each in by_link(problem, plan)],
        "totals": [vars(each) for each in totals(problem, plan)],
        "cuts": plan.named_cuts(),
    }


def _summary(problem: Problem, plan: Plan) -> dict[str, Any]:
    computing, transfer = split_ms(problem, plan)
    return {
        "name": plan.name,
        "blocks": {tier: plan.placement.count(k) for k, tier in enumerate(plan.tiers)},
        "latency_ms": computing + transfer,
        "computing_ms": computing,
        "transfer_ms": transfer,
        "energy_mj": scope_energy_mj(problem, plan),
        "price_per_1k_usd": plan.predicted.price_per_1k_usd,
        "carbon_per_1k_g": plan.predicted.carbon_per_1k_g,
    }


def _baseline(problem: Problem, each: Baseline) -> dict[str, Any]:
    return {**_summary(problem, each.plan), "allowed": each.allowed, "reason": each.reason, "note": each.note}


def _frontier(frontier: Frontier) -> dict[str, Any]:
    return {
        "measures": list(frontier.measures),
        "complete": frontier.complete,
        "seconds": frontier.seconds,
        "points": [
            {"plan": each.plan.name, "figures": dict(each.figures), "supported": each.supported}
            for each in frontier.points
        ],
    }


def _flip(flip: Flip) -> dict[str, Any]:
    return {
        "what": flip.knob.name,
        "kind": flip.knob.kind,
        "subject": flip.knob.subject,
        "factor": flip.factor,
        "now": flip.knob.now,
        "then": flip.then,
        "unit": UNITS[flip.knob.kind],
        "plan": flip.plan,
        "exact": flip.exact,
    }


def _break(point: BreakingPoint) -> dict[str, Any]:
    return {
        "what": point.knob.name,
        "factor": point.factor,
        "now": point.knob.now,
        "then": point.knob.now * point.factor,
        "unit": UNITS[point.knob.kind],
        "bound": point.bound,
    }
