"""The plans of a pool under another policy, without solving anything: which of them keep it, and which is best now.

This is what a running session does first when its SLA changes. It knows plans and no blocks, so rules about blocks,
vendors and targets are out of its reach; those, and policies that no pooled plan keeps, need a new build
(`flagsplit.splitter.pool_builder`). NumPy only, like the pool.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from flagsplit.errors import PolicyError
from flagsplit.splitter.codecs import codecs_for
from flagsplit.splitter.plan import Plan
from flagsplit.splitter.pool import Pool, PoolCertificate
from flagsplit.splitter.pool_bounds import PoolBound
from flagsplit.splitter.rates import MJ_PER_J, MS_PER_S, REQUESTS
from flagsplit.splitter.sla import SLA

_OUT_OF_REACH = ("keep_on", "min_blocks_deep", "pins", "forbid_vendors", "forbid_targets", "power_w")
_NOTHING_CERTIFIED = PoolCertificate(False, 0, 0, None, (1.0, 1.0), (1.0, 1.0))


def repolicy(pool: Pool, sla: SLA) -> Pool:
    """The pool's plans that keep an SLA, the best at the nominal state first.

    Args:
        pool: of a bundle.
        sla: the policy from now on. Rules of the policy that the bundle was built under about blocks stay in force,
            because no plan of it breaks them.

    Returns:
        A pool with the SLA's weights, goal, latency bound and mode; nothing is certified about how good it is among
        plans that were never pooled.

    Raises:
        PolicyError: the SLA has rules that need a new build, names an unknown tier, or no plan keeps it.
    """
    needs_build = [name for name in _OUT_OF_REACH if getattr(sla, name)]
    if needs_build:
        raise PolicyError(f"{', '.join(needs_build)}: whether a plan keeps that shows only in a new build; build again")
    for rule in ("forbid_tiers", "use_tiers", "memory_mb"):
        unknown = [name for name in getattr(sla, rule) if name not in pool.tiers]
        if unknown:
            raise PolicyError(f"{rule} names tier {unknown[0]!r}, expected one of {', '.join(pool.tiers)}")
    why_not = {plan.name: why for plan in pool.plans if (why := _why_not(plan, sla))}
    plans = [plan for plan in pool.plans if plan.name not in why_not]
    if not plans:
        first = pool.plans[0].name
        raise PolicyError(f"no plan of the bundle keeps the SLA: {first} would be out because {why_not[first]}")
    scores = {plan.name: _score(plan, sla) for plan in plans}
    plans.sort(key=lambda plan: scores[plan.name])
    bound_ms = sla.bounds.latency_ms
    return replace(
        pool,
        plans=tuple(plans),
        latency_weight=sla.objective.latency,
        bias=tuple(_bias(plan, sla) for plan in plans),
        latency_bound_s=None if bound_ms is None else bound_ms / MS_PER_S,
        absent={**pool.absent, **{name: why for name, why in why_not.items() if name.startswith("all-")}},
        certificate=_NOTHING_CERTIFIED,
        goal=sla.objective.goal,
        preferred=_preferred(plans, sla),
        bounds=tuple(_bounds(pool, plans, sla)),
    )


def _bounds(pool: Pool, plans: Sequence[Plan], sla: SLA) -> Iterator[PoolBound]:
    """Bounds to look at at run time. Where the build knew how one depends on the state, the new one does so too."""
    known = {bound.name: bound for bound in pool.bounds}
    for name, values in _figures_of(plans, sla).items():
        limit = getattr(sla.bounds, name)
        if limit is None or name == "cold_start_ms":
            continue
        rates = known[name].rates if name in known else (0.0,) * len(plans[0].features.latency_vector())
        fixed = known[name].fixed if name in known else values
        yield PoolBound(name, limit, {plan.name: fixed[plan.name] for plan in plans}, rates)


def _figures_of(plans: Sequence[Plan], sla: SLA) -> dict[str, dict[str, float]]:
    """By bound and plan, the figure at the nominal state."""
    return {
        "energy_mj": {plan.name: _energy_j(plan, sla) * MJ_PER_J for plan in plans},
        "price_per_1k_usd": {plan.name: plan.predicted.price_per_1k_usd for plan in plans},
        "carbon_per_1k_g": {plan.name: plan.predicted.carbon_per_1k_g for plan in plans},
        "cold_start_ms": {plan.name: plan.predicted.cold_start_s * MS_PER_S for plan in plans},
    }


def _bias(plan: Plan, sla: SLA) -> float:
    """As `flagsplit.splitter.pool_builder.bias_of`, from the plan's figures alone."""
    weights = sla.objective
    price = weights.price * plan.features.price_usd * REQUESTS
    return price + weights.energy * _energy_j(plan, sla) + weights.carbon * plan.features.carbon_g * REQUESTS


def _energy_j(plan: Plan, sla: SLA) -> float:
    figures = plan.predicted
    return figures.first_tier_energy_j if sla.energy_scope == "first" else figures.total_energy_j


def _score(plan: Plan, sla: SLA) -> tuple[float, float]:
    weighted = sla.objective.latency * plan.predicted.latency_s + _bias(plan, sla)
    if sla.objective.goal == "throughput":
        return plan.predicted.bottleneck_s, weighted
    return weighted, 0.0


def _why_not(plan: Plan, sla: SLA) -> str:
    """Why a plan does not keep an SLA, "" if it does. The latency bound is for the choice, which knows the state."""
    used = {plan.tiers[tier] for tier in plan.used_tiers}
    checks: tuple[Callable[[], str], ...] = (
        lambda: _tiers(plan, used, sla),
        lambda: _figures(plan, sla),
        lambda: _memory(plan, sla),
        lambda: _rate(plan, sla),
        lambda: _codecs(plan, sla),
    )
    return next((why for check in checks if (why := check())), "")


def _tiers(plan: Plan, used: set[str], sla: SLA) -> str:
    only = {"only_on_device": plan.tiers[0], "only_in_cloud": plan.tiers[-1]}.get(sla.mode or "")
    if only is not None and used != {only}:
        return f"mode {sla.mode} wants all blocks on {only}"
    forbidden, missing = sorted(used & set(sla.forbid_tiers)), sorted(set(sla.use_tiers) - used)
    if forbidden:
        return f"forbid_tiers has {forbidden[0]!r}"
    return f"use_tiers wants something on {missing[0]}" if missing else ""


def _figures(plan: Plan, sla: SLA) -> str:
    for name, values in _figures_of([plan], sla).items():
        bound, value = getattr(sla.bounds, name), values[plan.name]
        if bound is not None and value > bound:
            return f"its {name} is {value:.4g}, the bound {bound:.4g}"
    return ""


def _memory(plan: Plan, sla: SLA) -> str:
    for tier, held in zip(plan.tiers, plan.features.resident_bytes, strict=True):
        cap_mb = sla.memory_mb.get(tier)
        if cap_mb is not None and held > cap_mb * 1e6:
            return f"it holds {held / 1e6:.4g} MB on {tier}, memory_mb allows {cap_mb:.4g}"
    return ""


def _rate(plan: Plan, sla: SLA) -> str:
    rate, busy_s = sla.requests_per_s, plan.predicted.bottleneck_s
    if rate is not None and rate * busy_s > 1:
        return f"its slowest stage takes {busy_s:.4g} s, too long for {rate:.4g} requests a second"
    return ""


def _codecs(plan: Plan, sla: SLA) -> str:
    for cut in plan.cuts:
        if cut.codec != "none" and cut.codec not in codecs_for(sla.accuracy, cut.value):
            return f"accuracy does not allow {cut.codec} for {cut.value!r}"
    return ""


def _preferred(plans: list[Plan], sla: SLA) -> str | None:
    """The plan that the mode wants whenever it can be had."""
    if not plans or sla.mode not in ("prefer_on_device", "prefer_in_cloud"):
        return None
    wanted = 0 if sla.mode == "prefer_on_device" else len(plans[0].tiers) - 1
    return next((plan.name for plan in plans if plan.used_tiers == (wanted,)), None)
