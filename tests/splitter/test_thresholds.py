"""Flip thresholds against a fine sweep in which every placement is tried."""

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from flagsplit.splitter.devices import Catalogue
from flagsplit.splitter.evaluate import Usage
from flagsplit.splitter.knobs import Knob, knobs_of, turned
from flagsplit.splitter.limits import which_keep
from flagsplit.splitter.links import parse_link
from flagsplit.splitter.plan_maker import make_plan
from flagsplit.splitter.problem import Bypass, Problem, make_problem
from flagsplit.splitter.rates import objective_rates
from flagsplit.splitter.sla import parse_sla
from flagsplit.splitter.solvers import solve
from flagsplit.splitter.testing import cnn, line, placements, random_problem
from flagsplit.splitter.thresholds import FARTHEST, Flip, Thresholds, breaking_points

_STEPS = 1000


def _loss(problem: Problem, chosen: tuple[int, ...], knob: Knob) -> Callable[[float], float]:
    """How much worse than the best of all placements the chosen one is at a factor, relative."""
    rows = np.array(list(placements(problem)))
    rows = rows[which_keep(Usage(problem, rows))]
    mine = int(np.flatnonzero((rows == chosen).all(axis=1))[0])
    at = {}
    for x in (1.0, 2.0, 3.0):
        other, state = turned(problem, knob, x)
        at[x] = Usage(other, rows).measure(objective_rates(other, state))
    slope = at[2.0] - at[1.0]
    np.testing.assert_allclose(at[3.0], at[1.0] + 2 * slope, rtol=1e-9, atol=1e-12)

    def loss(x: float) -> float:
        values = at[1.0] + (x - 1) * slope
        return float(values[mine] / values.min() - 1)

    return loss


def _check(problem: Problem, chosen: tuple[int, ...], knob: Knob, end: float, flip: Flip | None) -> None:
    """Up to the flip the chosen placement is as good as any on a fine grid, and right after it is not."""
    loss = _loss(problem, chosen, knob)
    grid = np.geomspace(1.0, end, _STEPS)
    if flip is None:
        assert max(loss(float(x)) for x in grid) <= 1e-6
        return
    at = 1 / flip.factor if knob.kind == "bandwidth" else flip.factor
    assert flip.placement != chosen
    assert flip.exact
    assert min(1.0, end) <= at <= max(1.0, end)
    before = [float(x) for x in grid if abs(x - 1) <= abs(at - 1)]
    assert max(loss(x) for x in [*before, at]) <= 1e-6
    assert loss(end) > 1e-7
    assert loss(at + (end - at) * 0.01) > loss(at) - 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_first_flip_is_where_a_sweep_finds_it(catalogue: Catalogue, seed: int) -> None:
    rng = random.Random(seed)
    problem = random_problem(rng, catalogue, most_placements=250)
    solution = solve(problem)
    search = Thresholds(problem, solution.placement, seconds=60.0)
    for knob in knobs_of(problem):
        for end in (1 / FARTHEST, FARTHEST):
            _check(problem, solution.placement, knob, end, search.first(knob, end))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2, 3, 5])
def test_limits_are_kept(catalogue: Catalogue, seed: int) -> None:
    """Under a memory cap that binds every solve is a program."""
    rng = random.Random(100 + seed)
    free = random_problem(rng, catalogue, most_placements=100)
    best = solve(free)
    used = Usage(free, np.array([best.placement])).resident_bytes[0]
    busy = int(used.argmax())
    cap = {free.tier_names[busy]: max(float(used[busy]) * 0.9 / 1e6, 1e-6)}
    rows = np.array(list(placements(free)))
    problem = free.with_sla(free.sla.model_copy(update={"memory_mb": cap}))
    assert which_keep(Usage(problem, rows)).any()
    solution = solve(problem)
    search = Thresholds(problem, solution.placement, seconds=60.0)
    for knob in knobs_of(problem)[:3]:
        _check(problem, solution.placement, knob, FARTHEST, search.first(knob, FARTHEST))


def test_names_and_units(catalogue: Catalogue) -> None:
    names = ("generic-phone-cpu", "generic-edge-cpu", "t4")
    tiers, links = line(*names, links=["20mbit/10ms", "wan"], catalogue=catalogue)
    bypass = Bypass(0, 2, parse_link("5mbit/40ms"))
    problem = make_problem(cnn(), tiers, links, parse_sla({"objective": {"price": 1.0}}), bypasses=[bypass])
    named = {knob.name: knob.now for knob in knobs_of(problem)}
    assert named["bandwidth of the edge link"] == pytest.approx(20.0)
    assert named["round trip of the phone-cloud link"] == pytest.approx(40.0)
    assert named["slow-down of edge"] == 1.0
    assert named["price of cloud"] == pytest.approx(tiers[2].device.price.value)


def test_by_passes_are_routes_like_others(catalogue: Catalogue) -> None:
    """A by-pass that gets fast enough takes the work to the cloud."""
    tiers, links = line("generic-phone-cpu", "generic-edge-cpu", "t4", links=["5mbit/10ms", "5mbit/9ms"])
    problem = make_problem(cnn(), tiers, links, bypasses=[Bypass(0, 2, parse_link("8mbit/20ms"))])
    solution = solve(problem)
    flips = Thresholds(problem, solution.placement).flips()
    (faster,) = [f for f in flips if f.knob.name == "bandwidth of the phone-cloud link"]
    assert faster.factor > 1
    assert faster.route == (0, 2)
    world = problem.with_links(links, [Bypass(0, 2, parse_link(f"{faster.then * 1.01:.6f}mbit/20ms"))])
    assert solve(world).placement != solution.placement
    world = problem.with_links(links, [Bypass(0, 2, parse_link(f"{faster.then * 0.99:.6f}mbit/20ms"))])
    assert solve(world).placement == solution.placement


def test_what_does_not_minimize_a_sum_has_no_flips(catalogue: Catalogue) -> None:
    tiers, links = line("generic-phone-cpu", "t4", links=["wifi"], catalogue=catalogue)
    for sla in ({"objective": {"goal": "throughput"}}, {"mode": "prefer_on_device"}, {"prefer_tiers": ["phone"]}):
        problem = make_problem(cnn(), tiers, links, parse_sla(sla))
        assert Thresholds(problem, solve(problem).placement).flips() == ()


def test_bounds_break_where_latency_says(catalogue: Catalogue) -> None:
    tiers, links = line("generic-phone-cpu", "t4", links=["50mbit/10ms"], catalogue=catalogue)
    problem = make_problem(cnn(), tiers, links)
    plan = make_plan(problem, solve(problem).placement, "best")
    bound = plan.predicted.latency_s * 1e3 * 1.5
    problem = problem.with_sla(parse_sla({"bounds": {"latency_ms": bound}}))
    points = breaking_points(problem, plan)
    assert points
    for point in points:
        x = 1 / point.factor if point.knob.kind == "bandwidth" else point.factor
        assert plan.latency_s(turned(problem, point.knob, x)[1]) * 1e3 == pytest.approx(bound)
    assert breaking_points(replace(problem, sla=parse_sla({})), plan) == ()
