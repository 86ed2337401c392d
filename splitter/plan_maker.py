"""From a placement to a `Plan`: its name, its cuts, its features and what they predict."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flagsplit.splitter.evaluate import Usage
from flagsplit.splitter.plan import Cut, Features, Plan, Predicted
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.rates import REQUESTS
from flagsplit.splitter.routes import Route
from flagsplit.splitter.state import State


def tier_set_name(tiers: Sequence[str], placement: Sequence[int]) -> str:
    """ "all-TIER" for one tier in use, else their names joined by "+"."""
    used = sorted(set(placement))
    return f"all-{tiers[used[0]]}" if len(used) == 1 else "+".join(tiers[k] for k in used)


def make_plan(
    problem: Problem,
    placement: Sequence[int] | NDArray[np.int64],
    name: str,
    *,
    route: Route | None = None,
    codecs: NDArray[np.int64] | None = None,
) -> Plan:
    """The plan of one placement.

    Args:
        problem: what it is a placement of.
        placement: tier index of each block, in terms of the whole line.
        name: of the plan.
        route: the way it takes; the whole line by default.
        codecs: index into `problem.codecs` by direction and value, shape (2, values); those that are best for the
            objective at the nominal state by default.
    """
    part = route.problem if route is not None else problem
    own = np.array([placement if route is None else route.from_whole_line([int(k) for k in placement])], dtype=np.int64)
    usage = Usage.for_objective(part, own) if codecs is None else Usage(part, own, codecs[np.newaxis])
    features = _features(usage)
    if route is not None:
        features = _on_whole_line(features, route, len(problem.tiers), len(problem.links) + len(problem.bypasses))
    elif problem.bypasses:
        whole = tuple(range(len(problem.tiers)))
        links = Route(whole, tuple(range(len(problem.links))), problem)
        features = _on_whole_line(features, links, len(whole), len(problem.links) + len(problem.bypasses))
    return Plan(
        name=name,
        tiers=problem.tier_names,
        placement=tuple(int(k) for k in placement),
        cuts=tuple(_cuts(problem, placement, usage.codecs)),
        features=features,
        predicted=_predict(features, problem.nominal),
        route=() if route is None or len(route.tiers) == len(problem.tiers) else route.tiers,
    )


def _features(usage: Usage) -> Features:
    def row(array: NDArray[np.float64]) -> tuple[float, ...]:
        return tuple(float(x) for x in array[0])

    return Features(
        tier_seconds=row(usage.tier_seconds),
        up_bytes=row(usage.up_bytes),
        down_bytes=row(usage.down_bytes),
        up_messages=row(usage.up_messages),
        down_messages=row(usage.down_messages),
        tier_joules=row(usage.tier_joules),
        price_usd=float(usage.price_usd[0]),
        resident_bytes=row(usage.resident_bytes),
        carbon_g=float(usage.carbon_g[0]),
        cold_start_s=row(usage.cold_start_s),
    )


def _on_whole_line(features: Features, route: Route, tiers: int, links: int) -> Features:
    """Features of a route in terms of all tiers and links; 0 for those that it leaves out."""

    def spread(figures: Sequence[float], at: Sequence[int], count: int) -> tuple[float, ...]:
        by_place = dict(zip(at, figures, strict=True))
        return tuple(by_place.get(i, 0.0) for i in range(count))

    by_tier = ("tier_seconds", "tier_joules", "resident_bytes", "cold_start_s")
    by_link = ("up_bytes", "down_bytes", "up_messages", "down_messages")
    found: dict[str, Any] = {name: spread(getattr(features, name), route.tiers, tiers) for name in by_tier}
    found |= {name: spread(getattr(features, name), route.links, links) for name in by_link}
    return replace(features, **found)


def _predict(features: Features, nominal: State) -> Predicted:
    parts = features.latency_vector() * nominal.vector()
    return Predicted(
        latency_s=float(features.latency_vector() @ nominal.vector()),
        first_tier_energy_j=features.tier_joules[0],
        total_energy_j=sum(features.tier_joules),
        price_per_1k_usd=features.price_usd * REQUESTS,
        carbon_per_1k_g=features.carbon_g * REQUESTS,
        bottleneck_s=float(parts[: features.stages].max()),
        cold_start_s=max(features.cold_start_s),
    )


def _cuts(
    problem: Problem, placement: Sequence[int] | NDArray[np.int64], codecs: NDArray[np.int64] | None
) -> list[Cut]:
    cuts = []
    for at, value in enumerate(problem.graph.values):
        made = 0 if value.producer < 0 else int(placement[value.producer])
        needed = {int(placement[c]) for c in value.consumers} | ({0} if value.is_output else set())
        up = tuple(sorted(k for k in needed if k > made))
        down = tuple(sorted(k for k in needed if k < made))
        for direction, tiers in enumerate((up, down)):
            if tiers:
                codec = "none" if codecs is None else problem.codecs[codecs[0, direction, at]]
                end = tiers[0] if direction else tiers[-1]
                cuts.append(Cut(value.name, value.size_bytes, made, end, tiers, codec))
    return cuts
