"""Slow, plain answers to compare the splitter with: costs from a simulated request, written out figure by figure.

Nothing here uses `Usage`, `Rates` or a solver. Codecs are left aside; what they do is written out in
`test_codec_charges.py`.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from flagsplit.splitter.problem import Bypass, Problem, make_problem
from flagsplit.splitter.sla import SLA
from flagsplit.splitter.state import State
from flagsplit.splitter.testing import placements, simulate

ROOM = 1 + 2e-9


@dataclass(frozen=True)
class Figures:
    """What one placement does in one state; energy, price, carbon and load are nominal whatever the state."""

    latency_s: float
    tier_joules: list[float]
    price_usd: float
    carbon_g: float
    stages: Mapping[str, float]
    cold_start_s: list[float]
    resident_bytes: list[float]
    used: frozenset[int]


def figures(problem: Problem, placement: Sequence[int], state: State | None = None) -> Figures:
    """Simulate, and add up."""
    costs, tiers = problem.costs, range(len(problem.tiers))
    walk = simulate(problem, placement, state or problem.nominal)
    rate = problem.sla.requests_per_s
    joules = [walk.tier_seconds[k] * float(costs.power_w[k]) for k in tiers]
    for i in range(len(problem.links)):
        for k in tiers:
            joules[k] += walk.up_bytes[i] * float(costs.radio_up_j_per_byte[i, k])
            joules[k] += walk.down_bytes[i] * float(costs.radio_down_j_per_byte[i, k])
            if rate is not None:
                awake_s = min(float(costs.radio_tail_s[i, k]), 1 / rate)
                joules[k] += walk.up_messages[i] * float(costs.radio_tail_w[i, k]) * awake_s
    now = state or problem.nominal
    stages = {name: walk.tier_seconds[k] * now.slowdown[k] for k, name in enumerate(problem.tier_names)}
    for i, (near, far) in enumerate(pairwise(problem.tier_names)):
        stages[f"{near} to {far}"] = walk.up_bytes[i] * now.up_s_per_byte[i]
        stages[f"{far} to {near}"] = walk.down_bytes[i] * now.down_s_per_byte[i]
    cold = []
    for k in tiers:
        held = sum(b.weight_bytes for b in problem.graph.blocks if placement[b.index] == k)
        ready_s = float(costs.load_s[k]) + held * float(costs.load_s_per_byte[k])
        cold.append(ready_s if k in placement else 0.0)
    return Figures(
        latency_s=walk.latency_s,
        tier_joules=joules,
        price_usd=sum(walk.tier_seconds[k] * float(costs.usd_per_s[k]) for k in tiers),
        carbon_g=sum(joules[k] * float(costs.carbon_g_per_j[k]) for k in tiers),
        stages=stages,
        cold_start_s=cold,
        resident_bytes=walk.resident_bytes,
        used=frozenset(placement),
    )


def energy_j(problem: Problem, found: Figures) -> float:
    """Of the SLA's scope."""
    return found.tier_joules[0] if problem.sla.energy_scope == "first" else sum(found.tier_joules)


def weighted(problem: Problem, placement: Sequence[int], state: State | None = None) -> float:
    """The SLA's weighted sum."""
    found, weights = figures(problem, placement, state), problem.sla.objective
    return (
        weights.latency * found.latency_s
        + weights.price * 1000 * found.price_usd
        + weights.energy * energy_j(problem, found)
        + weights.carbon * 1000 * found.carbon_g
    )


def goal_value(problem: Problem, placement: Sequence[int], state: State | None = None) -> float:
    """The weighted sum, or the slowest stage for throughput."""
    if problem.sla.objective.goal == "throughput":
        return max(figures(problem, placement, state).stages.values())
    return weighted(problem, placement, state)


def keeps(problem: Problem, placement: Sequence[int]) -> bool:
    """Whether a placement keeps all caps and bounds at the nominal state."""
    sla, names = problem.sla, problem.tier_names
    found = figures(problem, placement)
    bounds = sla.bounds
    pairs = [
        (found.latency_s * 1e3, bounds.latency_ms),
        (energy_j(problem, found) * 1e3, bounds.energy_mj),
        (found.price_usd * 1e3, bounds.price_per_1k_usd),
        (found.carbon_g * 1e3, bounds.carbon_per_1k_g),
        (max(found.cold_start_s) * 1e3, bounds.cold_start_ms),
    ]
    pairs += list(zip(found.resident_bytes, map(float, problem.memory_bytes), strict=True))
    if sla.requests_per_s is not None:
        pairs += [(seconds * sla.requests_per_s, 1.0) for seconds in found.stages.values()]
        pairs += [(found.tier_joules[names.index(t)] * sla.requests_per_s, cap) for t, cap in sla.power_w.items()]
    used = {names[k] for k in found.used}
    return set(sla.use_tiers) <= used and all(limit is None or value <= limit * ROOM for value, limit in pairs)


def feasible(problem: Problem) -> list[tuple[int, ...]]:
    """All placements that keep everything."""
    return [placement for placement in placements(problem) if keeps(problem, placement)]


def shorter_lines(problem: Problem) -> Iterator[tuple[tuple[int, ...], Problem, State]]:
    """Every line that by-passes make possible, the whole one first, each built anew, with its nominal state."""
    count = len(problem.tiers)
    joins = {(i, i + 1): link for i, link in enumerate(problem.links)}
    joins |= {(each.near, each.far): each.link for each in problem.bypasses}
    for chosen in range(1 << (count - 1), 0, -1):
        tiers = (0, *(k for k in range(1, count) if (chosen - 1) >> (k - 1) & 1))
        hops = list(pairwise(tiers))
        if not all(hop in joins for hop in hops) or not problem.constraints.allowed[:, list(tiers)].any(axis=1).all():
            continue
        links = [joins[hop] for hop in hops]
        kept = [problem.tiers[k] for k in tiers]
        names = {tier.name for tier in kept}
        if not set(problem.sla.use_tiers) <= names:
            continue
        own = _sla_of(problem.sla, names)
        supports = {name: support for name, support in problem.supports.items() if name in names}
        line = make_problem(problem.graph, kept, links, own, supports)
        yield tiers, line, State.nominal(links)


def _sla_of(sla: SLA, names: set[str]) -> SLA:
    """The part of an SLA that a line with these tiers can take."""
    update: dict[str, Any] = {
        "memory_mb": {tier: cap for tier, cap in sla.memory_mb.items() if tier in names},
        "power_w": {tier: cap for tier, cap in sla.power_w.items() if tier in names},
        "prefer_tiers": tuple(tier for tier in sla.prefer_tiers if tier in names),
        "forbid_tiers": tuple(tier for tier in sla.forbid_tiers if tier in names),
    }
    return sla.model_copy(update=update)


def with_bypasses(rng: random.Random, problem: Problem, links: Sequence[Any]) -> Problem:
    """The problem with some by-passes."""
    pairs = [(a, b) for a in range(len(problem.tiers)) for b in range(a + 2, len(problem.tiers))]
    chosen = rng.sample(pairs, rng.randint(1, len(pairs)))
    return problem.with_links(problem.links, [Bypass(a, b, rng.choice(links)) for a, b in sorted(chosen)])


def random_state(rng: random.Random, nominal: State) -> State:
    """Slow-downs, bandwidths and round-trip times far from nominal; every tier alive."""
    slow = tuple(rng.choice([0.5, 1.0, 6.0]) for _ in nominal.slowdown)
    state = replace(nominal, slowdown=slow)
    return state.scaled([rng.choice([0.1, 1.0, 30.0]) for _ in nominal.up_s_per_byte], rng.choice([0.0, 1.0, 10.0]))
