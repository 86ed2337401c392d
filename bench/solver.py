"""How right and how fast the splitter's solvers are: against exhaustive search, a simulator of its own, and the clock.

Exactness, over seeded random problems: `mincut_mismatches`, `milp_mismatches`, `throughput_mismatches` and
`rtt_mismatches` count optima that differ from exhaustive search; `simulator_max_error` is the largest relative distance
between a predicted serial latency and the simulator's, and `overlap_excess` by how much overlap ever made one longer.
Speed, in milliseconds, arcs built once and every solve in another state: `resolve_{fused,1k,5k}_ms_{p50,p99}` at three
tiers, `resolve_20k_ms_p50` at five; `lookup_us_p99` is a choice from a pool. Quality: `pool_regret_max` over states off
the grid, dead tiers included; `milp_100_s_max` is the longest proof over a suite of SLAs on graphs of up to 100 blocks
at three tiers (`milp_unproven` counts those without), `heuristic_gap_max` how far the fast heuristic stays above them.
"""

import argparse
import json
import platform
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from solver_graphs import deep_network, fused_network, off_grid, sla_suite

from flagsplit.errors import PolicyError
from flagsplit.splitter.devices import Catalogue, load_catalogue
from flagsplit.splitter.evaluate import Usage
from flagsplit.splitter.grid import Grid
from flagsplit.splitter.heuristics import Heuristic
from flagsplit.splitter.limits import which_keep
from flagsplit.splitter.mincut import CutNetwork
from flagsplit.splitter.plan_maker import make_plan
from flagsplit.splitter.pool_builder import build_pool
from flagsplit.splitter.problem import Problem, make_problem
from flagsplit.splitter.rates import objective_rates, stage_rates
from flagsplit.splitter.simulator import simulate_request
from flagsplit.splitter.sla import SLA
from flagsplit.splitter.solvers import solve
from flagsplit.splitter.testing import (
    cnn,
    fpn,
    line,
    placements,
    random_problem,
    transformer,
    two_tower,
    unet,
    with_random_limits,
)

Oracle = Callable[[Problem], float | None]
_SAME = 1e-7
_LOOKUPS = 500
GOOD_ENOUGH = 0.005
"""Proven gap at which solving again stops, as `Resolver` does; `resolve_*_gap_max` is what was left."""


def differs(problem: Problem, oracle: Oracle) -> bool:
    """Whether the solver's optimum is not that of exhaustive search."""
    best = oracle(problem)
    try:
        found = solve(problem, diagnose=False)
    except PolicyError:
        return best is not None
    if best is None or abs(found.objective - best) > _SAME * max(best, 1e-12):
        return True
    return found.bound > best * (1 + _SAME) or not found.proven


def every_placement(problem: Problem) -> Usage:
    """All placements that the constraints allow."""
    return Usage(problem, np.array(list(placements(problem))))


def least_sum(problem: Problem) -> float | None:
    """The least objective of all placements that keep the SLA."""
    every = every_placement(problem)
    kept = which_keep(every)
    values = every.measure(objective_rates(problem, problem.nominal))[kept]
    return float(values.min()) if kept.any() else None


def least_stage(problem: Problem) -> float | None:
    """The least time of the slowest stage."""
    every = every_placement(problem)
    kept = which_keep(every)
    stages = [every.measure(rates) for rates in stage_rates(problem, problem.nominal).values()]
    values = np.max(stages, axis=0)[kept]
    return float(values.min()) if kept.any() else None


def plain(rng: random.Random, catalogue: Catalogue) -> Problem:
    """Up to eight blocks on two to four tiers, shared values, blocks that a tier cannot run."""
    return random_problem(rng, catalogue, most_placements=6600 if rng.random() < 0.15 else 1100)


def chatty(rng: random.Random, catalogue: Catalogue) -> Problem:
    """The same where round trips decide: long ways, small tensors."""
    problem = random_problem(rng, catalogue, most_placements=800)
    half = tuple(rng.choice([0.0005, 0.005, 0.05]) for _ in problem.links)
    faster = problem.nominal.scaled([30.0] * len(problem.links))
    nominal = replace(faster, up_s_per_message=half, down_s_per_message=half)
    return replace(problem, nominal=nominal)


def limited(rng: random.Random, catalogue: Catalogue) -> Problem:
    """The same under random caps and bounds."""
    return with_random_limits(rng, random_problem(rng, catalogue, most_placements=400))


def streamed(rng: random.Random, catalogue: Catalogue) -> Problem:
    """The same for throughput."""
    problem = random_problem(rng, catalogue, most_placements=400)
    return problem.with_sla(SLA.model_validate({"objective": {"goal": "throughput"}}))


def exactness(catalogue: Catalogue, share: float) -> dict[str, float]:
    """Mismatches by kind, with the number of cases."""
    kinds: dict[str, tuple[int, Callable[[random.Random, Catalogue], Problem], Oracle]] = {
        "mincut": (500, plain, least_sum),
        "milp": (250, limited, least_sum),
        "throughput": (200, streamed, least_stage),
        "rtt": (200, chatty, least_sum),
    }
    found: dict[str, float] = {}
    for offset, (name, (cases, make, oracle)) in enumerate(kinds.items()):
        seeds = range(10_000 * offset, 10_000 * offset + max(10, int(cases * share)))
        found[f"{name}_mismatches"] = sum(differs(make(random.Random(seed), catalogue), oracle) for seed in seeds)
        found[f"{name}_cases"] = len(seeds)
    return found


def simulated(catalogue: Catalogue, cases: int) -> dict[str, float]:
    """Predicted latencies against the simulator, one by one and with overlap."""
    error = excess = 0.0
    for seed in range(cases):
        rng = random.Random(seed)
        problem = random_problem(rng, catalogue, most_placements=300)
        placement = rng.choice(list(placements(problem)))
        state = Grid.for_links(len(problem.links)).between(problem.nominal, rng)
        latency = make_plan(problem, placement, "plan").latency_s(state)
        serial = simulate_request(problem, placement, state, overlap=False).makespan_s
        overlapped = simulate_request(problem, placement, state).makespan_s
        error = max(error, abs(serial - latency) / latency)
        excess = max(excess, overlapped / latency - 1)
    return {"simulator_max_error": error, "overlap_excess": max(excess, 0.0), "simulator_cases": cases}


def resolved(catalogue: Catalogue, *, quick: bool) -> dict[str, float]:
    """Times of solving again in another state."""
    three = line("generic-phone-cpu", "orin-nano", "t4", links=["wifi", "wan"], catalogue=catalogue)
    names = ("generic-phone-cpu", "raspberry-pi-5", "orin-nano", "t4", "a100")
    five = line(*names, links=["wifi", "ethernet", "wan", "ethernet"], catalogue=catalogue)
    cases = [
        ("fused", [fused_network("light-resnet50"), fused_network("light-densenet121")], three, 150),
        ("1k", [deep_network(1, 1_000), deep_network(2, 1_000)], three, 150),
        ("5k", [deep_network(3, 5_000), deep_network(4, 5_000)], three, 15 if quick else 80),
        ("20k", [deep_network(5, 20_000)], five, 5 if quick else 15),
    ]
    found: dict[str, float] = {}
    for label, graphs, (tiers, links), count in cases:
        took, gaps = [], []
        for graph in graphs:
            problem, rng = make_problem(graph, tiers, links), random.Random(len(graph.blocks))
            network = CutNetwork(problem, problem.constraints.allowed)
            for _ in range(count):
                rates = objective_rates(problem, off_grid(problem, rng))
                started = time.perf_counter()
                result = network.least(rates, good_enough=GOOD_ENOUGH)
                took.append(1e3 * (time.perf_counter() - started))
                gaps.append(result.gap)
        found[f"resolve_{label}_ms_p50"] = float(np.percentile(took, 50))
        found[f"resolve_{label}_ms_p99"] = float(np.percentile(took, 99))
        found[f"resolve_{label}_gap_max"] = max(gaps)
    return found


def pooled(catalogue: Catalogue, states: int) -> dict[str, float]:
    """Look-up times, and regret of pools in states off their grid."""
    tiers, links = line("generic-phone-cpu", "generic-edge-cpu", "t4", links=["wifi", "wan"], catalogue=catalogue)
    graphs = [cnn(), unet(), two_tower(), transformer(), fpn(), fused_network("light-resnet50")]
    worst, took, sizes = 0.0, [], []
    for graph in graphs:
        problem, rng = make_problem(graph, tiers, links), random.Random(7)
        pool = build_pool(problem)
        sizes.append(len(pool.plans))
        networks = _survivors(problem)
        for at in range(max(_LOOKUPS, states // len(graphs))):
            state = off_grid(problem, rng, dead=True)
            started = time.perf_counter()
            choice = pool.choose(state)
            took.append(1e6 * (time.perf_counter() - started))
            if at >= states // len(graphs):
                continue
            best = networks[state.alive].least(objective_rates(problem, state)).bound
            worst = max(worst, choice.latency_s / best - 1)
    return {
        "lookup_us_p50": float(np.percentile(took, 50)),
        "lookup_us_p99": float(np.percentile(took, 99)),
        "pool_regret_max": worst,
        "pool_states": len(graphs) * (states // len(graphs)),
        "pool_plans_max": max(sizes),
    }


def _survivors(problem: Problem) -> dict[tuple[bool, ...], CutNetwork]:
    found = {}
    for dead in ((), (1,), (2,), (1, 2)):
        alive = [k for k in range(3) if k not in dead]
        part = problem.restricted_to(alive)
        found[tuple(k in alive for k in range(3))] = CutNetwork(part, part.constraints.allowed)
    return found


def proven(catalogue: Catalogue, *, quick: bool) -> Iterator[tuple[str, float]]:
    """Proofs under SLAs, and the heuristic beside them."""
    longest = gap = heuristic_s = 0.0
    unproven = cases = 0
    for at, (_, problem) in enumerate(sla_suite(catalogue)):
        if quick and at % 5:
            continue
        started = time.perf_counter()
        found = solve(problem, milp_seconds=20.0, diagnose=False)
        longest = max(longest, time.perf_counter() - started)
        unproven += not found.proven
        started = time.perf_counter()
        guess = Heuristic(problem, objective_rates(problem, problem.nominal)).best()
        heuristic_s = max(heuristic_s, time.perf_counter() - started)
        gap = max(gap, guess.objective / found.objective - 1 if guess is not None else float("inf"))
        cases += 1
    yield from {
        "milp_100_s_max": longest,
        "milp_unproven": unproven,
        "heuristic_gap_max": gap,
        "heuristic_s_max": heuristic_s,
        "milp_cases_100": cases,
    }.items()


def main() -> None:
    """Run, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="fewer cases of everything, under 50 s")
    options = parser.parse_args()
    catalogue = load_catalogue()
    solve(random_problem(random.Random(1), catalogue))  # imports count as nobody's time
    figures = exactness(catalogue, 0.08 if options.quick else 1.0)
    figures |= simulated(catalogue, 60 if options.quick else 600)
    figures |= resolved(catalogue, quick=options.quick)
    figures |= pooled(catalogue, 120 if options.quick else 1_200)
    figures |= dict(proven(catalogue, quick=options.quick))
    if options.json:
        conditions = {"machine": platform.machine(), "seeded": True, "quick": options.quick}
        print(json.dumps({"figures": figures, "conditions": conditions, "basis": "measured"}))
    else:
        for key, value in figures.items():
            print(f"{key:32} {value:.6g}")


if __name__ == "__main__":
    main()
