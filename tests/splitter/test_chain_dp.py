"""Chains against exhaustive search, with costs from the step-by-step simulation."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from tests.splitter.oracles import random_state, weighted

from flagsplit.flagir.blockgraph import BlockGraph
from flagsplit.splitter import chain_dp
from flagsplit.splitter.chain_dp import best_on_chain, is_chain
from flagsplit.splitter.devices import Catalogue
from flagsplit.splitter.problem import Problem, make_problem
from flagsplit.splitter.rates import Rates, objective_rates
from flagsplit.splitter.sla import parse_sla
from flagsplit.splitter.solvers import solve
from flagsplit.splitter.testing import GraphBuilder, cnn, line, placements, unet

_DEVICES = ("generic-phone-cpu", "raspberry-pi-5", "generic-edge-cpu", "t4")
_FAST, _ANY = ("10gbit/10us", "10gbit/0us"), ("1mbit/1ms", "20mbit:100mbit/10ms@lte", "1gbit/100us", "10gbit/10us")


def _chain(rng: random.Random, blocks: int) -> BlockGraph:
    """Blocks in a row, now and then with an empty tensor between two."""
    graph = GraphBuilder("chain", x=rng.choice([0, 900, 2_000_000]))
    reads = ["x"]
    for i in range(blocks):
        size, mflop = rng.choice([0, 400, 300_000, 4_000_000]), rng.choice([0, 5, 80, 900])
        reads = [graph.add(f"b{i}", reads, size, mflop, rng.choice([0, 10_000, 3_000_000]))]
    return graph.build(*reads)


def _problem(rng: random.Random, catalogue: Catalogue) -> Problem:
    count = rng.randint(1, 4)
    most = {1: 6, 2: 8, 3: 6, 4: 5}[count]
    graph = _chain(rng, rng.randint(1, most))
    kinds = rng.choice([_FAST, _ANY, _ANY])
    links = [rng.choice(kinds) for _ in range(count - 1)]
    tiers, joined = line(*(rng.choice(_DEVICES) for _ in range(count)), links=links, catalogue=catalogue)
    names = [tier.name for tier in tiers]
    bad: dict[str, list[str | None]] = {name: [None] * len(graph.blocks) for name in names}
    for i in range(len(graph.blocks)):
        for name in rng.sample(names, rng.randint(0, count - 1)):
            bad[name][i] = "no" if rng.random() < 0.4 else None
    sla = {
        "objective": {"latency": 1.0, "price": rng.choice([0.0, 1.0]), "energy": rng.choice([0.0, 0.1])},
        "use_tiers": rng.sample(names, rng.choice([0, 0, 1, min(2, count), count])),
    }
    return make_problem(graph, tiers, joined, parse_sla(sla), bad)


def _using(problem: Problem) -> list[tuple[int, ...]]:
    wanted = {problem.tier_names.index(name) for name in problem.sla.use_tiers}
    return [placement for placement in placements(problem) if wanted <= set(placement)]


@pytest.mark.slow
def test_equals_exhaustive_search(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    rose = walked = impossible = fell = 0
    least = chain_dp._least_way_back
    for seed in range(160):
        rng = random.Random(seed)
        problem = _problem(rng, catalogue)
        assert is_chain(problem)
        state = random_state(rng, problem.nominal)
        rates = objective_rates(problem, state)
        found, able = best_on_chain(problem, rates), _using(problem)
        if not able:
            assert found is None, seed
            impossible += 1
            continue
        assert found is not None
        best = min(weighted(problem, placement, state) for placement in able)
        assert found.placement in able, seed
        assert weighted(problem, found.placement, state) == pytest.approx(best, rel=1e-9, abs=1e-15), seed
        assert found.objective == pytest.approx(best, rel=1e-9, abs=1e-15), seed
        fell += any(a > b for a, b in zip(found.placement, found.placement[1:], strict=False))
        # Whichever part answered, the other is asked as well.
        seen: list[float] = []
        monkeypatch.setattr(chain_dp, "_least_way_back", lambda moves, seen=seen: seen.append(least(moves)) or -1.0)
        long_way = best_on_chain(problem, rates)
        monkeypatch.undo()
        assert long_way is not None
        assert long_way.objective == pytest.approx(best, rel=1e-9, abs=1e-15), seed
        assert weighted(problem, long_way.placement, state) == pytest.approx(best, rel=1e-9, abs=1e-15), seed
        short = bool(seen) and seen[0] > found.objective
        rose, walked = rose + short, walked + (not short)
    assert min(rose, walked) >= 20
    assert impossible >= 5
    assert fell >= 5


@pytest.mark.slow
def test_solve_goes_by_the_chain(catalogue: Catalogue) -> None:
    for seed in range(200, 260):
        problem = _problem(random.Random(seed), catalogue)
        able = _using(problem)
        if able:
            solution = solve(problem)
            assert solution.solver == "chain-dp"
            assert solution.objective == pytest.approx(min(weighted(problem, p) for p in able), rel=1e-9, abs=1e-15)


def test_a_tier_that_cannot_run_the_first_block_runs_others(catalogue: Catalogue) -> None:
    """Where coming back never pays, so that tiers only rise."""
    tiers, links = line("generic-phone-cpu", "t4", links=["10gbit:1mbit/1ms"], catalogue=catalogue)
    private = parse_sla({"keep_on": {"inputs": "phone"}})
    problem = make_problem(cnn(5, 40), tiers, links, private)
    assert solve(problem).placement == (0, *[1] * 200)


def _two_islands(catalogue: Catalogue) -> Problem:
    """Blocks in a row of which the middle one needs nothing: going there and back is no turn of its own."""
    graph = GraphBuilder("islands", x=400)
    first = graph.add("a", ["x"], 0, 80)
    graph.add("b", [], 0, 80)
    tiers, links = line("generic-phone-cpu", "generic-phone-cpu", links=["1gbit/10ms"], catalogue=catalogue)
    pins = {"pins": {"a": "cloud", "b": "phone", "c": "cloud"}}
    graph.add("c", ["b_out"], 0, 80)
    return make_problem(graph.build(first, "c_out"), tiers, links, parse_sla(pins))


def test_blocks_that_need_nothing_are_no_chain(catalogue: Catalogue) -> None:
    problem = _two_islands(catalogue)
    assert not is_chain(problem)
    middle = GraphBuilder("middle", x=400)
    middle.add("a", ["x"], 0, 80)
    middle.add("b", [], 0, 80)
    middle.add("c", ["b_out"], 8, 80)
    pins = {"a": "cloud", "b": "phone", "c": "cloud"}
    problem = make_problem(middle.build("c_out"), problem.tiers, problem.links, parse_sla({"pins": pins}))
    assert not is_chain(problem)
    solution = solve(problem)
    assert solution.placement == (1, 0, 1)
    assert solution.objective == pytest.approx(weighted(problem, (1, 0, 1)), rel=1e-12)


@pytest.mark.parametrize(("graph", "expected"), [(cnn(), True), (unet(), False)], ids=["cnn", "unet"])
def test_which_graphs_are_chains(catalogue: Catalogue, graph: BlockGraph, expected: bool) -> None:
    tiers, links = line("pixel8", "t4", links=["wifi"], catalogue=catalogue)
    assert is_chain(make_problem(graph, tiers, links)) is expected


def test_caps_are_left_to_others(catalogue: Catalogue) -> None:
    tiers, links = line("pixel8", "t4", links=["1gbit/1ms"], catalogue=catalogue)
    free = make_problem(cnn(), tiers, links)
    capped = free.with_sla(parse_sla({"memory_mb": {"cloud": 5.0}}))
    rates: Sequence[Rates] = [objective_rates(problem, problem.nominal) for problem in (free, capped)]
    assert best_on_chain(free, rates[0]) == best_on_chain(capped, rates[1])
    solution = solve(capped)
    assert solution.solver != "chain-dp"
    assert solution.objective > solve(free).objective
    slow = replace(free.nominal, slowdown=(1e3, 1.0))
    assert solve(free, slow).solver == "chain-dp"
