"""Decides which part of a graph runs on which tier, and keeps a pool of plans for when the world changes.

`plan_model` is the way in; `Pool.choose` is all that the runtime needs. Names load when first used, so that the
runtime's part (`Plan`, `Pool`, `State`) comes without solvers and pydantic.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flagsplit.splitter.baselines import Baseline, all_baselines, single_tier_baselines
    from flagsplit.splitter.calibration import Calibration, calibrate, calibrated_costs
    from flagsplit.splitter.costs import CostModel, Tier, model_costs
    from flagsplit.splitter.devices import Catalogue, Device, Figure, load_catalogue
    from flagsplit.splitter.explain import baseline_table, explain_choice, plan_without_limits
    from flagsplit.splitter.links import Link, parse_link
    from flagsplit.splitter.makespan import Makespan, least_makespan
    from flagsplit.splitter.pareto import Frontier, ParetoPoint, pareto_frontier
    from flagsplit.splitter.pipeline import PlanningResult, plan_model
    from flagsplit.splitter.plan import Cut, Features, Plan, Predicted
    from flagsplit.splitter.pool import Choice, Pool, PoolCertificate
    from flagsplit.splitter.pool_builder import build_pool
    from flagsplit.splitter.problem import Bypass, Problem, make_problem
    from flagsplit.splitter.profiles import Profile, load_profile, merge_profiles, save_profile
    from flagsplit.splitter.resolver import Resolved, Resolver
    from flagsplit.splitter.simulator import simulate_request
    from flagsplit.splitter.sla import SLA, parse_sla
    from flagsplit.splitter.solvers import Solution, solve
    from flagsplit.splitter.state import State
    from flagsplit.splitter.thresholds import Flip, Thresholds
    from flagsplit.splitter.timeline import Interval, Timeline

_HOME = {
    "baselines": ("Baseline", "all_baselines", "single_tier_baselines"),
    "calibration": ("Calibration", "calibrate", "calibrated_costs"),
    "costs": ("CostModel", "Tier", "model_costs"),
    "devices": ("Catalogue", "Device", "Figure", "load_catalogue"),
    "explain": ("baseline_table", "explain_choice", "plan_without_limits"),
    "links": ("Link", "parse_link"),
    "makespan": ("Makespan", "least_makespan"),
    "pareto": ("Frontier", "ParetoPoint", "pareto_frontier"),
    "pipeline": ("PlanningResult", "plan_model"),
    "plan": ("Cut", "Features", "Plan", "Predicted"),
    "pool": ("Choice", "Pool", "PoolCertificate"),
    "pool_builder": ("build_pool",),
    "problem": ("Bypass", "Problem", "make_problem"),
    "resolver": ("Resolved", "Resolver"),
    "simulator": ("simulate_request",),
    "profiles": ("Profile", "load_profile", "merge_profiles", "save_profile"),
    "sla": ("SLA", "parse_sla"),
    "solvers": ("Solution", "solve"),
    "state": ("State",),
    "thresholds": ("Flip", "Thresholds"),
    "timeline": ("Interval", "Timeline"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [  # noqa: RUF022 the order of the way through
    "plan_model",
    "PlanningResult",
    "load_catalogue",
    "Catalogue",
    "Device",
    "Figure",
    "Link",
    "parse_link",
    "SLA",
    "parse_sla",
    "Tier",
    "CostModel",
    "model_costs",
    "Profile",
    "load_profile",
    "save_profile",
    "merge_profiles",
    "Calibration",
    "calibrate",
    "calibrated_costs",
    "Bypass",
    "Problem",
    "make_problem",
    "Solution",
    "solve",
    "Resolver",
    "Resolved",
    "pareto_frontier",
    "Frontier",
    "ParetoPoint",
    "Makespan",
    "least_makespan",
    "simulate_request",
    "Timeline",
    "Interval",
    "Pool",
    "PoolCertificate",
    "Choice",
    "build_pool",
    "Plan",
    "Cut",
    "Features",
    "Predicted",
    "State",
    "Baseline",
    "single_tier_baselines",
    "all_baselines",
    "baseline_table",
    "explain_choice",
    "Thresholds",
    "Flip",
    "plan_without_limits",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE[name]}"), name)
