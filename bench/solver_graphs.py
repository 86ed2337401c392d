"""Graphs, states and SLAs for `bench/solver.py`: real fused networks, large made-up ones, and a suite of policies."""

import random
from collections.abc import Iterator
from functools import cache

import numpy as np

from flagsplit import flagir
from flagsplit.apps.zoo import pull
from flagsplit.flagir.blockgraph import BlockGraph
from flagsplit.flagir.frontends.any_model import Source
from flagsplit.splitter.devices import Catalogue
from flagsplit.splitter.evaluate import Usage
from flagsplit.splitter.grid import Grid
from flagsplit.splitter.problem import Problem, make_problem
from flagsplit.splitter.rates import latency_rates
from flagsplit.splitter.sla import parse_sla
from flagsplit.splitter.solvers import solve
from flagsplit.splitter.state import State
from flagsplit.splitter.testing import GraphBuilder, cnn, fpn, line, transformer, two_tower, unet

_LINES = {
    "pi": (("generic-phone-cpu", "raspberry-pi-5", "t4"), ("wifi", "wan")),
    "orin": (("pixel8", "orin-nano", "a100"), ("20mbit/20ms", "100mbit/10ms")),
}


@cache
def fused_network(name: str) -> BlockGraph:
    """A model of the zoo, in blocks."""
    model = Source(pull(name)).read()
    flagir.canonicalize(model)
    skeleton = flagir.Skeleton(model)
    return flagir.block_graph(model, flagir.nominal_dims(skeleton, {}), skeleton)


def deep_network(seed: int, blocks: int) -> BlockGraph:
    """A network of stages: plain, residual, inception-like and densely connected parts, now and then a long skip.

    Tensors shrink from stage to stage and weights grow; each figure is within a factor of two of its stage's.
    """
    rng, graph = random.Random(seed), GraphBuilder("deep", image=4 * 3 * 512 * 512)
    value, size, weights, made = "image", 4.0 * 32 * 512 * 512, 5_000.0, 0
    kept: list[str] = []

    def add(reads: list[str], size_bytes: float, mflop: float, weight_bytes: float) -> str:
        nonlocal made
        made += 1
        jitter = 10 ** rng.uniform(-0.3, 0.3)
        wanted = list(dict.fromkeys(reads))
        return graph.add(f"n{made}", wanted, max(64, int(size_bytes)), mflop * jitter, int(weight_bytes * jitter))

    stage = max(12, blocks // max(5, blocks // 60))
    while made < blocks:
        kind = rng.choice(["residual", "residual", "residual", "inception", "plain", "dense"])
        if size > 20_000 and made // stage != (made + 3) // stage:
            size, weights = size / rng.choice([2, 4]), min(weights * 2, 4e6)
            value = add([value], size, 80.0, weights)
        if kind == "residual":
            inner = add([add([value], size * rng.choice([0.25, 1.0]), 80.0, weights)], size, 80.0, weights)
            value = add([inner, value], size, 1.0, 0)
        elif kind == "inception":
            ends = []
            for _ in range(rng.randint(2, 4)):
                end = value
                for _ in range(rng.randint(1, 3)):
                    end = add([end], size / 4, 40.0, weights)
                ends.append(end)
            value = add(ends, size, 1.0, 0)
        elif kind == "dense":
            seen = [value]
            for _ in range(rng.randint(2, 4)):
                seen.append(add(seen, size / 4, 20.0, weights))
            value = add(seen, size, 80.0, weights)
        else:
            value = add([value], size, 80.0, weights)
            kept.append(value)
        if kept and rng.random() < 0.05:
            value = add([value, rng.choice(kept[-6:])], size, 1.0, 0)
    return graph.build(value)


def off_grid(problem: Problem, rng: random.Random, *, dead: bool = False) -> State:
    """A state inside the box that pools are built for, between its corners; now and then with tiers that are dead."""
    state = Grid.for_links(min(len(problem.links), 2)).between(problem.nominal, rng)
    if dead and rng.random() < 0.5:
        alive = [True, *(rng.random() < 0.5 for _ in problem.tiers[1:])]
        state = State(**{**{name: getattr(state, name) for name in State.__dataclass_fields__}, "alive": tuple(alive)})
    return state


def sla_suite(catalogue: Catalogue) -> Iterator[tuple[str, Problem]]:
    """Graphs of up to 100 blocks under caps and bounds that bind, on two lines of three tiers."""
    graphs = [cnn(8, 12), unet(6), two_tower(20), fpn(5, 14), transformer(24), transformer(48)]
    for graph in graphs:
        for where, (devices, links) in _LINES.items():
            tiers, joined = line(*devices, links=links, catalogue=catalogue)
            free = make_problem(graph, tiers, joined)
            for kind, sla in _policies(free).items():
                yield f"{graph.name}{len(graph.blocks)}/{where}/{kind}", free.with_sla(parse_sla(sla))


def _policies(free: Problem) -> dict[str, dict[str, object]]:
    """Caps on memory, privacy, a deadline with least energy, a budget with caps; sized by the graph."""
    best = solve(free).placement
    usage = Usage(free, np.array([best, (0,) * len(best)]))
    weights = float(free.weight_bytes.sum()) / 1e6
    largest = (float(free.values.size_bytes.max()) * 3 + float(free.weight_bytes.max())) / 1e6
    fastest = float(usage.measure(latency_rates(free, free.nominal))[0])
    price = float(usage.price_usd[0]) * 1e3
    found: dict[str, dict[str, object]] = {
        "memory": {"memory_mb": {"phone": 0.4 * weights + largest, "edge": 0.5 * weights + largest}},
        "private": {"memory_mb": {"phone": 0.6 * weights + largest}, "keep_on": {free.graph.inputs[0].name: "phone"}},
        "deadline": {"objective": {"latency": 0, "energy": 1}, "bounds": {"latency_ms": 1.3e3 * fastest}},
    }
    if price > 0:
        found["budget"] = {"memory_mb": {"phone": 0.5 * weights + largest}, "bounds": {"price_per_1k_usd": 0.6 * price}}
    return found
