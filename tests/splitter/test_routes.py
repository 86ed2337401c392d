"""By-passes against exhaustive search over every line and placement, each line built and simulated on its own."""

import json
import random
from dataclasses import replace
from typing import Any

import pytest
from tests.splitter.oracles import feasible, figures, goal_value, keeps, shorter_lines, weighted, with_bypasses

from flagsplit.errors import BundleError, PolicyError
from flagsplit.splitter.devices import Catalogue
from flagsplit.splitter.links import parse_link
from flagsplit.splitter.plan import Plan
from flagsplit.splitter.plan_maker import make_plan
from flagsplit.splitter.pool import Pool
from flagsplit.splitter.pool_builder import build_pool
from flagsplit.splitter.problem import Bypass, Problem, make_problem
from flagsplit.splitter.routes import route_through, routes_of
from flagsplit.splitter.sla import parse_sla
from flagsplit.splitter.solvers import solve
from flagsplit.splitter.state import State
from flagsplit.splitter.testing import cnn, line, random_problem, simulate, unet, with_random_limits

_LINKS = [parse_link(text) for text in ("1mbit/1ms", "20mbit:100mbit/10ms@lte", "1gbit/100us", "10gbit/10us")]


def _random(seed: int, catalogue: Catalogue) -> Problem:
    rng = random.Random(seed)
    while True:
        problem = random_problem(rng, catalogue, most_placements=150)
        if len(problem.tiers) >= 3:
            break
    problem = with_random_limits(rng, problem) if rng.random() < 0.4 else problem
    data = problem.sla.model_dump(mode="json", exclude_none=True)
    names = problem.tier_names
    data["objective"]["goal"] = rng.choice(["latency", "latency", "throughput"])
    data["use_tiers"] = rng.sample(names, rng.choice([0, 0, 0, 1, 2]))
    if rng.random() < 0.3:
        data |= {"prefer_tiers": rng.sample(names, 1), "prefer_within": rng.choice([0.1, 1.0])}
    return with_bypasses(rng, problem.with_sla(parse_sla(data)), _LINKS)


@pytest.mark.slow
@pytest.mark.parametrize("first_seed", range(0, 60, 30))
def test_equals_exhaustive_search(catalogue: Catalogue, first_seed: int) -> None:
    bypassed = refused = 0
    for seed in range(first_seed, first_seed + 30):
        problem = _random(seed, catalogue)
        lines = {tiers: (own, feasible(own)) for tiers, own, _ in shorter_lines(problem)}
        values = [goal_value(own, placement) for own, able in lines.values() for placement in able]
        if not values:
            with pytest.raises(PolicyError, match="no plan keeps the SLA"):
                solve(problem, diagnose=False)
            refused += 1
            continue
        best, within = min(values), problem.sla.prefer_within if problem.sla.has_preferences else 0.0
        solution = solve(problem)
        own, _ = lines[solution.route]
        inside = tuple(solution.route.index(k) for k in solution.placement)
        assert keeps(own, inside), seed
        assert goal_value(own, inside) == pytest.approx(solution.objective, rel=1e-9), seed
        assert solution.objective <= best * (1 + within) * (1 + 3e-6), seed
        assert solution.bound <= best * (1 + 1e-9), seed
        bypassed += len(solution.route) < len(problem.tiers)
        if problem.sla.has_preferences:
            good = [
                _elsewhere(problem, own, placement)
                for own, able in lines.values()
                for placement in able
                if goal_value(own, placement) <= best * (1 + within) * (1 - 3e-6)
            ]
            least = min(good, default=float("inf"))
            assert _elsewhere(problem, own, inside) <= least * (1 + 2e-6) + 1e-9, seed
        elif problem.sla.objective.goal == "throughput":
            ties = [
                weighted(own, placement)
                for own, able in lines.values()
                for placement in able
                if goal_value(own, placement) <= best * (1 + 1e-9)
            ]
            assert weighted(own, inside) <= min(ties) * (1 + 1e-6) + 1e-12, seed
    assert bypassed >= 3


def _elsewhere(problem: Problem, own: Problem, placement: tuple[int, ...]) -> float:
    stages = figures(own, placement).stages
    return sum(stages[name] for name in own.tier_names if name not in problem.sla.prefer_tiers)


def _three(catalogue: Catalogue, near: str, far: str, past: str, sla: dict[str, Any] | None = None) -> Problem:
    tiers, links = line("generic-phone-cpu", "generic-edge-cpu", "t4", links=[near, far], catalogue=catalogue)
    bypass = Bypass(0, 2, parse_link(past, catalogue.links))
    return make_problem(unet(), tiers, links, parse_sla(sla or {}), bypasses=[bypass])


def test_lines_of_a_problem(catalogue: Catalogue) -> None:
    problem = _three(catalogue, "wifi", "wan", "lte")
    # Phone and edge alone are the whole line whose end is not used.
    assert [route.tiers for route in routes_of(problem)] == [(0, 1, 2), (0, 2)]
    short = route_through(problem, (0, 2))
    assert short.links == (2,)
    assert short.problem.tier_names == ("phone", "cloud")
    assert short.on_whole_line((0, 1, 1)) == (0, 2, 2)
    assert short.from_whole_line((0, 2, 2)) == (0, 1, 1)
    assert short.state(problem.nominal) == short.problem.nominal
    with pytest.raises(PolicyError, match="expected one of 0-1-2, 0-2, came 0-1"):
        route_through(problem, (0, 1))
    assert [r.tiers for r in routes_of(problem.with_sla(parse_sla({"use_tiers": ["edge"]})))] == [(0, 1, 2)]
    pinned = problem.with_sla(parse_sla({"pins": {"enc0": "edge"}}))
    assert [r.tiers for r in routes_of(pinned)] == [(0, 1, 2)]


def test_lines_of_five_tiers(catalogue: Catalogue) -> None:
    tiers, links = line(*["t4"] * 5, links=["wan"] * 4, catalogue=catalogue)
    link = parse_link("lte", catalogue.links)
    problem = make_problem(cnn(1, 1), tiers, links, bypasses=[Bypass(0, 2, link), Bypass(1, 4, link)])
    assert {route.tiers for route in routes_of(problem)} == {(0, 1, 2, 3, 4), (0, 2, 3, 4), (0, 1, 4)}


@pytest.mark.parametrize("pairs", [[(0, 1)], [(2, 0)], [(0, 3)], [(-1, 1)], [(0, 2), (0, 2)], [(1, 1)]])
def test_bad_bypasses(catalogue: Catalogue, pairs: list[tuple[int, int]]) -> None:
    tiers, links = line("pixel8", "t4", "t4", links=["wifi", "wan"], catalogue=catalogue)
    with pytest.raises(PolicyError, match="bypass") as caught:
        make_problem(cnn(), tiers, links, bypasses=[Bypass(a, b, links[0]) for a, b in pairs])
    assert "\n" not in str(caught.value)


def test_a_tier_that_must_be_used_is_not_passed_by(catalogue: Catalogue) -> None:
    fast = _three(catalogue, "1mbit/50ms", "1mbit/50ms", "10gbit/10us")
    assert solve(fast).route == (0, 2)
    used = solve(fast.with_sla(parse_sla({"use_tiers": ["edge"]})))
    assert used.route == (0, 1, 2)
    assert 1 in used.placement


def test_what_is_preferred_may_be_passed_by(catalogue: Catalogue) -> None:
    """A line without any preferred tier is one of the choices, and no error."""
    fast = _three(catalogue, "1mbit/50ms", "1mbit/50ms", "10gbit/10us", {"prefer_tiers": ["edge"]})
    assert solve(fast).route == (0, 2)


def test_a_mode_takes_the_better_way(catalogue: Catalogue) -> None:
    for near, past, route in (("1gbit/1ms", "1mbit/9ms", (0, 1, 2)), ("1mbit/9ms", "1gbit/1ms", (0, 2))):
        problem = _three(catalogue, near, "10gbit/1ms", past, {"mode": "prefer_in_cloud"})
        solution = solve(problem)
        assert solution.solver == "mode"
        assert solution.route == route


def _bypassing(catalogue: Catalogue) -> tuple[Problem, Plan, Problem]:
    problem = _three(catalogue, "wifi", "wan", "20mbit:100mbit/10ms@lte")
    placement = (0, 0, *[2] * (len(problem.graph.blocks) - 3), 0)
    plan = make_plan(problem, placement, "by", route=route_through(problem, (0, 2)))
    return problem, plan, next(own for tiers, own, _ in shorter_lines(problem) if tiers == (0, 2))


def test_features_are_on_the_links_that_are_used(catalogue: Catalogue) -> None:
    _, plan, own = _bypassing(catalogue)
    walk = simulate(own, [k // 2 for k in plan.placement], own.nominal)
    assert plan.route == (0, 2)
    assert plan.features.up_bytes == (0.0, 0.0, walk.up_bytes[0])
    assert plan.features.down_bytes == (0.0, 0.0, walk.down_bytes[0])
    assert plan.features.up_messages == plan.features.down_messages == (0.0, 0.0, walk.up_messages[0])
    assert plan.features.tier_seconds == pytest.approx((walk.tier_seconds[0], 0.0, walk.tier_seconds[1]))
    found = figures(own, [k // 2 for k in plan.placement])
    assert plan.features.tier_joules == pytest.approx((found.tier_joules[0], 0.0, found.tier_joules[1]))
    assert plan.predicted.latency_s == pytest.approx(found.latency_s)
    assert plan.predicted.bottleneck_s == pytest.approx(max(found.stages.values()))


def test_a_state_has_entries_for_bypasses(catalogue: Catalogue) -> None:
    problem, plan, own = _bypassing(catalogue)
    assert len(problem.nominal.up_s_per_byte) == 3
    state = replace(problem.nominal, slowdown=(2.0, 9.0, 3.0)).scaled([7.0, 7.0, 0.1], 4.0)
    seen = State(
        (2.0, 3.0),
        state.up_s_per_byte[2:],
        state.down_s_per_byte[2:],
        state.up_s_per_message[2:],
        state.down_s_per_message[2:],
        (True, True),
    )
    inside = [k // 2 for k in plan.placement]
    assert plan.latency_s(state) == pytest.approx(figures(own, inside, seen).latency_s)
    assert plan.bottleneck_s(state) == pytest.approx(max(figures(own, inside, seen).stages.values()))


@pytest.fixture(scope="module")
def both(catalogue: Catalogue) -> tuple[Problem, Pool]:
    problem = _three(catalogue, "1gbit/2ms", "1gbit/4ms", "200mbit/10ms", {"forbid_tiers": ["edge"]})
    return problem, build_pool(problem)


def test_a_pool_holds_both_ways(both: tuple[Problem, Pool]) -> None:
    problem, pool = both
    routes = {plan.route for plan in pool.plans if plan.used_tiers != (0,)}
    assert routes == {(), (0, 2)}
    near, past = problem.nominal.scaled([1, 1, 0.01]), problem.nominal.scaled([0.01, 0.01, 1])
    slow_phone = (50.0, 1.0, 1.0)
    assert pool.choose(replace(near, slowdown=slow_phone)).plan.route == ()
    assert pool.choose(replace(past, slowdown=slow_phone)).plan.route == (0, 2)
    for state in (near, past, problem.nominal):
        assert pool.choose(state).latency_s <= solve(problem, state).objective * 1.001
    # A dead edge runs nothing anyway.
    dead = replace(past, slowdown=slow_phone, alive=(True, False, True))
    assert pool.choose(dead).plan.route == (0, 2)
    with pytest.raises(PolicyError, match="links"):
        pool.choose(State.nominal(problem.links))


def test_plans_with_routes_go_through_json(both: tuple[Problem, Pool]) -> None:
    _, pool = both
    assert Pool.from_json(pool.to_json()) == pool
    assert Pool.from_json(pool.to_json()).to_json() == pool.to_json()
    for plan in pool.plans:
        assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("route", [[0, 3], [2, 0], [0, 0, 2], [0], [1, 2], "02", [0, 1.0, 2], [0, 1]])
def test_a_damaged_route_is_refused(both: tuple[Problem, Pool], route: object) -> None:
    data = next(plan for plan in both[1].plans if plan.route).to_data()
    with pytest.raises(BundleError, match="route"):
        Plan.from_json(json.dumps({**data, "route": route}))


@pytest.mark.slow
def test_random_pools_over_bypasses_leave_little(catalogue: Catalogue) -> None:
    for seed in range(6):
        rng = random.Random(seed)
        problem = random_problem(rng, catalogue, most_placements=150)
        if len(problem.tiers) != 3:
            continue
        problem = with_bypasses(rng, problem, _LINKS)
        pool = build_pool(problem)
        for _ in range(4):
            state = problem.nominal.scaled([rng.choice([0.2, 1.0, 5.0]) for _ in range(3)], rng.choice([0.5, 2.0]))
            chosen = pool.scores(state).min()
            assert chosen <= solve(problem, state).objective * 1.001, seed
