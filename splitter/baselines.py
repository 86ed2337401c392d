"""What a plan is compared with: everything on one tier, compressed inputs, and the splits of two well-known papers.

A baseline's figures stand even where the SLA or a tier rules it out; then the reason stands beside them.

    all-TIER             the whole graph on one tier, raw input there and answer back
    all-TIER (JPEG ...)  the same on the last tier with the input in another form (`flagsplit.splitter.input_forms`)
    chain cut            one cut in topological order between the first tier and the last: Neurosurgeon, Kang et al.,
                         ASPLOS 2017
    two-tier cut         the minimum cut between the first tier and the last: DADS, Hu et al., INFOCOM 2019

The last two minimize the SLA's own objective, so what differs from our plan is the choice of splits, not the goal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from flagsplit.errors import PolicyError
from flagsplit.flagir.blockgraph import GRAPH_INPUT, Block, BlockGraph, BlockValue
from flagsplit.splitter.evaluate import Usage
from flagsplit.splitter.input_forms import Coded, InputForm
from flagsplit.splitter.limits import violations, which_keep
from flagsplit.splitter.milp_form import measured
from flagsplit.splitter.mincut import CutNetwork
from flagsplit.splitter.plan import Plan
from flagsplit.splitter.plan_maker import make_plan
from flagsplit.splitter.problem import Problem, make_problem
from flagsplit.splitter.rates import Rates, objective_rates
from flagsplit.splitter.routes import Route, routes_of
from flagsplit.splitter.sla import SLA
from flagsplit.splitter.solvers import goal_of, solve

_SEARCH_SECONDS = 2.0
_ROWS = 256

CHAIN_CUT = "best chain cut (Neurosurgeon)"
TWO_TIER_CUT = "best two-tier cut (DADS)"


@dataclass(frozen=True)
class Baseline:
    """Something to compare a plan with.

    Attributes:
        plan: what it would be; its figures stand even where the SLA or the tier rules it out.
        reason: why it is ruled out, or None if it is allowed.
        note: what to know beside.
    """

    plan: Plan
    reason: str | None
    note: str = ""

    @property
    def allowed(self) -> bool:
        """Whether the SLA and the tier permit it."""
        return self.reason is None


def single_tier_baselines(problem: Problem) -> tuple[Baseline, ...]:
    """One baseline for each tier, in line order, without codecs."""
    blocks = len(problem.graph.blocks)
    return tuple(_plain(problem, (k,) * blocks, f"all-{tier.name}") for k, tier in enumerate(problem.tiers))


def all_baselines(problem: Problem, forms: Sequence[InputForm] = ()) -> tuple[Baseline, ...]:
    """The single tiers, the last tier with each form of the inputs, the chain cut and the two-tier cut.

    On a line of one tier there is nothing but that tier.
    """
    single = single_tier_baselines(problem)
    if len(problem.tiers) == 1:
        return single
    coded = tuple(_with_form(problem, form) for form in forms)
    return (*single, *coded, chain_cut(problem), two_tier_cut(problem))


def why_not(problem: Problem, placement: Sequence[int], plain: bool = False) -> str | None:
    """Why a placement is not allowed, or None if it is.

    Args:
        problem: with the rules.
        placement: tier index of each block.
        plain: whether all values travel as they are.
    """
    chosen = np.arange(len(placement)), np.array(placement)
    barred = np.flatnonzero(~problem.constraints.allowed[chosen])
    if barred.size:
        block = int(barred[0])
        tier = placement[block]
        more = f" (and {barred.size - 1} more blocks)" if barred.size > 1 else ""
        where = "there" if len(set(placement)) == 1 else f"on {problem.tiers[tier].name}"
        why = problem.constraints.reasons.get((block, tier), "left out")
        return f"block {problem.graph.blocks[block].name!r}{more} cannot run {where}: {why}"
    route = best_route(problem, placement)
    row = np.array([route.from_whole_line(placement)], dtype=np.int64)
    usage = Usage(route.problem, row) if plain else Usage.for_objective(route.problem, row)
    return "; ".join(str(violation) for violation in violations(usage)) or None


def best_route(problem: Problem, placement: Sequence[int]) -> Route:
    """The way on which a placement is best for the objective at the nominal state."""
    routes = [route for route in routes_of(problem) if set(placement) <= set(route.tiers)]
    if len(routes) == 1:
        return routes[0]

    def value(route: Route) -> float:
        goal = goal_of(route.problem, route.state(problem.nominal))
        return measured(route.problem, goal, route.from_whole_line(placement))

    return min(routes, key=value)


def _plain(problem: Problem, placement: tuple[int, ...], name: str) -> Baseline:
    """A placement whose values travel as they are."""
    route = best_route(problem, placement)
    raw = np.zeros((2, len(problem.graph.values)), dtype=np.int64)
    plan = make_plan(problem, placement, name, route=route, codecs=raw)
    return Baseline(plan, why_not(problem, placement, plain=True))


def chain_cut(problem: Problem) -> Baseline:
    """The best of all single cuts in topological order between the first tier and the last, the two ends included."""
    blocks, last = len(problem.graph.blocks), len(problem.tiers) - 1
    cuts = np.where(np.arange(blocks) < np.arange(blocks + 1)[:, np.newaxis], 0, last)
    allowed = problem.constraints.allowed[np.arange(blocks), cuts].all(axis=1)
    best: tuple[bool, float, int, Route] | None = None
    for route in routes_of(problem):
        if last in route.tiers:
            part, goal = route.problem, goal_of(route.problem, route.state(problem.nominal))
            values, keep = _measure(part, np.where(cuts == last, len(part.tiers) - 1, 0), goal)
            barred = ~(keep & allowed)
            first = int(np.lexsort((np.arange(blocks + 1), values, barred))[0])
            found = bool(barred[first]), float(values[first]), first, route
            best = found if best is None else min(best, found, key=lambda each: each[:2])
    assert best is not None  # the whole line is a route
    placement = tuple(int(k) for k in cuts[best[2]])
    return Baseline(make_plan(problem, placement, CHAIN_CUT, route=best[3]), why_not(problem, placement))


def _measure(
    problem: Problem, placements: NDArray[np.int64], goal: Rates | tuple[Rates, ...]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The goal of each placement, and whether it keeps caps and bounds, a few rows at a time."""
    goals = (goal,) if isinstance(goal, Rates) else goal
    values, keep = [], []
    for start in range(0, len(placements), _ROWS):
        usage = Usage.for_objective(problem, placements[start : start + _ROWS])
        values.append(np.max([usage.measure(rates) for rates in goals], axis=0))
        keep.append(which_keep(usage))
    return np.concatenate(values), np.concatenate(keep)


def two_tier_cut(problem: Problem) -> Baseline:
    """The best plan that uses no tier but the first and the last; without the rules where these leave none."""
    ends = (0, len(problem.tiers) - 1)
    try:
        two = problem.restricted_to(ends)
        placement = solve(two, milp_seconds=_SEARCH_SECONDS, diagnose=False).placement
    except PolicyError:
        allowed = np.zeros_like(problem.constraints.allowed)
        allowed[:, ends] = True
        placement = CutNetwork(problem, allowed).least(objective_rates(problem, problem.nominal)).placement
    route = best_route(problem, placement)
    return Baseline(make_plan(problem, placement, TWO_TIER_CUT, route=route), why_not(problem, placement))


def _with_form(problem: Problem, form: InputForm) -> Baseline:
    """Everything on the last tier, with inputs that a block on the first encodes and one on the last decodes."""
    last, blocks = len(problem.tiers) - 1, len(problem.graph.blocks)
    other = _recoded(problem, form.coded)
    placement = (0,) * len(form.coded) + (last,) * (len(form.coded) + blocks)
    found = _plain(other, placement, f"all-{problem.tiers[last].name} ({form.name} input)")
    ruled_out = problem.sla.use_tiers or not problem.constraints.allowed[:, last].all()
    reason = why_not(problem, (last,) * blocks) if ruled_out else found.reason
    return replace(found, reason=reason, note=form.note)


def _recoded(problem: Problem, coded: Mapping[str, Coded]) -> Problem:
    """The problem with an encoder and a decoder in front; of the rules only caps and bounds stay."""
    work = [(c.encode_bytes, c.decode_bytes) for c in coded.values()]
    moved = np.array([w[0] for w in work] + [w[1] for w in work])
    bandwidth = np.array([tier.device.memory_bandwidth.value for tier in problem.tiers])
    seconds = np.concatenate([moved[:, np.newaxis] / bandwidth, problem.costs.seconds])
    sla = problem.sla
    limits = SLA(
        objective=sla.objective,
        bounds=sla.bounds,
        requests_per_s=sla.requests_per_s,
        memory_mb=sla.memory_mb,
        power_w=sla.power_w,
        energy_scope=sla.energy_scope,
    )
    graph, costs = _recoded_graph(problem.graph, coded), replace(problem.costs, seconds=seconds)
    return make_problem(graph, problem.tiers, problem.links, limits, None, costs, problem.bypasses)


def _recoded_graph(graph: BlockGraph, coded: Mapping[str, Coded]) -> BlockGraph:
    count = len(coded)
    shift = 2 * count
    at = {name: i for i, name in enumerate(coded)}
    blocks = [_coder(i, f"encode {name}") for name, i in at.items()]
    blocks += [_coder(count + i, f"decode {name}") for name, i in at.items()]
    blocks += [replace(block, index=block.index + shift) for block in graph.blocks]
    raw, made, rest = [], [], []
    for value in graph.values:
        readers = tuple(c + shift for c in value.consumers)
        if value.producer != GRAPH_INPUT:
            rest.append(replace(value, producer=value.producer + shift, consumers=readers))
        elif value.name not in at:
            raw.append(replace(value, consumers=readers))
        else:
            i = at[value.name]
            raw.append(replace(value, consumers=(i,)))
            made.append(BlockValue(f"{value.name} coded", coded[value.name].size_bytes, i, (count + i,)))
            rest.append(BlockValue(f"{value.name} decoded", value.size_bytes, count + i, readers))
    rest.sort(key=lambda value: value.producer)
    return replace(graph, blocks=tuple(blocks), values=(*raw, *made, *rest))


def _coder(index: int, name: str) -> Block:
    return Block(index, name, (name,), (name.split(" ", maxsplit=1)[0],), {}, 0, 0, 0, 0)
