"""The minimum cut against exhaustive search, with costs from the step-by-step simulation."""

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from flagsplit.splitter.devices import Catalogue
from flagsplit.splitter.evaluate import Usage
from flagsplit.splitter.mincut import min_cut
from flagsplit.splitter.problem import Problem, make_problem
from flagsplit.splitter.rates import latency_rates, objective_rates
from flagsplit.splitter.sla import SLA
from flagsplit.splitter.solvers import solve
from flagsplit.splitter.state import State
from flagsplit.splitter.testing import (
    GraphBuilder,
    cnn,
    line,
    placements,
    random_problem,
    simulate,
    transformer,
    two_tower,
    unet,
)


def _objective(problem: Problem, placement: Sequence[int], state: State) -> float:
    """The SLA's objective from a simulated request, written out."""
    walk, costs, weights = simulate(problem, placement, state), problem.costs, problem.sla.objective
    joules = [s * float(w) for s, w in zip(walk.tier_seconds, costs.power_w, strict=True)]
    for link in range(len(problem.links)):
        for tier in range(len(problem.tiers)):
            joules[tier] += walk.up_bytes[link] * float(costs.radio_up_j_per_byte[link, tier])
            joules[tier] += walk.down_bytes[link] * float(costs.radio_down_j_per_byte[link, tier])
    dollars = sum(s * float(p) for s, p in zip(walk.tier_seconds, costs.usd_per_s, strict=True))
    energy = joules[0] if problem.sla.energy_scope == "first" else sum(joules)
    return weights.latency * walk.latency_s + weights.price * 1000 * dollars + weights.energy * energy


def _random_state(rng: random.Random, nominal: State) -> State:
    tiers = len(nominal.slowdown)
    state = replace(nominal, slowdown=tuple(rng.choice([0.5, 1.0, 6.0]) for _ in range(tiers)))
    return state.scaled([rng.choice([0.1, 1.0, 30.0]) for _ in range(tiers - 1)], rng.choice([0.0, 1.0, 10.0]))


@pytest.mark.slow
@pytest.mark.parametrize("first_seed", range(0, 200, 25))
def test_equals_exhaustive_search(catalogue: Catalogue, first_seed: int) -> None:
    for seed in range(first_seed, first_seed + 25):
        rng = random.Random(seed)
        problem = random_problem(rng, catalogue)
        state = _random_state(rng, problem.nominal)
        best = min(_objective(problem, placement, state) for placement in placements(problem))
        cut = min_cut(problem, objective_rates(problem, state))
        assert cut.objective == pytest.approx(_objective(problem, cut.placement, state), rel=1e-9), seed
        assert cut.bound <= best * (1 + 1e-12), seed
        if cut.exact:
            assert cut.objective == pytest.approx(best, rel=1e-9), seed
        else:
            assert cut.objective <= best * 1.25, seed
        solution = solve(problem, state)
        assert solution.proven
        assert solution.objective == pytest.approx(best, rel=1e-7), seed


def test_random_problems_are_hard_enough(catalogue: Catalogue) -> None:
    cuts = [min_cut(p, objective_rates(p, p.nominal)) for p in _problems(catalogue, 100)]
    assert sum(cut.exact for cut in cuts) >= 90
    solved = [cut.placement for cut in cuts]
    round_trips = sum(any(a > b for a, b in pairwise(p)) for p in solved)
    splits = sum(len(set(p)) > 1 for p in solved)
    assert round_trips >= 15
    assert splits >= 30


def _problems(catalogue: Catalogue, count: int) -> list[Problem]:
    return [random_problem(random.Random(seed), catalogue) for seed in range(count)]


def test_evaluator_equals_simulation(catalogue: Catalogue) -> None:
    rng = random.Random(7)
    for problem in _problems(catalogue, 60):
        state = _random_state(rng, problem.nominal)
        every = list(placements(problem))
        some = np.array(rng.sample(every, min(len(every), 20)))
        usage = Usage(problem, some)
        latency = usage.measure(latency_rates(problem, state))
        assert latency == pytest.approx(usage.phi @ state.vector(), rel=1e-12)
        for i, placement in enumerate(some.tolist()):
            walk = simulate(problem, placement, state)
            assert latency[i] == pytest.approx(walk.latency_s, rel=1e-12)
            assert usage.tier_seconds[i] == pytest.approx(walk.tier_seconds, rel=1e-12)
            for name in ("up_bytes", "down_bytes", "up_messages", "down_messages", "resident_bytes"):
                assert getattr(usage, name)[i].tolist() == getattr(walk, name), name


def test_shared_value_crosses_a_link_once(catalogue: Catalogue) -> None:
    graph = GraphBuilder("fan", x=1_000_000)
    left = graph.add("left", ["x"], 8)
    right = graph.add("right", ["x"], 8)
    tiers, links = line("pixel8", "pixel8", "t4", links=["8mbit/0ms", "8mbit/0ms"], catalogue=catalogue)
    problem = make_problem(graph.build(left, right), tiers, links)
    assert Usage(problem, np.array([[1, 2]])).up_bytes[0].tolist() == [1_000_000, 1_000_000]
    assert Usage(problem, np.array([[2, 2]])).up_bytes[0].tolist() == [1_000_000, 1_000_000]
    assert Usage(problem, np.array([[2, 0]])).up_bytes[0].tolist() == [1_000_000, 1_000_000]
    assert Usage(problem, np.array([[2, 0]])).down_bytes[0].tolist() == [8, 8]


def test_private_unet_makes_a_round_trip(catalogue: Catalogue) -> None:
    tiers, links = line("generic-phone-cpu", "t4", links=["wifi"], catalogue=catalogue)
    sla = SLA.model_validate({"keep_on": {"inputs": "phone", "mask_out": "phone"}})
    problem = make_problem(unet(), tiers, links, sla)
    placement = solve(problem).placement
    assert placement[0] == placement[-1] == 0
    assert max(placement) == 1
    assert Usage(problem, np.array([placement])).up_messages[0].tolist() == [1]


@pytest.mark.parametrize("graph", [cnn(), unet(), two_tower(), transformer()], ids=lambda graph: graph.name)
def test_realistic_shapes_beat_every_chain_split(catalogue: Catalogue, graph: object) -> None:
    tiers, links = line("generic-phone-cpu", "generic-edge-cpu", "t4", links=["wifi", "wan"], catalogue=catalogue)
    problem = make_problem(graph, tiers, links)  # type: ignore[arg-type]
    n = len(problem.graph.blocks)
    chains = np.array([[0] * a + [1] * (b - a) + [2] * (n - b) for a in range(n + 1) for b in range(a, n + 1)])
    best = Usage(problem, chains).measure(objective_rates(problem, problem.nominal)).min()
    solution = solve(problem)
    assert solution.objective <= best * (1 + 1e-9)
    assert solution.proven
    assert solution.solver in ("min-cut", "chain-dp")


def test_hopeless_tier_does_not_cost_precision(catalogue: Catalogue) -> None:
    tiers, links = line("pixel8", "t4", links=["1bit/1000000s"], catalogue=catalogue)
    problem = make_problem(cnn(4, 10), tiers, links)
    assert solve(problem).placement == (0,) * 41
    slow = replace(problem.nominal, slowdown=(1e9, 1.0)).scaled([1e12], 1e-12)
    assert solve(problem, slow).placement == (1,) * 41


def test_one_tier(catalogue: Catalogue) -> None:
    tiers, links = line("pixel8", catalogue=catalogue)
    solution = solve(make_problem(cnn(), tiers, links))
    assert set(solution.placement) == {0}
    assert solution.gap == 0
