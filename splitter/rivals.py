"""What comes next to a plan, and how far the world must change for another to be best, in sentences.

The numbers come from `flagsplit.splitter.thresholds`; why the plan itself is best is in `flagsplit.splitter.explain`.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flagsplit.errors import PolicyError
from flagsplit.splitter.baselines import Baseline
from flagsplit.splitter.knobs import UNITS, Knob
from flagsplit.splitter.plan import Plan
from flagsplit.splitter.plan_maker import make_plan, tier_set_name
from flagsplit.splitter.pool import Pool
from flagsplit.splitter.pool_builder import bias_of
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.routes import route_through
from flagsplit.splitter.solvers import solve
from flagsplit.splitter.thresholds import BreakingPoint, Flip

_SEARCH_SECONDS = 0.5
_MS = 1e3


@dataclass(frozen=True)
class Rival:
    """A plan that was not chosen.

    Attributes:
        plan: it.
        worse_by: how much worse the objective is, relative.
        on_other_tiers: whether it is the best of those that use other tiers; otherwise it is the best of all others.
    """

    plan: Plan
    worse_by: float
    on_other_tiers: bool


def score_of(problem: Problem, plan: Plan) -> float:
    """What the SLA minimizes, for a plan at the nominal state."""
    if problem.sla.objective.goal == "throughput":
        return plan.bottleneck_s(problem.nominal)
    return problem.sla.objective.latency * plan.latency_s(problem.nominal) + bias_of(problem, plan)


def rivals(problem: Problem, pool: Pool, plan: Plan, others: Sequence[Baseline] = ()) -> tuple[Rival, ...]:
    """The runner-up, and the best plan that uses other tiers if that is another one.

    Args:
        problem: what was planned.
        pool: its pool.
        plan: what was chosen.
        others: baselines; those that are allowed count.
    """
    found = [*pool.plans, *_on_each_set(problem)]
    found += [each.plan for each in others if each.allowed and len(each.plan.placement) == len(plan.placement)]
    ranked = sorted(
        (each for each in found if each.placement != plan.placement), key=lambda each: score_of(problem, each)
    )
    best = ranked[:1]
    elsewhere = [each for each in ranked if each.used_tiers != plan.used_tiers][:1]
    mine = max(score_of(problem, plan), 1e-300)
    picked = {each.placement: (each, each in elsewhere) for each in (*best, *elsewhere)}
    return tuple(
        Rival(each, max(0.0, score_of(problem, each) / mine - 1), other and each not in best)
        for each, other in picked.values()
    )


def _on_each_set(problem: Problem) -> Iterator[Plan]:
    """The best plan on each set of tiers that leaves one out, where there is one."""
    count = len(problem.tiers)
    for size in range(1, count):
        for tiers in itertools.combinations(range(count), size):
            try:
                part = problem.restricted_to(tiers)
                found = solve(part, milp_seconds=_SEARCH_SECONDS, diagnose=False)
            except PolicyError:
                continue
            route = route_through(problem, found.route)
            yield make_plan(problem, found.placement, tier_set_name(problem.tier_names, found.placement), route=route)


def rival_sentences(problem: Problem, plan: Plan, found: Sequence[Rival]) -> tuple[str, ...]:
    """One line for each rival."""
    lines = []
    for rival in found:
        other = rival.plan
        what = "Best on other tiers" if rival.on_other_tiers else "Runner-up"
        if other.used_tiers != plan.used_tiers and not rival.on_other_tiers:
            what += ", also the best on other tiers"
        change = (other.latency_s(problem.nominal) - plan.latency_s(problem.nominal)) * _MS
        blocks = ", ".join(f"{other.placement.count(k)} on {other.tiers[k]}" for k in other.used_tiers)
        share = f"{100 * rival.worse_by:.3g} % worse" if rival.worse_by > 0 else "as good"
        lines.append(f"{what}: {other.name} ({blocks}), {share} by the objective, {change:+.3g} ms.")
    if not lines:
        lines.append("Runner-up: there is no other plan that the SLA allows.")
    return tuple(lines)


def flip_sentences(problem: Problem, plan: Plan, flips: Sequence[Flip]) -> tuple[str, ...]:
    """One line for each flip, the nearest first, such as "cloud link below 3.1 Mbit/s (now 20): all-phone"."""
    own = tier_set_name(problem.tier_names, plan.placement)
    return tuple(
        f"{_beyond(flip.knob, flip.factor, exact=flip.exact)}: "
        + (f"{flip.plan}, cut elsewhere" if flip.plan == own else flip.plan)
        for flip in sorted(flips, key=lambda flip: abs(math.log(flip.factor)))
    )


def breaking_sentences(points: Sequence[BreakingPoint]) -> tuple[str, ...]:
    """One line for each way in which the plan would break a bound."""
    return tuple(f"{_beyond(point.knob, point.factor, exact=True)}: this plan breaks {point.bound}" for point in points)


def no_flips_because(problem: Problem) -> str:
    """Why there are no flips to tell."""
    if problem.sla.objective.goal != "latency":
        return "Thresholds are for the goal latency; this SLA asks for throughput."
    if problem.sla.mode is not None:
        return f"No threshold would change the plan as long as the SLA's mode {problem.sla.mode} decides."
    if problem.sla.has_preferences:
        return "Thresholds are not told where the SLA's preferences have a say."
    return "No link, tier or price would change the plan if it alone were up to 64 times larger or smaller."


def _beyond(knob: Knob, factor: float, *, exact: bool) -> str:
    way = "below" if factor < 1 else "above"
    about = "" if exact else "about "
    value = f"{about}{knob.now * factor:.3g}"
    if knob.kind == "slowdown":
        times = 1 / factor if factor < 1 else factor
        return f"{knob.subject} more than {about}{times:.3g} times as {'fast' if factor < 1 else 'slow'} as now"
    what = {"bandwidth": f"{knob.subject} link", "rtt": f"{knob.subject} link's round trip"}
    return f"{what.get(knob.kind, knob.subject)} {way} {value} {UNITS[knob.kind]} (now {knob.now:.3g})"
