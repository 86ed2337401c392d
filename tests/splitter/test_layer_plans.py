"""Decoders whose loop is divided between layers: against every placement, written out figure by figure."""

import itertools
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from flagsplit.errors import PolicyError
from flagsplit.flagir.blockgraph import Block, BlockGraph, BlockValue, LoopWork
from flagsplit.splitter.devices import Catalogue
from flagsplit.splitter.evaluate import Usage
from flagsplit.splitter.knobs import Knob, knobs_of, turned
from flagsplit.splitter.layer_flips import layer_flips
from flagsplit.splitter.layer_plans import every_division, layers_before, plan_layers, plan_name
from flagsplit.splitter.pool import Pool
from flagsplit.splitter.problem import Problem, make_problem
from flagsplit.splitter.rates import objective_rates
from flagsplit.splitter.sla import parse_sla
from flagsplit.splitter.testing import line
from flagsplit.splitter.thresholds import FARTHEST

FAST = ("1gbit/1ms",)
PROMPT, TOKENS, WIDTH, KV = 16, 40, 576, 1536
ROW = 4 * WIDTH


def chain(layers: int, weights: int = 14_000_000, prompt: int = PROMPT, tokens: int = TOKENS) -> BlockGraph:
    """The layers of a small language model, the table of its tokens in the first."""
    blocks, values = [], [BlockValue("prompt", 8 * prompt, -1, (0,))]
    rows = ROW * (prompt + tokens)
    for at in range(layers):
        name, last = f"layer.{at}", at == layers - 1
        loop = LoopWork(name, tokens + 1, "said", 0.0, weights, 0, prompt * KV, KV, 0, 7)
        held, out = weights + 100_000_000 * (at == 0), 8 * (tokens + 1) if last else rows
        flops = {"matmul": 2.0 * weights / 4 * (prompt + tokens)}
        touched = weights * (1 + tokens)
        read = values[-1].size_bytes
        blocks.append(Block(at, name, (name,), ("Loop",), flops, read, out, held, touched, loops=(loop,)))
        values.append(BlockValue("tokens" if last else f"rows.{at + 1}", out, at, () if last else (at + 1,), last))
    return BlockGraph("decoder", tuple(blocks), tuple(values), {})


def problem_of(
    catalogue: Catalogue,
    graph: BlockGraph,
    sla: dict[str, Any] | None = None,
    devices: tuple[str, ...] = ("pixel8", "t4"),
    links: tuple[str, ...] = ("100mbit/10ms",),
) -> Problem:
    tiers, joined = line(*devices, links=links, catalogue=catalogue)
    return replace(make_problem(graph, tiers, joined, parse_sla(sla or {})), steps=graph.blocks[0].loops[0].trips)


def by_hand(problem: Problem, placement: tuple[int, ...]) -> tuple[float, list[float]]:
    """Seconds and resident bytes of a rising placement, from nothing but the chain's figures."""
    graph, nominal, costs = problem.graph, problem.nominal, problem.costs
    steps = graph.blocks[0].loops[0].trips
    seconds = sum(float(costs.seconds[i, k]) for i, k in enumerate(placement)) + float(costs.invocation_s[0])
    for i in range(len(problem.links)):
        if max(placement) <= i:
            continue
        trips = steps if min(placement) <= i else 1
        crossing = [value for value in graph.values[:-1] if _crosses(value, placement, i)]
        up = sum(value.size_bytes for value in crossing)
        seconds += up * nominal.up_s_per_byte[i] + graph.values[-1].size_bytes * nominal.down_s_per_byte[i]
        seconds += trips * (nominal.up_s_per_message[i] + nominal.down_s_per_message[i])
        seconds += trips * float(costs.invocation_s[i + 1] + costs.invocation_s[i])
    held = []
    for k in range(len(problem.tiers)):
        mine = [i for i, tier in enumerate(placement) if tier == k]
        kept = sum(graph.blocks[i].weight_bytes + graph.blocks[i].loops[0].last_state_bytes for i in mine)
        live = [sum(v.size_bytes for v in graph.values if _is_live(v, i) and k in _touched(v, placement)) for i in mine]
        held.append(kept + max(live, default=0))
    return seconds, held


def _crosses(value: BlockValue, placement: tuple[int, ...], link: int) -> bool:
    made = 0 if value.producer < 0 else placement[value.producer]
    return made <= link < max(placement[c] for c in value.consumers)


def _touched(value: BlockValue, placement: tuple[int, ...]) -> set[int]:
    ends = {placement[i] for i in (value.producer, *value.consumers) if i >= 0}
    return ends | ({0} if value.producer < 0 or value.is_output else set())


def _is_live(value: BlockValue, block: int) -> bool:
    last = max((value.producer, *value.consumers)) if not value.is_output else 1 << 30
    return value.producer <= block <= last


def divisions(problem: Problem) -> list[tuple[int, ...]]:
    """Of all placements those that rise, over one tier or from the first to one other."""
    every = itertools.product(range(len(problem.tiers)), repeat=len(problem.graph.blocks))
    allowed = problem.constraints.allowed
    rising = [p for p in every if list(p) == sorted(p) and all(allowed[i, k] for i, k in enumerate(p))]
    return [p for p in rising if len(set(p)) == 1 or (len(set(p)) == 2 and p[0] == 0)]


@pytest.mark.parametrize("seed", range(12))
def test_the_plan_is_that_of_exhaustive_search(catalogue: Catalogue, seed: int) -> None:
    rng = random.Random(seed)
    graph = chain(rng.randint(1, 5), rng.choice([200_000, 14_000_000]), rng.randint(1, 60), rng.randint(1, 80))
    three = rng.random() < 0.5
    devices = ("raspberry-pi-5", "generic-edge-cpu", "t4") if three else ("raspberry-pi-5", "t4")
    links = tuple(rng.choice(["1mbit/1ms", "100mbit/50us", "10gbit/10us", "20mbit/40ms"]) for _ in devices[1:])
    caps = {"memory_mb": {"phone": rng.choice([120, 135, 180, 400])}} if rng.random() < 0.6 else {}
    privacy = {"min_blocks_deep": rng.randint(0, 2)}
    problem = problem_of(catalogue, graph, caps | privacy, devices, links)
    cap = problem.memory_bytes * (1 + 1e-9)
    able = [p for p in divisions(problem) if (by_hand(problem, p)[1] <= cap).all()]
    if not able:
        with pytest.raises(PolicyError, match="no plan keeps the SLA, whichever layers run where"):
            plan_layers(problem)
        return
    planned = plan_layers(problem)
    assert planned.solution.proven
    assert planned.solution.objective == pytest.approx(min(by_hand(problem, p)[0] for p in able), rel=1e-9)
    for plan in planned.pool.plans:
        seconds, held = by_hand(problem, plan.placement)
        assert plan.predicted.latency_s == pytest.approx(seconds, rel=1e-9)
        assert plan.features.resident_bytes == pytest.approx(held)


def test_privacy_keeps_embedding_and_layers_on_the_phone(catalogue: Catalogue) -> None:
    graph = chain(30)
    free = plan_layers(problem_of(catalogue, graph)).chosen.plan
    assert free.name == "all-cloud"
    kept = plan_layers(problem_of(catalogue, graph, {"min_blocks_deep": 1}, links=FAST)).chosen.plan
    assert kept.name == "phone+cloud@1"
    assert layers_before(kept.placement) == 1
    assert list(kept.features.up_messages) == [TOKENS + 1]
    assert list(kept.features.up_bytes) == [ROW * (PROMPT + TOKENS)]
    assert list(kept.features.down_bytes) == [8 * (TOKENS + 1)]
    only = plan_layers(problem_of(catalogue, graph, {"keep_on": {"inputs": "phone"}}, links=FAST)).chosen.plan
    assert only.name == "phone+cloud@1"
    deeper = plan_layers(problem_of(catalogue, graph, {"min_blocks_deep": 3}, links=FAST)).chosen.plan
    assert deeper.name == "phone+cloud@3"


def test_a_slow_link_says_do_not_split(catalogue: Catalogue) -> None:
    planned = plan_layers(problem_of(catalogue, chain(6), {"min_blocks_deep": 2}, links=("1mbit/400ms",)))
    assert planned.chosen.plan.name == "all-phone"
    said = " ".join(planned.reasons)
    assert "Do not split the loop: the best division, phone+cloud@" in said
    assert f"in {TOKENS + 1} round trips" in said
    assert "all-cloud is not allowed: block 'layer.0' (and 1 more blocks) cannot run there: min_blocks_deep 2" in said


def test_the_pool_has_single_tiers_and_what_is_best_somewhere(catalogue: Catalogue) -> None:
    planned = plan_layers(problem_of(catalogue, chain(30), {"keep_on": {"inputs": "phone"}}, links=FAST))
    pool = Pool.from_json(planned.pool.to_json())
    names = [plan.name for plan in pool.plans]
    assert names[0] == planned.chosen.plan.name
    assert {"all-phone", "phone+cloud@1"} <= set(names)
    assert pool.absent.keys() == {"all-cloud"}
    assert pool.certificate.exact
    dead = replace(planned.problem.nominal, alive=(True, False))
    assert pool.choose(dead).plan.name == "all-phone"


def test_the_table_has_every_division_and_says_which_may_not_be(catalogue: Catalogue) -> None:
    rows = every_division(problem_of(catalogue, chain(4), {"min_blocks_deep": 2, "memory_mb": {"phone": 132}}))
    assert [row.plan.name for row in rows] == [f"phone+cloud@{n}" for n in range(1, 4)]
    assert [row.allowed for row in rows] == [False, True, False]
    assert rows[0].reason == "layer.1: min_blocks_deep 2 keeps it on phone"
    assert "memory_mb of phone would be" in str(rows[2].reason)


def test_names() -> None:
    assert plan_name(("phone", "cloud"), (1, 1, 1)) == "all-cloud"
    assert plan_name(("phone", "edge", "cloud"), (0, 0, 2, 2, 2)) == "phone+cloud@2"


@pytest.mark.parametrize("seed", range(6))
def test_flips_are_where_another_plan_becomes_best(catalogue: Catalogue, seed: int) -> None:
    rng = random.Random(seed)
    graph = chain(rng.randint(2, 6), rng.choice([200_000, 14_000_000]))
    links = (rng.choice(["1mbit/1ms", "100mbit/1ms", "10gbit/10us"]),)
    sla = {"keep_on": {"inputs": "phone"}} if rng.random() < 0.7 else {"objective": {"latency": 1, "price": 1}}
    problem = problem_of(catalogue, graph, sla, ("raspberry-pi-5", "t4"), links)
    chosen = plan_layers(problem).chosen.plan
    flips = {(flip.knob, flip.factor < 1): flip for flip in layer_flips(problem, chosen)}
    for knob in knobs_of(problem):
        for below in (True, False):
            flip = flips.get((knob, below))
            edge = flip.factor if flip is not None else (1 / FARTHEST if below else FARTHEST)
            inside, beyond = edge ** (1 - 1e-6), edge ** (1 + 1e-6)
            assert best_at(problem, knob, inside) == pytest.approx(value_at(problem, knob, inside, chosen.placement))
            if flip is not None:
                there = value_at(problem, knob, beyond, flip.placement)
                assert there < value_at(problem, knob, beyond, chosen.placement)
                assert there == pytest.approx(best_at(problem, knob, beyond))


def value_at(problem: Problem, knob: Knob, factor: float, placement: tuple[int, ...]) -> float:
    there, state = turned(problem, knob, 1 / factor if knob.kind == "bandwidth" else factor)
    usage = Usage(there, np.array([placement]))
    return float(usage.measure(objective_rates(there, state))[0])


def best_at(problem: Problem, knob: Knob, factor: float) -> float:
    return min(value_at(problem, knob, factor, placement) for placement in divisions(problem))
