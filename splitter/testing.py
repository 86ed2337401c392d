"""Graphs, lines of tiers and a reference for tests, ours and others'.

The shapes stand for families of real networks with round figures. `simulate` walks a request through a placement step
by step, like a lift that runs what is ready where it stops, and independent of the vectorized code; `placements` is the
exhaustive search that goes with it.
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flagsplit.errors import InternalError
from flagsplit.flagir.blockgraph import GRAPH_INPUT, Block, BlockGraph, BlockValue, LoopWork
from flagsplit.splitter.costs import Tier
from flagsplit.splitter.devices import Catalogue, load_catalogue
from flagsplit.splitter.evaluate import Usage
from flagsplit.splitter.links import Link, parse_link
from flagsplit.splitter.problem import Problem, make_problem
from flagsplit.splitter.rates import energy_rates, latency_rates
from flagsplit.splitter.sla import SLA
from flagsplit.splitter.state import State

_FLOAT_BYTES = 4


class GraphBuilder:
    """Builds a `BlockGraph` block by block; `add` returns the name of the block's output value."""

    def __init__(self, name: str, **inputs: int) -> None:
        self._name = name
        self._blocks: list[Block] = []
        self._made = dict.fromkeys(inputs, GRAPH_INPUT)
        self._sizes = dict(inputs)
        self._readers: dict[str, list[int]] = {name: [] for name in inputs}

    def add(
        self,
        name: str,
        reads: Sequence[str],
        size_bytes: int,
        mflop: float = 0.0,
        weights: int = 0,
        op_type: str = "Conv",
        op_class: str = "conv",
        loop: LoopWork | None = None,
    ) -> str:
        """Add a block that reads values and makes one of `size_bytes`; with a loop, its weights are read every trip."""
        index, made = len(self._blocks), f"{name}_out"
        for value in dict.fromkeys(reads):
            self._readers[value].append(index)
        read_bytes = sum(self._sizes[value] for value in reads)
        touched, loops = (weights * loop.trips, (loop,)) if loop is not None else (weights, ())
        flops = {op_class: mflop * 1e6}
        self._blocks.append(
            Block(index, name, (name,), (op_type,), flops, read_bytes, size_bytes, weights, touched, loops=loops)
        )
        self._made[made], self._sizes[made], self._readers[made] = index, size_bytes, []
        return made

    def build(self, *outputs: str) -> BlockGraph:
        """The graph with these outputs."""
        values = [
            BlockValue(name, self._sizes[name], made, tuple(self._readers[name]), name in outputs)
            for name, made in sorted(self._made.items(), key=lambda item: item[1])
        ]
        return BlockGraph(self._name, tuple(self._blocks), tuple(values), {})


def cnn(stages: int = 5, depth: int = 3) -> BlockGraph:
    """A classifier: maps shrink, weights grow."""
    graph = GraphBuilder("cnn", image=_FLOAT_BYTES * 3 * 224 * 224)
    value, size, weights = "image", _FLOAT_BYTES * 64 * 112 * 112, 40_000
    for stage in range(stages):
        for i in range(depth):
            value = graph.add(f"conv{stage}_{i}", [value], size, 230.0, weights)
        size, weights = size // 2, weights * 3
    return graph.build(graph.add("fc", [value], 4000, 4.0, 8_000_000, "Gemm", "matmul"))


def unet(levels: int = 4) -> BlockGraph:
    """Encoder, bottleneck and decoder with skips: the shape whose best split can be a round trip."""
    graph = GraphBuilder("unet", image=_FLOAT_BYTES * 256 * 256)
    value, size, skips = "image", _FLOAT_BYTES * 32 * 256 * 256, []
    for level in range(levels):
        value = graph.add(f"enc{level}", [value], size, 150.0, 50_000 << (2 * level))
        skips.append((value, size))
        value = graph.add(f"down{level}", [value], size // 4, 1.0, 0, "MaxPool", "reduce")
        size //= 2
    value = graph.add("bottom", [value], size // 2, 4000.0, 30_000_000)
    for level, (skip, skip_size) in reversed(list(enumerate(skips))):
        value = graph.add(f"dec{level}", [value, skip], skip_size, 150.0, 50_000 << (2 * level))
    return graph.build(graph.add("mask", [value], _FLOAT_BYTES * 256 * 256, 4.0, 200))


def two_tower(depth: int = 4) -> BlockGraph:
    """Two branches over two inputs, joined at the end."""
    graph = GraphBuilder("two_tower", image=600_000, words=512)
    image, words = "image", "words"
    for i in range(depth):
        image = graph.add(f"image{i}", [image], 400_000 >> i, 400.0, 1_000_000)
    for i in range(depth):
        words = graph.add(f"words{i}", [words], 50_000, 60.0, 4_000_000, "MatMul", "matmul")
    return graph.build(graph.add("join", [image, words], 400, 0.1, 0, "MatMul", "matmul"))


def transformer(layers: int = 6, tokens: int = 128, width: int = 384) -> BlockGraph:
    """An encoder whose residual stream never shrinks."""
    size, unit = _FLOAT_BYTES * tokens * width, width * width
    graph = GraphBuilder("transformer", ids=8 * tokens, mask=8 * tokens)
    value = graph.add("embed", ["ids"], size, 0.1, _FLOAT_BYTES * 30_000 * width, "Gather", "movement")
    for i in range(layers):
        seen = graph.add(f"attention{i}", [value, "mask"], size, 8e-6 * tokens * unit, 16 * unit, "MatMul", "matmul")
        value = graph.add(f"mlp{i}", [seen, value], size, 16e-6 * tokens * unit, 32 * unit, "MatMul", "matmul")
    return graph.build(graph.add("head", [value], _FLOAT_BYTES * width, 1.0, 4 * unit, "Gemm", "matmul"))


def speech(tokens: int = 60, layers: int = 6, width: int = 512, frames: int = 1500) -> BlockGraph:
    """An encoder, the projections of its result for cross-attention, and a decoder's loop; the figures of Whisper."""
    hidden, unit = _FLOAT_BYTES * frames * width, width * width
    graph = GraphBuilder("speech", log_mel=_FLOAT_BYTES * 80 * 2 * frames)
    value = graph.add("front", ["log_mel"], hidden, 3.0 * frames, 4_000_000)
    for i in range(layers):
        mflop = 1e-6 * frames * (24.0 * unit + 4.0 * frames * width)
        value = graph.add(f"encoder{i}", [value], hidden, mflop, 48 * unit, "MatMul", "matmul")
    cross = [
        graph.add(f"cross{i}", [value], 2 * hidden, 4e-6 * frames * unit, 8 * unit, "MatMul", "matmul")
        for i in range(layers)
    ]
    weights = 4 * (layers * 14 * unit + 51_865 * width)
    loop = LoopWork(
        name="decoder",
        trips=tokens,
        basis="said",
        flops=weights / 2,
        weight_bytes=weights,
        captured_bytes=2 * hidden * layers,
        state_bytes=4 * 2 * _FLOAT_BYTES * width * layers,
        growth_bytes=2 * _FLOAT_BYTES * width * layers,
        scratch_bytes=_FLOAT_BYTES * 51_865,
        launches=16 * layers + 1,
    )
    mflop = 1e-6 * tokens * weights / 2
    return graph.build(graph.add("decoder", cross, 8 * tokens, mflop, weights, "Loop", "matmul", loop))


def fpn(levels: int = 4, depth: int = 3) -> BlockGraph:
    """A backbone, a way back down over lateral connections, and a head on every level."""
    graph = GraphBuilder("fpn", image=_FLOAT_BYTES * 3 * 640 * 640)
    value, size, tops = "image", _FLOAT_BYTES * 64 * 160 * 160, []
    for level in range(levels):
        for i in range(depth):
            value = graph.add(f"conv{level}_{i}", [value], size, 400.0, 60_000 << level)
        tops.append((value, size))
        size //= 2
    heads, above = [], None
    for level, (top, top_size) in reversed(list(enumerate(tops))):
        reads = [top] if above is None else [top, above]
        above = graph.add(f"lateral{level}", reads, top_size // 2, 80.0, 100_000)
        out = graph.add(f"out{level}", [above], top_size // 4, 120.0, 300_000)
        heads.append(graph.add(f"head{level}", [out], top_size // 16, 30.0, 100_000))
    return graph.build(*heads)


def random_graph(rng: random.Random, blocks: int) -> BlockGraph:
    """Any small DAG: shared values, dead ends, several inputs and outputs, an input that is also an output."""
    inputs = {f"in{i}": rng.choice([0, 900, 50_000, 2_000_000]) for i in range(rng.randint(1, 2))}
    graph = GraphBuilder("random", **inputs)
    values = list(inputs)
    for i in range(blocks):
        reads = rng.sample(values, min(len(values), rng.choice([1, 1, 2, 3])))
        size = rng.choice([0, 400, 20_000, 300_000, 4_000_000])
        values.append(graph.add(f"n{i}", reads, size, rng.choice([0, 5, 80, 900]), rng.choice([0, 10_000, 3_000_000])))
    return graph.build(values[-1], *rng.sample(values, rng.randint(0, 2)))


_RANDOM_DEVICES = ("generic-phone-cpu", "raspberry-pi-5", "generic-edge-cpu", "t4")
_RANDOM_LINKS = ("1mbit/1ms", "20mbit:100mbit/10ms@lte", "1gbit/100us", "10gbit/10us")


def random_problem(rng: random.Random, catalogue: Catalogue, most_placements: int = 2500) -> Problem:
    """A small problem with unsupported blocks, now and then weights on price and energy; every block has a tier."""
    count = rng.choice([1, 2, 2, 3, 3, 3, 4, 4, 5])
    most = next(n for n in range(7, 0, -1) if count**n <= most_placements)
    graph = random_graph(rng, rng.randint(max(1, most - 2), most))
    links = [rng.choice(_RANDOM_LINKS) for _ in range(count - 1)]
    tiers, joined = line(*(rng.choice(_RANDOM_DEVICES) for _ in range(count)), links=links, catalogue=catalogue)
    bad: dict[str, list[str | None]] = {tier.name: [None] * len(graph.blocks) for tier in tiers}
    for i in range(len(graph.blocks)):
        for tier in rng.sample(tiers, rng.randint(0, count - 1)):
            bad[tier.name][i] = "no such operator" if rng.random() < 0.3 else None
    weights = {"latency": 1.0, "price": rng.choice([0.0, 1.0]), "energy": rng.choice([0.0, 0.1])}
    sla = SLA.model_validate({"objective": weights, "energy_scope": rng.choice(["first", "all"])})
    return make_problem(graph, tiers, joined, sla, bad)


def with_random_limits(rng: random.Random, problem: Problem) -> Problem:
    """The problem with caps and bounds around what some placement needs: tight, loose or not enough."""
    every = Usage(problem, np.array(list(placements(problem))))
    pick = rng.randrange(len(every.placements))
    rate = 0.3 / max(float(every.stages(problem.nominal)[pick].max()), 1e-9) if rng.random() < 0.4 else None
    shape: dict[str, Any] = {"requests_per_s": rate} if rate is not None else {}
    objective, scope = problem.sla.objective.model_dump(), problem.sla.energy_scope
    limited = problem.with_sla(SLA.model_validate({**shape, "objective": objective, "energy_scope": scope}))
    every = Usage(limited, every.placements)
    shape["memory_mb"] = {
        tier: max(float(used) * rng.choice([0.8, 1.0, 1.2]), 1e3) / 1e6
        for tier, used in zip(problem.tier_names, every.resident_bytes[pick], strict=True)
        if rng.random() < 0.6
    }
    shape["power_w"] = {
        tier: max(float(joules) * (rate or 0) * rng.choice([0.9, 1.0, 1.3]), 1e-9)
        for tier, joules in zip(problem.tier_names, every.tier_joules[pick], strict=True)
        if rate is not None and rng.random() < 0.5
    }
    measures = {
        "latency_ms": 1e3 * every.measure(latency_rates(limited, limited.nominal))[pick],
        "energy_mj": 1e3 * every.measure(energy_rates(limited))[pick],
        "price_per_1k_usd": 1e3 * every.price_usd[pick],
        "carbon_per_1k_g": 1e3 * every.carbon_g[pick],
    }
    shape["bounds"] = {
        name: max(float(value) * rng.choice([0.9, 1.0, 1.3]), 1e-9)
        for name, value in measures.items()
        if rng.random() < 0.35
    }
    return problem.with_sla(SLA.model_validate({**shape, "objective": objective, "energy_scope": scope}))


def line(*devices: str, links: Sequence[str] = (), catalogue: Catalogue | None = None) -> tuple[list[Tier], list[Link]]:
    """Tiers and links from catalogue names; tiers are called phone, edge, cloud, or t0, t1, ... if not 2 or 3."""
    known = catalogue or load_catalogue()
    names = {1: ("phone",), 2: ("phone", "cloud"), 3: ("phone", "edge", "cloud")}.get(len(devices))
    names = names or tuple(f"t{i}" for i in range(len(devices)))
    tiers = [Tier(name, known.device(device)) for name, device in zip(names, devices, strict=True)]
    return tiers, [parse_link(text, known.links) for text in links]


@dataclass
class Walk:
    """What one simulated request did."""

    latency_s: float
    tier_seconds: list[float]
    up_bytes: list[float]
    down_bytes: list[float]
    up_messages: list[float]
    down_messages: list[float]
    resident_bytes: list[float]


def simulate(problem: Problem, placement: Sequence[int], state: State) -> Walk:
    """Run one request through a placement and add up what happens."""
    tiers, links = len(problem.tiers), len(problem.links)
    up_bytes, down_bytes, up_messages, down_messages = ([0.0] * links for _ in range(4))
    resident = _residents(problem, placement)
    walk = Walk(0.0, [0.0] * tiers, up_bytes, down_bytes, up_messages, down_messages, resident)
    held = {v.name: {0} if v.producer == GRAPH_INPUT else set[int]() for v in problem.graph.values}
    here, cabin, direction, todo = 0, 0, 1, {block.index for block in problem.graph.blocks}
    _work(walk, state, 0, float(problem.costs.invocation_s[0]))
    while todo:
        while ready := [b for b in sorted(todo) if placement[b] == cabin and _ready(problem, todo, b)]:
            _travel(problem, placement, state, walk, held, here, cabin)
            here = cabin
            _run(problem, walk, state, held, ready[0], cabin)
            todo.remove(ready[0])
        if not any((placement[b] - cabin) * direction > 0 for b in todo):
            direction = -direction
        cabin += direction if todo else 0
    _travel(problem, placement, state, walk, held, here, 0)
    if missing := [v.name for v in problem.graph.outputs if 0 not in held[v.name]]:
        raise InternalError(f"the answer lacks {missing}")
    return walk


def _ready(problem: Problem, todo: set[int], block: int) -> bool:
    return not any(block in v.consumers and v.producer in todo for v in problem.graph.values)


def _run(problem: Problem, walk: Walk, state: State, held: dict[str, set[int]], block: int, tier: int) -> None:
    _work(walk, state, tier, float(problem.costs.seconds[block, tier]))
    for value in problem.graph.values:
        if block in value.consumers and tier not in held[value.name]:
            raise InternalError(f"block {block} lacks {value.name} on tier {tier}")
        if value.producer == block:
            held[value.name].add(tier)


def _work(walk: Walk, state: State, tier: int, seconds: float) -> None:
    walk.tier_seconds[tier] += seconds
    walk.latency_s += seconds * state.slowdown[tier]


def _travel(
    problem: Problem,
    placement: Sequence[int],
    state: State,
    walk: Walk,
    held: dict[str, set[int]],
    here: int,
    there: int,
) -> None:
    """Move control one link at a time, taking along what exists here and is needed further on."""
    while here != there:
        step = 1 if there > here else -1
        link, up = min(here, here + step), step > 0
        carried = 0
        for value in problem.graph.values:
            needs = [placement[c] for c in value.consumers] + ([0] if value.is_output else [])
            beyond = any((tier - here) * step > 0 for tier in needs)
            if beyond and here in held[value.name] and here + step not in held[value.name]:
                held[value.name].add(here + step)
                carried += value.size_bytes
        count, messages = (walk.up_bytes, walk.up_messages) if up else (walk.down_bytes, walk.down_messages)
        count[link] += carried
        messages[link] += 1
        per_byte = (state.up_s_per_byte if up else state.down_s_per_byte)[link]
        per_message = (state.up_s_per_message if up else state.down_s_per_message)[link]
        walk.latency_s += carried * per_byte + per_message
        here += step
        _work(walk, state, here, float(problem.costs.invocation_s[here]))


def _residents(problem: Problem, placement: Sequence[int]) -> list[float]:
    peaks = [0.0] * len(problem.tiers)
    for block, tier in zip(problem.graph.blocks, placement, strict=True):
        live = 0.0
        for value in problem.graph.values:
            last = len(placement) if value.is_output else max((value.producer, *value.consumers))
            where = {0} if value.producer == GRAPH_INPUT or value.is_output else set()
            where |= {placement[i] for i in (value.producer, *value.consumers) if i != GRAPH_INPUT}
            live += value.size_bytes * (value.producer <= block.index <= last and tier in where)
        streams = problem.sla.streams.get(problem.tiers[tier].name, 1)
        for loop in block.loops:
            live += loop.last_state_bytes + loop.scratch_bytes
            live += (streams - 1) * (loop.last_state_bytes + loop.captured_bytes)
        peaks[tier] = max(peaks[tier], live)
    weights = [sum(b.weight_bytes for b in problem.graph.blocks if placement[b.index] == k) for k in range(len(peaks))]
    return [peak + weight for peak, weight in zip(peaks, weights, strict=True)]


def placements(problem: Problem) -> Iterator[tuple[int, ...]]:
    """Every placement that the problem's constraints allow, caps and bounds aside."""
    return itertools.product(*([k for k, ok in enumerate(row) if ok] for row in problem.constraints.allowed))
