"""A plan's figures by tier and by link, the same for tables, JSON and drawings.

Everything here is read off a plan's features; the one place that says on what basis is `basis`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from flagsplit.splitter.calibration import Calibration
from flagsplit.splitter.plan import Plan
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.rates import REQUESTS

MS = 1e3


@dataclass(frozen=True)
class TierFigures:
    """One tier of a plan, for one request; prices and emissions for 1000."""

    tier: str
    device: str
    blocks: int
    busy_ms: float
    energy_mj: float
    resident_bytes: float
    price_per_1k_usd: float
    carbon_per_1k_g: float
    cold_start_ms: float


@dataclass(frozen=True)
class LinkFigures:
    """One link of a plan, for one request; times include half a round trip for each message."""

    link: str
    up_bytes: float
    down_bytes: float
    messages: float
    up_ms: float
    down_ms: float
    codecs: tuple[str, ...]


@dataclass(frozen=True)
class Total:
    """One figure of a whole plan."""

    name: str
    value: float
    unit: str


def basis(plan: Plan) -> str:
    """Where a plan's figures come from: "modelled", "emulated" or "measured"."""
    return plan.predicted.basis


def times_basis(calibration: Calibration | None) -> str:
    """Where a tier's computing times come from: its profile, the model, or both."""
    if calibration is None:
        return "modelled"
    return "measured" if calibration.measured.all() else "measured, some modelled"


def split_ms(problem: Problem, plan: Plan) -> tuple[float, float]:
    """Milliseconds of computing and of transfer at the nominal state."""
    computing = sum(s * f for s, f in zip(plan.features.tier_seconds, problem.nominal.slowdown, strict=True))
    return computing * MS, (plan.latency_s(problem.nominal) - computing) * MS


def by_tier(problem: Problem, plan: Plan) -> tuple[TierFigures, ...]:
    """Figures of every tier, used or not."""
    found, costs = plan.features, problem.costs
    return tuple(
        TierFigures(
            tier=tier.name,
            device=tier.device.name,
            blocks=plan.placement.count(k),
            busy_ms=found.tier_seconds[k] * problem.nominal.slowdown[k] * MS,
            energy_mj=found.tier_joules[k] * MS,
            resident_bytes=found.resident_bytes[k],
            price_per_1k_usd=found.tier_seconds[k] * float(costs.usd_per_s[k]) * REQUESTS,
            carbon_per_1k_g=found.tier_joules[k] * float(costs.carbon_g_per_j[k]) * REQUESTS,
            cold_start_ms=found.cold_start_s[k] * MS if found.cold_start_s else 0.0,
        )
        for k, tier in enumerate(problem.tiers)
    )


def by_link(problem: Problem, plan: Plan) -> tuple[LinkFigures, ...]:
    """Figures of every link of the line, and of by-passes that are used."""
    found, state = plan.features, problem.nominal
    rows = []
    for i, (name, near, far) in enumerate(_links(problem)):
        if i >= len(problem.links) and not found.up_messages[i]:
            continue
        up = found.up_bytes[i] * state.up_s_per_byte[i] + found.up_messages[i] * state.up_s_per_message[i]
        down = found.down_bytes[i] * state.down_s_per_byte[i] + found.down_messages[i] * state.down_s_per_message[i]
        rows.append(
            LinkFigures(
                link=name,
                up_bytes=found.up_bytes[i],
                down_bytes=found.down_bytes[i],
                messages=found.up_messages[i] + found.down_messages[i],
                up_ms=up * MS,
                down_ms=down * MS,
                codecs=_codecs(plan, near, far) if found.up_messages[i] else (),
            )
        )
    return tuple(rows)


def _links(problem: Problem) -> Iterator[tuple[str, int, int]]:
    names = problem.tier_names
    for k in range(len(problem.links)):
        yield f"{names[k]} - {names[k + 1]}", k, k + 1
    for bypass in problem.bypasses:
        yield f"{names[bypass.near]} - {names[bypass.far]} (by-pass)", bypass.near, bypass.far


def _codecs(plan: Plan, near: int, far: int) -> tuple[str, ...]:
    """Codecs of what crosses between two tiers, or over both of them."""
    crossing = [
        cut.codec
        for cut in plan.cuts
        if min(cut.from_tier, cut.to_tier) <= near and max(cut.from_tier, cut.to_tier) >= far
    ]
    return tuple(dict.fromkeys(crossing))


def totals(problem: Problem, plan: Plan) -> tuple[Total, ...]:
    """The figures of the whole plan."""
    predicted = plan.predicted
    bottleneck_s = plan.bottleneck_s(problem.nominal)
    first = problem.tier_names[0]
    return (
        Total("latency", plan.latency_s(problem.nominal) * MS, "ms"),
        Total(f"throughput, limited by {slowest_stage(problem, plan)}", 1 / max(bottleneck_s, 1e-12), "requests/s"),
        Total(f"energy of {first}", predicted.first_tier_energy_j * MS, "mJ"),
        Total("energy of all tiers", predicted.total_energy_j * MS, "mJ"),
        Total("price of 1000 requests", predicted.price_per_1k_usd, "USD"),
        Total("emissions of 1000 requests", predicted.carbon_per_1k_g, "g CO2"),
        Total("cold start", predicted.cold_start_s * MS, "ms"),
    )


def slowest_stage(problem: Problem, plan: Plan) -> str:
    """The tier, or the direction of a link, that a stream of requests waits for."""
    found, state = plan.features, problem.nominal
    stages = {f"{name}": s * f for name, s, f in zip(plan.tiers, found.tier_seconds, state.slowdown, strict=True)}
    for i, (_, near, far) in enumerate(_links(problem)):
        here, there = problem.tier_names[near], problem.tier_names[far]
        stages[f"{here} to {there}"] = found.up_bytes[i] * state.up_s_per_byte[i]
        stages[f"{there} to {here}"] = found.down_bytes[i] * state.down_s_per_byte[i]
    return max(stages, key=lambda name: stages[name])


def scope_energy_mj(problem: Problem, plan: Plan) -> float:
    """Energy in the SLA's scope, millijoules."""
    figures = plan.predicted
    return MS * (figures.first_tier_energy_j if problem.sla.energy_scope == "first" else figures.total_energy_j)
