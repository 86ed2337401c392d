"""Every measure and limit against figures that are added up from a simulated request."""

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.splitter.oracles import energy_j, feasible, figures, keeps, random_state, weighted

from flagsplit.errors import PolicyError
from flagsplit.flagir.blockgraph import GRAPH_INPUT, Block, BlockGraph, BlockValue
from flagsplit.splitter.costs import Tier
from flagsplit.splitter.devices import Catalogue
from flagsplit.splitter.evaluate import Usage
from flagsplit.splitter.limits import limits_used, violations_of
from flagsplit.splitter.plan_maker import make_plan
from flagsplit.splitter.problem import Problem, make_problem
from flagsplit.splitter.rates import (
    bound_rates,
    carbon_rates,
    energy_rates,
    latency_rates,
    objective_rates,
    price_rates,
    stage_rates,
)
from flagsplit.splitter.sla import parse_sla
from flagsplit.splitter.solvers import solve
from flagsplit.splitter.testing import GraphBuilder, cnn, line, placements, random_problem, transformer


def _sla(rng: random.Random, problem: Problem) -> Problem:
    """Loads, power, cold starts and carbon, each in about a third of the problems, in reach of some placement."""
    some = rng.choice(list(placements(problem)))
    found = figures(problem, some)
    data: dict[str, Any] = problem.sla.model_dump(mode="json", exclude_none=True)
    data["objective"]["carbon"] = rng.choice([0.0, 0.5])
    bounds = {
        "carbon_per_1k_g": found.carbon_g * 1e3,
        "cold_start_ms": max(found.cold_start_s) * 1e3,
        "price_per_1k_usd": found.price_usd * 1e3,
    }
    data["bounds"] = {k: max(v * rng.choice([0.9, 1.01, 2]), 1e-6) for k, v in bounds.items() if rng.random() < 0.35}
    if rng.random() < 0.5:
        rate = data["requests_per_s"] = rng.choice([0.2, 0.9, 1.5]) / max(found.stages.values())
        data["power_w"] = {
            name: max(joules * rate * rng.choice([0.8, 1.3]), 1e-9)
            for name, joules in zip(problem.tier_names, found.tier_joules, strict=True)
            if rng.random() < 0.4
        }
    return problem.with_sla(parse_sla(data))


@pytest.mark.slow
def test_measures_are_what_a_request_does(catalogue: Catalogue) -> None:
    for seed in range(25):
        rng = random.Random(seed)
        problem = _sla(rng, random_problem(rng, catalogue, most_placements=300))
        every = list(placements(problem))
        rows = rng.sample(every, min(6, len(every)))
        usage, state = Usage(problem, np.array(rows)), random_state(rng, problem.nominal)
        stages = {name: usage.measure(rates) for name, rates in stage_rates(problem, state).items()}
        for i, row in enumerate(rows):
            now, nominal = figures(problem, row, state), figures(problem, row)
            near = pytest.approx
            assert usage.measure(latency_rates(problem, state))[i] == near(now.latency_s, rel=1e-12)
            assert usage.measure(price_rates(problem))[i] == near(nominal.price_usd, rel=1e-12)
            assert usage.measure(energy_rates(problem))[i] == near(energy_j(problem, nominal), rel=1e-12)
            assert usage.measure(carbon_rates(problem))[i] == near(nominal.carbon_g, rel=1e-12)
            assert usage.measure(objective_rates(problem, state))[i] == near(weighted(problem, row, state), rel=1e-12)
            assert {name: float(values[i]) for name, values in stages.items()} == near(dict(now.stages), rel=1e-12)
            assert sorted(usage.stages(state)[i]) == near(sorted(now.stages.values()), rel=1e-12)
            assert usage.tier_joules[i].tolist() == near(nominal.tier_joules, rel=1e-12)
            assert usage.carbon_g[i] == near(nominal.carbon_g, rel=1e-12)
            assert usage.price_usd[i] == near(nominal.price_usd, rel=1e-12)
            assert usage.cold_start_s[i].tolist() == near(nominal.cold_start_s, rel=1e-12)
            plan = make_plan(problem, row, "p")
            assert plan.features.carbon_g == near(nominal.carbon_g, rel=1e-12)
            assert plan.predicted.cold_start_s == near(max(nominal.cold_start_s), rel=1e-12)
            assert plan.predicted.bottleneck_s == near(max(nominal.stages.values()), rel=1e-12)


@pytest.mark.slow
def test_limits_are_judged_like_written_out(catalogue: Catalogue) -> None:
    kept = broken = 0
    for seed in range(60):
        rng = random.Random(seed)
        problem = _sla(rng, random_problem(rng, catalogue, most_placements=60))
        for row in placements(problem):
            assert (not violations_of(problem, row)) == keeps(problem, row), (seed, row)
            kept, broken = kept + keeps(problem, row), broken + (not keeps(problem, row))
    assert min(kept, broken) > 100


@pytest.mark.slow
def test_loads_power_cold_starts_and_carbon_against_exhaustive_search(catalogue: Catalogue) -> None:
    solved = refused = 0
    for seed in range(100, 150):
        rng = random.Random(seed)
        problem = _sla(rng, random_problem(rng, catalogue, most_placements=150))
        able = feasible(problem)
        if not able:
            with pytest.raises(PolicyError, match="no plan keeps the SLA"):
                solve(problem, diagnose=False)
            refused += 1
            continue
        solution = solve(problem)
        best = min(weighted(problem, placement) for placement in able)
        assert keeps(problem, solution.placement), seed
        assert solution.objective == pytest.approx(best, rel=1e-6, abs=1e-12), seed
        solved += 1
    assert solved >= 25
    assert refused >= 3


def _phone_and_cloud(catalogue: Catalogue, sla: dict[str, Any], link: str = "20mbit/20ms@lte") -> Problem:
    tiers, links = line("pixel8", "t4", links=[link], catalogue=catalogue)
    return make_problem(cnn(2, 2), tiers, links, parse_sla(sla))


def test_radio_tails(catalogue: Catalogue) -> None:
    """11.576 s at 1.06 W after a round trip over LTE, or until the next request; none where that is not known."""
    away = np.array([[1] * 5])

    def joules(sla: dict[str, Any], link: str = "20mbit/20ms@lte") -> float:
        return float(Usage(_phone_and_cloud(catalogue, sla, link), away).tier_joules[0, 0])

    rest = joules({})
    assert joules({"requests_per_s": 0.01}) == pytest.approx(rest + 11.576 * 1.06)
    assert joules({"requests_per_s": 1}) == pytest.approx(rest + 1.06)
    assert joules({"requests_per_s": 100}) == pytest.approx(rest + 0.0106)
    assert joules({"requests_per_s": 0.01}, "20mbit/20ms@wifi") - joules({}, "20mbit/20ms@wifi") == pytest.approx(
        0.2381 * 0.1193
    )
    assert joules({"requests_per_s": 1}, "20mbit/20ms@ethernet") == joules({}, "20mbit/20ms@ethernet")
    home = Usage(_phone_and_cloud(catalogue, {"requests_per_s": 1}), np.array([[0] * 5]))
    assert home.tier_joules[0, 0] == Usage(_phone_and_cloud(catalogue, {}), np.array([[0] * 5])).tier_joules[0, 0]


def test_a_cold_start_that_takes_longer_than_allowed(catalogue: Catalogue) -> None:
    """50 ms pass before any weight is loaded: then no block may run there, be it without weights."""
    graph = GraphBuilder("light", x=8)
    light = graph.build(graph.add("a", ["x"], 8, mflop=900))
    tiers, links = line("pixel8", "t4", links=["10gbit/10us"], catalogue=catalogue)
    for limit, expected in ((40.0, False), (50.0, True), (60.0, True)):
        problem = make_problem(light, tiers, links, parse_sla({"bounds": {"cold_start_ms": limit}}))
        assert (not violations_of(problem, (1,))) is expected, limit
        if expected:
            assert solve(problem).placement == (1,)
        else:
            with pytest.raises(PolicyError, match="cold_start_ms of"):
                solve(problem)


def test_regions_scale_carbon(catalogue: Catalogue) -> None:
    tiers, links = line("pixel8", "t4", links=["wifi"], catalogue=catalogue)
    grams = {}
    for name in ("SWE", "POL"):
        intensity = catalogue.region(name).grams_per_kwh(None)
        cloud = Tier("cloud", tiers[1].device, region=name, carbon_g_per_kwh=intensity)
        problem = make_problem(cnn(2, 2), [tiers[0], cloud], links)
        usage = Usage(problem, np.array([[1] * 5]))
        grams[name] = float(usage.carbon_g[0] - usage.tier_joules[0, 0] * 481 / 3.6e6)
        assert grams[name] == pytest.approx(float(usage.tier_joules[0, 1]) * intensity / 3.6e6)
    assert grams["POL"] / grams["SWE"] == pytest.approx(662 / 41)
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(PolicyError, match="'cloud': carbon_g_per_kwh"):
            Tier("cloud", tiers[1].device, carbon_g_per_kwh=wrong)


def test_no_figure_is_a_stranger(catalogue: Catalogue) -> None:
    """One block, one tier, no bytes, a value that is input and output at once, a block without inputs."""
    blocks = (
        Block(0, "made", ("made",), ("Range",), {}, 0, 0, 0, 0),
        Block(1, "reads", ("reads",), ("Relu",), {"elementwise": 0.0}, 0, 0, 0, 0),
    )
    values = (
        BlockValue("through", 400, GRAPH_INPUT, (), True),
        BlockValue("x", 0, GRAPH_INPUT, (1,), False),
        BlockValue("made_out", 0, 0, (1,), False),
        BlockValue("y", 0, 1, (), True),
    )
    graph = BlockGraph("odd", blocks, values, {})
    for devices, links in ((["t4"], []), (["pixel8", "t4"], ["1mbit/0ms"]), (["t4"] * 3, ["wan", "wan"])):
        tiers, joined = line(*devices, links=links, catalogue=catalogue)
        problem = make_problem(graph, tiers, joined)
        for row in placements(problem):
            found = figures(problem, row)
            plan = make_plan(problem, row, "p")
            assert plan.predicted.latency_s == pytest.approx(found.latency_s)
            assert sum(plan.features.up_bytes) == 0
        best = min(weighted(problem, row) for row in placements(problem))
        assert solve(problem).objective == pytest.approx(best)
        for sla in ({"requests_per_s": 1.0}, {"memory_mb": {tiers[0].name: 1e-6 * 400}}):
            assert solve(problem.with_sla(parse_sla(sla))).objective == pytest.approx(best)


def test_figures_that_are_none_are_refused(catalogue: Catalogue) -> None:
    problem = _phone_and_cloud(catalogue, {})
    for name in ("seconds", "power_w", "radio_tail_s"):
        for wrong in (np.nan, -1.0, np.inf):
            figure = getattr(problem.costs, name).copy()
            figure[-1] = wrong
            costs = _with(problem, name, figure)
            with pytest.raises(PolicyError, match=rf"costs\.{name}: every figure must be finite"):
                make_problem(problem.graph, problem.tiers, problem.links, costs=costs)
    with pytest.raises(PolicyError, match=r"costs\.seconds: expected the shape \(5, 2\), came \(4, 2\)"):
        make_problem(
            problem.graph, problem.tiers, problem.links, costs=_with(problem, "seconds", problem.costs.seconds[1:])
        )


def _with(problem: Problem, name: str, figure: Any) -> Any:
    return replace(problem.costs, **{name: figure})


def test_limits_have_names_and_units(catalogue: Catalogue) -> None:
    tiers, links = line("pixel8", "t4", links=["wifi"], catalogue=catalogue)
    sla = {
        "bounds": {"latency_ms": 1, "energy_mj": 1, "price_per_1k_usd": 1, "carbon_per_1k_g": 1, "cold_start_ms": 99},
        "requests_per_s": 2.0,
        "power_w": {"phone": 1.0},
        "use_tiers": ["cloud"],
        "memory_mb": {"phone": 1.0},
    }
    problem = make_problem(transformer(), tiers, links, parse_sla(sla))
    assert set(bound_rates(problem)) == {
        *("latency_ms", "energy_mj", "price_per_1k_usd", "carbon_per_1k_g", "power_w of phone"),
        *("cold_start_ms of phone", "cold_start_ms of cloud", "use_tiers: blocks not on cloud"),
        *("load of phone", "load of cloud", "load of phone to cloud", "load of cloud to phone"),
    }
    usage = Usage(problem, np.zeros((1, len(problem.graph.blocks)), dtype=np.int64))
    used = {name: float(values[0]) for name, (values, _) in limits_used(usage).items()}
    found = figures(problem, [0] * len(problem.graph.blocks))
    assert used["latency_ms"] == pytest.approx(found.latency_s * 1e3)
    assert used["carbon_per_1k_g"] == pytest.approx(found.carbon_g * 1e3)
    assert used["load of phone"] == pytest.approx(found.latency_s * 2.0)
    assert used["power_w of phone"] == pytest.approx(found.tier_joules[0] * 2.0)
    assert used["memory_mb of phone"] == pytest.approx(found.resident_bytes[0] / 1e6)
