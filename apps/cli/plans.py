"""How plans are shown, the same in every command."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from flagsplit.apps.cli.output import size_text
from flagsplit.flagir.codecs import NO_CODEC
from flagsplit.splitter.calibration import Calibration
from flagsplit.splitter.plan import Plan

_MOST_NAMED = 3


def plan_data(plan: Plan) -> dict[str, Any]:
    """A plan as JSON data."""
    features = plan.features
    return {
        "name": plan.name,
        "tiers": [plan.tiers[index] for index in plan.used_tiers],
        "route": [plan.tiers[index] for index in plan.route] or list(plan.tiers),
        "blocks": {tier: plan.placement.count(index) for index, tier in enumerate(plan.tiers)},
        "cuts": plan.named_cuts(),
        "predicted": {
            "latency_ms": plan.predicted.latency_s * 1e3,
            "energy_mj": plan.predicted.total_energy_j * 1e3,
            "first_tier_energy_mj": plan.predicted.first_tier_energy_j * 1e3,
            "price_per_1k_usd": plan.predicted.price_per_1k_usd,
            "tier_ms": {tier: s * 1e3 for tier, s in zip(plan.tiers, features.tier_seconds, strict=True)},
            "resident_bytes": dict(zip(plan.tiers, features.resident_bytes, strict=True)),
            "up_bytes": list(features.up_bytes),
            "down_bytes": list(features.down_bytes),
            "carbon_per_1k_g": plan.predicted.carbon_per_1k_g,
            "bottleneck_ms": plan.predicted.bottleneck_s * 1e3,
            "cold_start_ms": plan.predicted.cold_start_s * 1e3,
            "basis": plan.predicted.basis,
        },
    }


def encoded_cuts(plan: Plan) -> list[tuple[str, str]]:
    """Values that travel encoded, each with its codec; one that goes both ways stands twice if the codecs differ."""
    return list(dict.fromkeys((cut.value, cut.codec) for cut in plan.cuts if cut.codec != NO_CODEC))


def plan_notes(plans: Sequence[Plan]) -> list[str]:
    """What no column says: a sentence for each plan with codecs, and for each that goes round a tier."""
    notes = []
    for plan in plans:
        coded = encoded_cuts(plan)
        if coded:
            shown = ", ".join(f"{value} as {name}" for value, name in coded[:_MOST_NAMED])
            more = f" and {len(coded) - _MOST_NAMED} more" if len(coded) > _MOST_NAMED else ""
            notes.append(f"{plan.name} is lossy: it sends {shown}{more}")
        passed_by = [tier for index, tier in enumerate(plan.tiers) if plan.route and index not in plan.route]
        if passed_by:
            notes.append(f"{plan.name} passes by {', '.join(passed_by)}")
    return notes


def plan_rows(plans: Sequence[Plan]) -> list[tuple[str, ...]]:
    """Rows for a table: name, blocks per tier, latency, energy, price, bytes up and down."""
    return [
        (
            plan.name,
            " ".join(f"{plan.tiers[tier]}:{plan.placement.count(tier)}" for tier in plan.used_tiers),
            f"{plan.predicted.latency_s * 1e3:.2f}",
            f"{plan.predicted.total_energy_j * 1e3:.2f}",
            f"{plan.predicted.price_per_1k_usd:.4f}",
            size_text(sum(plan.features.up_bytes)),
            size_text(sum(plan.features.down_bytes)),
        )
        for plan in plans
    ]


def calibration_data(calibrations: Mapping[str, Calibration]) -> dict[str, Any]:
    """What profiles made of their tiers, as JSON data by tier name."""
    return {
        tier: {
            "blocks": len(calibration.seconds),
            "measured": int(calibration.measured.sum()),
            "measured_share": _share_measured(calibration),
            "method": calibration.method,
            "error": calibration.error,
        }
        for tier, calibration in calibrations.items()
    }


def calibration_texts(calibrations: Mapping[str, Calibration]) -> list[str]:
    """One sentence for each tier with a profile."""
    found = []
    for tier, calibration in calibrations.items():
        known, count = int(calibration.measured.sum()), len(calibration.seconds)
        text = f"{tier}: {known} of {count} blocks measured, {_share_measured(calibration):.0%} of its time"
        if known < count:
            text += f"; the others modelled ({calibration.method})"
            if not math.isnan(calibration.error):
                text += f", median error {calibration.error:.0%} on blocks left out"
        found.append(text)
    return found


def _share_measured(calibration: Calibration) -> float:
    return float(calibration.seconds[calibration.measured].sum() / calibration.seconds.sum())
