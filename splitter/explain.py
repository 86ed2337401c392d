"""Why this plan: plain sentences about it, the baselines beside it, and what the SLA's limits cost.

The sentences are for people; everything in them is also data in `Baseline` and in the plans' `Predicted`. What comes
next to it, and how far the world must change for another plan to be best, is in `flagsplit.splitter.rivals`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from flagsplit.errors import PolicyError
from flagsplit.splitter.baselines import Baseline, single_tier_baselines
from flagsplit.splitter.loop_sentences import loop_sentences
from flagsplit.splitter.plan import Plan
from flagsplit.splitter.plan_maker import make_plan, tier_set_name
from flagsplit.splitter.pool import Choice, Pool
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.routes import route_through
from flagsplit.splitter.sla import SLA, Bounds
from flagsplit.splitter.solvers import Solution, solve
from flagsplit.splitter.state import State

_MS = 1e3
_WHAT_IF_SECONDS = 2.0


def plan_without_limits(problem: Problem) -> Plan:
    """What would be chosen without the SLA's bounds, memory caps and privacy; pins and forbidden tiers stay."""
    free = problem.with_sla(problem.sla.without_limits())
    return _plan_of(free, solve(free, milp_seconds=_WHAT_IF_SECONDS))


def _plan_of(problem: Problem, found: Solution) -> Plan:
    name = tier_set_name(problem.tier_names, found.placement)
    return make_plan(problem, found.placement, name, route=route_through(problem, found.route))


def explain_choice(problem: Problem, pool: Pool, choice: Choice) -> tuple[str, ...]:
    """Sentences that say what was chosen and what decided it, most important first."""
    plan = choice.plan
    sentences = [headline(plan, problem.nominal), *loop_sentences(problem, plan)]
    sentences += [
        against_sentence(plan, baseline, problem.nominal, problem.sla.objective.goal)
        for baseline in single_tier_baselines(problem)
        if baseline.plan != plan
    ]
    if len(plan.used_tiers) == 1:
        sentences.append(_do_not_split(plan, pool, problem))
    sentences += _what_binds(problem, plan)
    return tuple(sentences)


def _parts(plan: Plan, state: State) -> tuple[float, float]:
    """Milliseconds of computing and of transfer."""
    compute_s = sum(s * slow for s, slow in zip(plan.features.tier_seconds, state.slowdown, strict=True))
    return compute_s * _MS, (plan.latency_s(state) - compute_s) * _MS


def headline(plan: Plan, state: State) -> str:
    """What a plan is and takes."""
    compute, transfer = _parts(plan, state)
    counts = [f"{plan.placement.count(k)} on {plan.tiers[k]}" for k in plan.used_tiers]
    sent = sum(plan.features.up_bytes) + sum(plan.features.down_bytes)
    crossing = (
        f" and {transfer:.3g} ms of transfer ({sent / 1e3:.4g} kB over the links)" if plan.used_tiers != (0,) else ""
    )
    return (
        f"{plan.name}: {len(plan.placement)} blocks, {', '.join(counts)}; {plan.predicted.latency_s * _MS:.4g} ms "
        f"predicted, {compute:.3g} ms of computing{crossing}."
    )


def against_sentence(plan: Plan, baseline: Baseline, state: State, goal: str) -> str:
    """Why a plan is better than a baseline."""
    other = baseline.plan
    if baseline.reason is not None:
        return f"{other.name} is not allowed: {baseline.reason}."
    if goal == "throughput":
        mine, theirs = plan.bottleneck_s(state) * _MS, other.bottleneck_s(state) * _MS
        return f"{other.name} would feed a request every {theirs:.3g} ms, {plan.name} one every {mine:.3g} ms."
    compute, transfer = _parts(plan, state)
    other_compute, other_transfer = _parts(other, state)
    slower = (other_compute + other_transfer) - (compute + transfer)
    if slower < 0:
        return (
            f"{other.name} would be {-slower:.3g} ms faster, but the objective prefers {plan.name} for its price "
            f"({plan.predicted.price_per_1k_usd:.3g} against {other.predicted.price_per_1k_usd:.3g} USD per 1000) or "
            f"energy ({plan.predicted.first_tier_energy_j:.3g} against {other.predicted.first_tier_energy_j:.3g} J)."
        )
    computing = other_compute - compute > other_transfer - transfer
    what, here, there = ("computing", compute, other_compute) if computing else ("transfer", transfer, other_transfer)
    return f"{other.name} would be {slower:.3g} ms slower: {what} takes {there:.3g} ms there against {here:.3g} ms."


def _do_not_split(plan: Plan, pool: Pool, problem: Problem) -> str:
    scores = pool.latency_weight * pool.latencies_s(problem.nominal)
    splits = [i for i, other in enumerate(pool.plans) if len(other.used_tiers) > 1]
    if len(problem.tiers) == 1:
        return f"Do not split: {plan.tiers[0]} is the only tier."
    if not splits:
        return "Do not split: no split was best in any state of the links that was tried."
    best = pool.plans[min(splits, key=lambda i: scores[i] + pool.bias[i])]
    compute, transfer = _parts(plan, problem.nominal)
    split_compute, split_transfer = _parts(best, problem.nominal)
    return (
        f"Do not split: the best split of the pool at these links, {best.name}, takes {split_compute:.3g} ms of "
        f"computing and {split_transfer:.3g} ms of transfer, against {compute:.3g} and {transfer:.3g} ms."
    )


_RULES: Mapping[str, Mapping[str, Any]] = {
    "the bounds": {"bounds": Bounds()},
    "requests_per_s": {"requests_per_s": None, "power_w": {}},
    "memory_mb": {"memory_mb": {}},
    "streams": {"streams": {}},
    "power_w": {"power_w": {}},
    "privacy (keep_on)": {"keep_on": {}},
    "privacy (min_blocks_deep)": {"min_blocks_deep": 0},
    "the pins": {"pins": {}},
    "use_tiers": {"use_tiers": ()},
    "the mode": {"mode": None},
    "forbid_tiers": {"forbid_tiers": ()},
    "forbid_vendors": {"forbid_vendors": ()},
    "forbid_targets": {"forbid_targets": ()},
    "preferences": {"prefer_tiers": (), "prefer_vendors": (), "prefer_targets": ()},
}
"""Each kind of rule, and the fields of an SLA without it."""


def _relaxations(sla: SLA) -> Iterator[tuple[str, SLA]]:
    for what, free in _RULES.items():
        if any(getattr(sla, field) != value for field, value in free.items()):
            yield what, sla.model_copy(update=dict(free))


def _what_binds(problem: Problem, plan: Plan) -> list[str]:
    """For each kind of limit, what its absence alone would change."""
    variants = [(what, problem.with_sla(sla)) for what, sla in _relaxations(problem.sla)]
    if problem.supports:
        free = replace(problem, supports={})
        variants.append(("missing operator support", free.with_sla(problem.sla)))
    found = []
    for what, variant in variants:
        other = _solved(variant)
        if other is not None and other.placement != plan.placement:
            change = (plan.predicted.latency_s - other.predicted.latency_s) * _MS
            found.append(
                f"Binding: {what}; without it {other.name} would take {change:.3g} ms less{_costs(plan, other)}."
            )
    return found


def _solved(problem: Problem) -> Plan | None:
    try:
        found = solve(problem, milp_seconds=_WHAT_IF_SECONDS, diagnose=False)
    except PolicyError:
        return None
    return _plan_of(problem, found)


def _costs(plan: Plan, other: Plan) -> str:
    """What else would change, where it is more than a hundredth."""
    now, then = plan.predicted, other.predicted
    changes = [
        (then.price_per_1k_usd - now.price_per_1k_usd, now.price_per_1k_usd, "USD per 1000"),
        (then.first_tier_energy_j - now.first_tier_energy_j, now.first_tier_energy_j, f"J on {plan.tiers[0]}"),
    ]
    return "".join(f", {change:+.2g} {unit}" for change, base, unit in changes if abs(change) > 0.01 * base)


def baseline_table(items: Sequence[Baseline]) -> str:
    """The baselines as aligned text: latency, first tier's energy, price, and whether they are allowed."""
    rows = [("plan", "ms", "J", "USD/1000", "allowed")]
    for item in items:
        figures = item.plan.predicted
        rows.append(
            (
                item.plan.name,
                f"{figures.latency_s * _MS:.4g}",
                f"{figures.first_tier_energy_j:.3g}",
                f"{figures.price_per_1k_usd:.3g}",
                "yes" if item.reason is None else f"no: {item.reason}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:4], widths[1:], strict=True)), row[4]]
        )
        for row in rows
    )
