"""Plans and the pool: round trips through JSON, the choice, dead tiers, the certificate, and how light it is."""

import json
import random
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from flagsplit.errors import BundleError, PolicyError, UnavailableError
from flagsplit.flagir.blockgraph import BlockGraph
from flagsplit.splitter.devices import Catalogue
from flagsplit.splitter.grid import Grid
from flagsplit.splitter.limits import violations_of
from flagsplit.splitter.plan import Plan
from flagsplit.splitter.pool import Pool
from flagsplit.splitter.pool_builder import build_pool, excess
from flagsplit.splitter.problem import Problem, make_problem
from flagsplit.splitter.sla import parse_sla
from flagsplit.splitter.solvers import solve
from flagsplit.splitter.state import State
from flagsplit.splitter.testing import cnn, line, simulate, transformer, two_tower, unet


def _problem(catalogue: Catalogue, graph: BlockGraph, sla: dict[str, Any] | None = None, **supports: Any) -> Problem:
    tiers, links = line("generic-phone-cpu", "generic-edge-cpu", "t4", links=["wifi", "wan"], catalogue=catalogue)
    return make_problem(graph, tiers, links, parse_sla(sla or {}), supports)


PRIVATE = {"keep_on": {"inputs": "phone"}}


@pytest.fixture(scope="module")
def problem(catalogue: Catalogue) -> Problem:
    return _problem(catalogue, two_tower())


@pytest.fixture(scope="module")
def pool(problem: Problem) -> Pool:
    return build_pool(problem)


def test_runs_without_solvers() -> None:
    code = (
        "import sys, flagsplit.splitter.pool, flagsplit.splitter; flagsplit.splitter.Plan; "
        "print([m for m in ('ortools', 'pandas', 'pydantic', 'onnx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_round_trips_through_json(pool: Pool) -> None:
    text = pool.to_json()
    assert Pool.from_json(text) == pool
    assert Pool.from_json(text).to_json() == text
    for plan in pool.plans:
        assert Plan.from_json(plan.to_json()) == plan


def test_same_input_same_bytes(problem: Problem, pool: Pool) -> None:
    assert build_pool(problem).to_json() == pool.to_json()


def test_names_are_unique_and_say_the_tiers(pool: Pool) -> None:
    names = [plan.name for plan in pool.plans]
    assert len(set(names)) == len(names)
    assert {"all-phone", "all-edge", "all-cloud"} <= set(names)
    for plan in pool.plans:
        used = [plan.tiers[k] for k in plan.used_tiers]
        assert plan.name.startswith("+".join(used) if len(used) > 1 else f"all-{used[0]}")


def test_plan_latency_is_the_simulated_one(problem: Problem, pool: Pool) -> None:
    rng = random.Random(3)
    for plan in pool.plans:
        for _ in range(5):
            state = replace(problem.nominal, slowdown=tuple(rng.uniform(0.5, 9) for _ in range(3)))
            state = state.scaled([rng.uniform(0.1, 9), rng.uniform(0.1, 9)], rng.uniform(0, 9))
            assert plan.latency_s(state) == pytest.approx(simulate(problem, plan.placement, state).latency_s)


def test_cuts_are_what_crosses(problem: Problem, pool: Pool) -> None:
    for plan in pool.plans:
        up = [0.0] * 2
        down = [0.0] * 2
        for cut in plan.cuts:
            low, high = sorted((cut.from_tier, cut.to_tier))
            for link in range(low, high):
                (up if cut.to_tier > cut.from_tier else down)[link] += cut.size_bytes
            assert cut.to_tier in cut.receivers
        assert tuple(up) == plan.features.up_bytes
        assert tuple(down) == plan.features.down_bytes


def _random_state(rng: random.Random, nominal: State, grid: Grid) -> State:
    low, high = np.log(min(grid.bandwidth)), np.log(max(grid.bandwidth))
    bandwidth = [float(np.exp(rng.uniform(low, high))) for _ in nominal.up_s_per_byte]
    return nominal.scaled(bandwidth, rng.uniform(min(grid.rtt), max(grid.rtt)))


@pytest.mark.slow
@pytest.mark.parametrize("graph", [cnn(), unet(), two_tower(), transformer()], ids=lambda graph: graph.name)
@pytest.mark.parametrize(
    "sla", [{}, PRIVATE, {"objective": {"price": 5.0, "energy": 0.05}}], ids=["free", "private", "cost"]
)
def test_certificate_bounds_the_regret(catalogue: Catalogue, graph: BlockGraph, sla: dict[str, Any]) -> None:
    problem = _problem(catalogue, graph, sla)
    pool, grid, rng = build_pool(problem), Grid.for_links(2), random.Random(11)
    bound = pool.certificate.regret_bound
    assert pool.certificate.exact
    assert bound is not None
    for _ in range(25):
        state = _random_state(rng, problem.nominal, grid)
        best = solve(problem, state).objective
        scores = pool.latency_weight * pool.latencies_s(state) + np.array(pool.bias)
        assert scores.min() <= best * (1 + bound + 1e-9)
        assert scores.min() <= best * 1.1  # the bound is loose; what is left on the table is little


def test_fully_certified_pool_is_optimal_everywhere(catalogue: Catalogue) -> None:
    tiers, links = line("generic-phone-cpu", "t4", links=["lte"], catalogue=catalogue)
    problem = make_problem(transformer(), tiers, links, parse_sla(PRIVATE))
    pool, rng = build_pool(problem), random.Random(5)
    assert pool.certificate.certified_cells == pool.certificate.cells
    for _ in range(40):
        state = _random_state(rng, problem.nominal, Grid.for_links(1))
        assert pool.choose(state).latency_s <= solve(problem, state).objective * (1 + 1e-7)


def test_choice_follows_the_state(problem: Problem, pool: Pool) -> None:
    nominal = problem.nominal
    choice = pool.choose(nominal)
    assert choice.plan == pool.plans[0]
    assert choice.latency_s == pytest.approx(choice.plan.predicted.latency_s)
    assert choice.runner_up is not None
    assert choice.runner_up_latency_s is not None
    assert choice.runner_up_latency_s >= choice.latency_s
    assert pool.choose(nominal.scaled([1 / 100, 1])).plan.name == "all-phone"
    slow_phone = replace(nominal, slowdown=(50.0, 1.0, 1.0))
    assert pool.choose(slow_phone).plan.name != "all-phone"


def test_dead_tiers(problem: Problem, pool: Pool) -> None:
    fast = replace(problem.nominal.scaled([100, 100], 0.01), slowdown=(100.0, 1.0, 1.0))
    assert 2 in pool.choose(fast).plan.used_tiers
    assert 2 not in pool.choose(replace(fast, alive=(True, True, False))).plan.used_tiers
    # A dead tier is passed by on the way to the next.
    assert pool.choose(replace(fast, alive=(True, False, True))).plan.name == "all-cloud"
    assert pool.choose(replace(fast, alive=(True, False, False))).plan.name == "all-phone"
    with pytest.raises(UnavailableError, match="without phone"):
        pool.choose(replace(fast, alive=(False, True, True)))


def test_no_survivor_says_why(catalogue: Catalogue) -> None:
    problem = _problem(catalogue, cnn(), phone=lambda block: "no Gemm" if "Gemm" in block.op_types else None)
    pool = build_pool(problem)
    assert pool.absent == {"all-phone": "block 'fc' cannot run there: no Gemm"}
    with pytest.raises(UnavailableError, match=r"without edge, cloud; all-phone is not in the pool: .*no Gemm"):
        pool.choose(replace(problem.nominal, alive=(True, False, False)))


def test_current_plan_is_kept_within_the_margin(problem: Problem, pool: Pool) -> None:
    best = pool.choose(problem.nominal)
    assert best.runner_up is not None
    kept = pool.choose(problem.nominal, current=best.runner_up.name, switch_margin=10.0)
    assert kept.plan == best.runner_up
    assert kept.runner_up == best.plan
    assert pool.choose(problem.nominal, current=best.runner_up.name, switch_margin=1e-9).plan == best.plan
    dead = replace(problem.nominal, alive=(True, False, False))
    assert pool.choose(dead, current="all-edge", switch_margin=10.0).plan.name == "all-phone"


def test_latency_bound_comes_before_price(catalogue: Catalogue) -> None:
    sla = {"objective": {"latency": 0.0, "price": 1.0}, "bounds": {"latency_ms": 80.0}}
    problem = _problem(catalogue, cnn(), sla)
    pool = build_pool(problem)
    choice = pool.choose(problem.nominal)
    assert choice.meets_latency
    assert choice.latency_s <= 0.08
    slow = problem.nominal.scaled([1 / 50, 1])
    late = pool.choose(slow)
    assert not late.meets_latency
    assert late.latency_s == pytest.approx(pool.latencies_s(slow).min())


def test_every_pooled_plan_keeps_the_caps(catalogue: Catalogue) -> None:
    problem = _problem(catalogue, unet(), {**PRIVATE, "memory_mb": {"edge": 12.0}})
    pool = build_pool(problem)
    assert not pool.certificate.exact
    assert pool.certificate.regret_bound is None
    assert all(not violations_of(problem, plan.placement) for plan in pool.plans)
    assert pool.plans[0].placement == solve(problem).placement
    assert set(pool.absent) == {"all-edge", "all-cloud"}


def test_more_tiers_stay_small(catalogue: Catalogue) -> None:
    links = ["wifi", "ethernet", "wan", "loopback"]
    devices = ["generic-phone-cpu", "raspberry-pi-5", "generic-edge-cpu", "generic-cloud-cpu", "t4"]
    for count in (1, 2, 4, 5):
        tiers, joined = line(*devices[:count], links=links[: count - 1], catalogue=catalogue)
        pool = build_pool(make_problem(two_tower(), tiers, joined))
        assert count <= len(pool.plans) <= 12
        assert len({plan.placement for plan in pool.plans}) == len(pool.plans)


@pytest.mark.slow
def test_two_hundred_blocks_within_three_seconds(catalogue: Catalogue) -> None:
    started = time.perf_counter()
    build_pool(_problem(catalogue, cnn(5, 40)))
    assert time.perf_counter() - started < 3


def test_choosing_takes_microseconds(problem: Problem, pool: Pool) -> None:
    times = []
    for _ in range(500):
        started = time.perf_counter()
        pool.choose(problem.nominal)
        times.append(time.perf_counter() - started)
    assert sorted(times)[len(times) // 2] < 1e-4


def _set(data: dict[str, Any], path: str, value: object) -> None:
    *parents, last = path.split(".")
    target: Any = data
    for part in parents:
        target = target[int(part) if part.isdigit() else part]
    target[int(last) if last.isdigit() else last] = value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("version", 1),
        ("surprise", 1),
        ("plans", {}),
        ("plans", []),
        ("bias", [1]),
        ("bias", ["x"]),
        ("latency_weight", float("nan")),
        ("latency_weight", 10**400),
        ("latency_bound_s", -1),
        ("absent", {"all-edge": 3}),
        ("certificate.exact", 1),
        ("certificate.cells", -1),
        ("plans.0", None),
        ("plans.0.name", 7),
        ("plans.0.name", "all-phone"),
        ("plans.0.placement", [0, 1, 3]),
        ("plans.0.placement", [True]),
        ("plans.0.cuts.0.receivers", [3]),
        ("plans.0.cuts.0.size_bytes", 1.5),
        ("plans.0.placement", []),
        ("plans.0.tiers", ["phone"]),
        ("plans.0.features.tier_seconds", [1, 2]),
        ("plans.0.features.price_usd", -1),
        ("plans.0.features.up_bytes", [1, None]),
        ("plans.0.predicted.basis", "guessed"),
        ("plans.0.cuts", [{"value": "x"}]),
    ],
)
def test_damaged_pool_is_refused(pool: Pool, path: str, value: object) -> None:
    data = json.loads(pool.to_json())
    _set(data, path, value)
    with pytest.raises(BundleError):
        Pool.from_json(json.dumps(data))


def test_garbage_is_refused() -> None:
    for text in ("", "[]", "null", "[" * 100_000, b"\xff\xfe", '{"version":1}'):
        with pytest.raises(BundleError):
            Pool.from_json(text)


def test_bad_state_is_refused(problem: Problem, pool: Pool) -> None:
    with pytest.raises(PolicyError, match="expected 3 tiers"):
        pool.choose(State((1.0,), (), (), (), (), (True,)))
    for figure in (float("inf"), float("nan"), -1.0):
        with pytest.raises(PolicyError, match="alive"):
            replace(problem.nominal, slowdown=(1.0, figure, 1.0))
    with pytest.raises(PolicyError, match="all-phone"):
        pool.plan("nowhere")


@pytest.mark.parametrize("links", range(1, 13))
def test_a_grid_of_any_line_is_small(links: int) -> None:
    names = ["generic-phone-cpu", *["t4"] * links]
    tiers, between = line(*names, links=["wan"] * links)
    problem = make_problem(cnn(), tiers, between, parse_sla({}), {})
    grid, rng = Grid.for_links(links), random.Random(3)
    states = [*grid.states(problem.nominal), *(grid.between(problem.nominal, rng) for _ in range(5))]
    assert len(states) <= 205
    assert max(index for cell in grid.cells(problem.nominal) for index in cell) == len(states) - 6
    for state in states:
        assert len(state.slowdown) == links + 1
        assert len(state.up_s_per_byte) == links
        assert state.slowdown[0] == 1
        assert set(state.slowdown[1:]) <= {state.slowdown[-1]} or links <= 3
    assert len({tuple(state.slowdown) for state in states}) > 1
    assert len({tuple(state.up_s_per_byte) for state in states}) > 1


def test_the_excess_over_next_to_nothing_is_without_bound() -> None:
    found = excess(np.array([[9.0, 0.0, 3.0]]), np.array([1e-320, 0.0, 2.0]))
    assert found.tolist() == [[np.inf, 0.0, 0.5]]
