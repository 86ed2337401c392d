"""Why this plan: plain sentences, the baselines beside it, and what the SLA's limits cost.

The sentences are for people; everything in them is also data in `Baseline` and in the plans' `Predicted`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from flagsplit.errors import PolicyError
from flagsplit.splitter.plan import Plan
from flagsplit.splitter.plan_maker import make_plan, tier_set_name
from flagsplit.splitter.pool import Choice, Pool
from flagsplit.splitter.pool_builder import why_not_all_on
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.sla import SLA, Bounds
from flagsplit.splitter.solvers import solve
from flagsplit.splitter.state import State

_MS = 1e3
_WHAT_IF_SECONDS = 2.0


@dataclass(frozen=True)
class Baseline:
    """The whole graph on one tier, raw input sent there and the answer sent back.

    Attributes:
        plan: what it would be; its figures stand even where the SLA or the tier rules it out.
        reason: why it is ruled out, or None if it is allowed.
    """

    plan: Plan
    reason: str | None

    @property
    def allowed(self) -> bool:
        """Whether the SLA and the tier permit it."""
        return self.reason is None


def baselines(problem: Problem) -> tuple[Baseline, ...]:
    """One baseline for each tier, in line order."""
    blocks = len(problem.graph.blocks)
    return tuple(
        Baseline(make_plan(problem, (k,) * blocks, f"all-{tier.name}"), why_not_all_on(problem, k))
        for k, tier in enumerate(problem.tiers)
    )


def plan_without_limits(problem: Problem) -> Plan:
    """What would be chosen without the SLA's bounds, memory caps and privacy; pins and forbidden tiers stay."""
    free = problem.with_sla(problem.sla.without_limits())
    placement = solve(free, milp_seconds=_WHAT_IF_SECONDS).placement
    return make_plan(free, placement, tier_set_name(free.tier_names, placement))


def explain_choice(problem: Problem, pool: Pool, choice: Choice) -> tuple[str, ...]:
    """Sentences that say what was chosen and what decided it, most important first."""
    plan = choice.plan
    sentences = [_headline(plan, problem.nominal)]
    sentences += [_against(plan, baseline, problem.nominal) for baseline in baselines(problem) if baseline.plan != plan]
    if len(plan.used_tiers) == 1:
        sentences.append(_do_not_split(plan, pool, problem))
    sentences += _what_binds(problem, plan)
    return tuple(sentences)


def _parts(plan: Plan, state: State) -> tuple[float, float]:
    """Milliseconds of computing and of transfer."""
    compute_s = sum(s * slow for s, slow in zip(plan.features.tier_seconds, state.slowdown, strict=True))
    return compute_s * _MS, (plan.latency_s(state) - compute_s) * _MS


def _headline(plan: Plan, state: State) -> str:
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


def _against(plan: Plan, baseline: Baseline, state: State) -> str:
    other = baseline.plan
    if baseline.reason is not None:
        return f"{other.name} is not allowed: {baseline.reason}."
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
    what, mine, theirs = ("computing", compute, other_compute) if computing else ("transfer", transfer, other_transfer)
    return f"{other.name} would be {slower:.3g} ms slower: {what} takes {theirs:.3g} ms there against {mine:.3g} ms."


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


def _relaxations(sla: SLA) -> Iterator[tuple[str, SLA]]:
    if sla.bounds != Bounds():
        yield "the bounds", sla.model_copy(update={"bounds": Bounds()})
    if sla.memory_mb:
        yield "memory_mb", sla.model_copy(update={"memory_mb": {}})
    if sla.keep_on:
        yield "privacy (keep_on)", sla.model_copy(update={"keep_on": {}})
    if sla.pins:
        yield "the pins", sla.model_copy(update={"pins": {}})
    if sla.forbid_tiers:
        yield "forbid_tiers", sla.model_copy(update={"forbid_tiers": ()})


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
        placement = solve(problem, milp_seconds=_WHAT_IF_SECONDS, diagnose=False).placement
    except PolicyError:
        return None
    return make_plan(problem, placement, tier_set_name(problem.tier_names, placement))


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
