"""Loops in plans: where a decoder goes by itself, what its state takes, and tiers that cannot hold it."""

import random
from dataclasses import replace
from typing import Any

import pytest
from tests.splitter.oracles import feasible, keeps, weighted

from flagsplit.errors import PolicyError
from flagsplit.flagir.blockgraph import BlockGraph, LoopWork
from flagsplit.splitter.devices import Catalogue
from flagsplit.splitter.explain import explain_choice
from flagsplit.splitter.pipeline import plan_problem
from flagsplit.splitter.plan_maker import make_plan
from flagsplit.splitter.problem import Problem, make_problem
from flagsplit.splitter.sla import parse_sla
from flagsplit.splitter.solvers import solve
from flagsplit.splitter.testing import cnn, line, placements, random_graph, simulate, speech

MB = 1e6


def _problem(
    catalogue: Catalogue, graph: BlockGraph, sla: dict[str, Any] | None = None, link: str = "100mbit/10ms"
) -> Problem:
    tiers, links = line("pixel8", "t4", links=[link], catalogue=catalogue)
    return make_problem(graph, tiers, links, parse_sla(sla or {}))


def _by_name(problem: Problem, placement: tuple[int, ...]) -> dict[str, int]:
    return {block.name: placement[block.index] for block in problem.graph.blocks}


def test_the_cut_of_a_speech_model_is_at_the_hidden_state(catalogue: Catalogue) -> None:
    """Its input is smaller still, so this is for a phone that encodes faster than the link carries the difference."""
    graph = speech(tokens=400)
    problem = _problem(catalogue, graph, {"keep_on": {"inputs": "phone"}, "min_blocks_deep": 7})
    placed = _by_name(problem, solve(problem).placement)
    assert placed["encoder5"] == 0
    assert {placed[f"cross{i}"] for i in range(6)} | {placed["decoder"]} == {1}
    (cut, _) = plan_problem(problem).chosen.plan.cuts
    assert cut.value == "encoder5_out"
    assert cut.size_bytes == 1500 * 512 * 4  # 3.07 MB; the projections would be 36.9 MB


def test_a_loop_takes_its_weights_and_its_state_each_trip(catalogue: Catalogue) -> None:
    """A decode step is limited by memory: its time is that of weights, cache and cross-attention over the bandwidth."""
    few, many = (_problem(catalogue, speech(tokens)) for tokens in (100, 200))
    loop = many.graph.blocks[-1].loops[0]
    bandwidth = many.tiers[0].device.memory_bandwidth.value
    took = float(many.costs.seconds[-1, 0] - few.costs.seconds[-1, 0])
    moved = sum(
        loop.weight_bytes + loop.captured_bytes + loop.state_bytes + trip * loop.growth_bytes
        for trip in range(100, 200)
    )
    dispatch = many.tiers[0].device.dispatch.value * loop.launches * 100
    assert took == pytest.approx(moved / bandwidth + dispatch + 800 / bandwidth, rel=1e-9)


def test_resident_is_the_cache_of_all_streams(catalogue: Catalogue) -> None:
    graph = speech()
    many = _problem(catalogue, graph, {"streams": {"cloud": 64}})
    loop = graph.blocks[-1].loops[0]
    placement = (0,) * 7 + (1,) * 7
    held = simulate(many, placement, many.nominal).resident_bytes[1]
    assert held == make_plan(many, placement, "split").features.resident_bytes[1]
    kv_per_token, answer = 2 * 4 * 512 * 6, 8 * 60
    weights = sum(block.weight_bytes for block in graph.blocks[7:])
    assert held == weights + 64 * ((59 + 4) * kv_per_token + 36_864_000) + loop.scratch_bytes + answer
    assert loop.last_state_bytes == (59 + 4) * kv_per_token


def test_a_tier_that_cannot_hold_the_state_is_ruled_out_with_the_reason(catalogue: Catalogue) -> None:
    graph = speech()
    loop = graph.blocks[-1].loops[0]
    need = (graph.blocks[-1].weight_bytes + loop.last_state_bytes + loop.scratch_bytes) / MB
    problem = _problem(catalogue, graph, {"memory_mb": {"phone": need - 0.1}})
    assert problem.constraints.allowed[-1].tolist() == [False, True]
    assert "its state after 60 trips" in problem.constraints.reasons[13, 0]
    assert "are more than the" in problem.constraints.reasons[13, 0]
    enough = _problem(catalogue, graph, {"memory_mb": {"phone": need + 0.1}})
    assert enough.constraints.allowed[-1].tolist() == [True, True]
    crowded = {"memory_mb": {"phone": 100, "cloud": 300}, "streams": {"cloud": 50}}
    with pytest.raises(PolicyError, match=r"not cloud: its weights of .* its state of 50 streams after 60 trips"):
        _problem(catalogue, graph, crowded)


def test_streams_of_a_tier_that_is_not_there(catalogue: Catalogue) -> None:
    with pytest.raises(PolicyError, match="streams: there is no tier 'edge'"):
        _problem(catalogue, cnn(), {"streams": {"edge": 3}})


def _with_loops(rng: random.Random, graph: BlockGraph) -> BlockGraph:
    """Some blocks turned into loops, whose state is of the order of what else is held."""
    blocks = []
    for block in graph.blocks:
        if rng.random() < 0.5:
            trips, state = rng.randint(1, 20), rng.choice([0, 1000, 2_000_000])
            loop = LoopWork("l", trips, "said", 0.0, 0, rng.choice([0, 300_000]), state, rng.choice([0, 50_000]), 0, 1)
            blocks.append(replace(block, loops=(loop,)))
        else:
            blocks.append(block)
    return replace(graph, blocks=tuple(blocks))


@pytest.mark.parametrize("first_seed", range(0, 60, 20))
def test_plans_with_loops_under_caps_are_those_of_exhaustive_search(catalogue: Catalogue, first_seed: int) -> None:
    solved = refused = 0
    for seed in range(first_seed, first_seed + 20):
        rng = random.Random(seed)
        graph = _with_loops(rng, random_graph(rng, rng.randint(2, 6)))
        tiers, links = line("raspberry-pi-5", "generic-edge-cpu", links=["20mbit/10ms"], catalogue=catalogue)
        free = make_problem(graph, tiers, links, parse_sla({"streams": {"cloud": rng.randint(1, 4)}}))
        pick = rng.choice(list(placements(free)))
        held = simulate(free, pick, free.nominal).resident_bytes
        caps = {
            tier: max(used * rng.choice([0.9, 1.0, 1.1]), 1e3) / MB
            for tier, used in zip(free.tier_names, held, strict=True)
        }
        sla = parse_sla({"memory_mb": caps, "streams": free.sla.streams})
        able = feasible(replace(free, sla=sla, memory_bytes=free.memory_bytes * 0 + [c * MB for c in caps.values()]))
        if not able:
            with pytest.raises(PolicyError):
                solve(free.with_sla(sla), diagnose=False)
            refused += 1
            continue
        problem = free.with_sla(sla)
        found = solve(problem)
        assert keeps(problem, found.placement), seed
        best = min(weighted(problem, placement) for placement in able)
        assert found.objective == pytest.approx(best, rel=1e-6, abs=1e-12), seed
        solved += 1
    assert min(solved, refused) >= 2


def test_the_reasons_say_what_the_loop_is(catalogue: Catalogue) -> None:
    planned = plan_problem(_problem(catalogue, speech(tokens=400)))
    said = " ".join(explain_choice(planned.problem, planned.pool, planned.chosen))
    assert "Loop decoder: 400 trips expected, a token each in a decoder" in said
    assert "24.58 kB of state each, 9.904 MB in the end, beside 36.86 MB that every trip reads" in said
