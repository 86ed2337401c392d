"""The least makespan against exhaustive search over placements and schedules, and against the simulated request."""

import math
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from flagsplit.errors import PolicyError
from flagsplit.flagir.blockgraph import GRAPH_INPUT, BlockGraph
from flagsplit.splitter.devices import Catalogue
from flagsplit.splitter.makespan import RESOLUTION, least_makespan
from flagsplit.splitter.problem import Problem, make_problem
from flagsplit.splitter.simulator import simulate_request
from flagsplit.splitter.sla import SLA
from flagsplit.splitter.solvers import solve
from flagsplit.splitter.state import State
from flagsplit.splitter.testing import cnn, line, placements, random_problem, transformer, two_tower, unet
from flagsplit.splitter.timeline import faults


@dataclass
class _Job:
    machine: str
    seconds: float
    delay: float
    needs: list[int]


def _jobs(problem: Problem, placement: Sequence[int], state: State) -> list[_Job]:
    """Blocks, and one job for each tensor and link that it crosses; makers stand before readers."""
    acting = [float(s) * slow for s, slow in zip(problem.costs.invocation_s, state.slowdown, strict=True)]
    jobs = [_Job("request", acting[0], 0.0, [])]
    there: dict[tuple[str, int], int] = {}

    def spread(name: str, size: int, home: int, job: int, needed: set[int]) -> None:
        there[name, home] = job
        for step in (1, -1):
            at, end = home, max(needed | {home}) if step > 0 else min(needed | {home})
            while at != end:
                link, far = min(at, at + step), at + step
                per_byte = (state.up_s_per_byte if step > 0 else state.down_s_per_byte)[link]
                latency = (state.up_s_per_message if step > 0 else state.down_s_per_message)[link]
                jobs.append(_Job(f"{at}-{far}", size * per_byte, latency + acting[far], [there[name, at]]))
                there[name, far] = len(jobs) - 1
                at = far

    def made_by(producer: int, home: int, job: int) -> None:
        for value in problem.graph.values:
            if value.producer == producer:
                needed = {placement[c] for c in value.consumers} | ({0} if value.is_output else set())
                spread(value.name, value.size_bytes, home, job, needed)

    made_by(GRAPH_INPUT, 0, 0)
    for block, tier in enumerate(placement):
        needs = [0] + [there[value.name, tier] for value in problem.graph.values if block in value.consumers]
        jobs.append(_Job(str(tier), float(problem.costs.seconds[block, tier]) * state.slowdown[tier], 0.0, needs))
        made_by(block, tier, len(jobs) - 1)
    return jobs


def _least(jobs: list[_Job], best: float) -> float:
    """The least makespan below `best`, else `best`: Giffler and Thompson's tree of active schedules."""
    tails = [0.0] * len(jobs)
    for i in range(len(jobs) - 1, -1, -1):
        tails[i] += jobs[i].seconds + jobs[i].delay
        for need in jobs[i].needs:
            tails[need] = max(tails[need], tails[i])

    def search(arrived: dict[int, float], free: dict[str, float], best: float) -> float:
        if len(arrived) == len(jobs):
            return min(best, max(arrived.values()))
        starts = {
            i: max([free.get(job.machine, 0.0), *(arrived[need] for need in job.needs)])
            for i, job in enumerate(jobs)
            if i not in arrived and all(need in arrived for need in job.needs)
        }
        if max(start + tails[i] for i, start in starts.items()) >= best:
            return best
        first = min(starts, key=lambda i: (starts[i] + jobs[i].seconds, jobs[i].seconds))
        end = starts[first] + jobs[first].seconds
        rivals = [i for i in starts if jobs[i].machine == jobs[first].machine and (i == first or starts[i] < end)]
        for i in sorted(rivals, key=lambda i: -tails[i]):
            over = starts[i] + jobs[i].seconds
            best = search({**arrived, i: over + jobs[i].delay}, {**free, jobs[i].machine: over}, best)
        return best

    return search({}, {}, best)


def _cases(catalogue: Catalogue, first_seed: int, count: int) -> Iterator[tuple[int, Problem, State]]:
    """Problems of up to five blocks on up to three tiers, some under memory caps, in random states."""
    seed = first_seed
    while count:
        rng = random.Random(seed)
        problem = random_problem(rng, catalogue, most_placements=243)
        if 2 <= len(problem.tiers) <= 3 and len(problem.graph.blocks) <= 5:
            if rng.random() < 0.4:
                cap = float(problem.weight_bytes.sum()) * rng.choice([0.5, 0.8]) / 1e6
                problem = problem.with_sla(SLA(memory_mb={problem.tier_names[-1]: max(cap, 1e-3)}))
            slow = tuple(rng.choice([0.5, 1.0, 6.0]) for _ in problem.tiers)
            factors = [rng.choice([0.1, 1.0, 30.0]) for _ in problem.links]
            yield seed, problem, replace(problem.nominal, slowdown=slow).scaled(factors, rng.choice([0.0, 1.0]))
            count -= 1
        seed += 1


def _fits(problem: Problem, placement: Sequence[int]) -> bool:
    held = np.bincount(placement, problem.weight_bytes, len(problem.tiers))
    return bool((held <= problem.memory_bytes).all())


@pytest.mark.slow
@pytest.mark.parametrize("first_seed", range(0, 800, 200))
def test_equals_exhaustive_search(catalogue: Catalogue, first_seed: int) -> None:
    overlapping = 0
    for seed, problem, state in _cases(catalogue, first_seed, 25):
        every = [placement for placement in placements(problem) if _fits(problem, placement)]
        if not every:
            with pytest.raises(PolicyError, match="in no allowed way"):
                least_makespan(problem, state)
            continue
        serial = min(simulate_request(problem, p, state, overlap=False).makespan_s for p in every)
        least = serial * (1 + 1e-12)
        for placement in every:
            least = _least(_jobs(problem, placement, state), least)
        found = least_makespan(problem, state)
        rounding = RESOLUTION * found.makespan_s * 20
        assert found.proven
        assert found.makespan_s == pytest.approx(least, rel=0, abs=rounding + 1e-12 * serial), seed
        assert least - rounding <= found.bound_s <= least * (1 + 1e-9), seed
        assert _fits(problem, found.placement)
        assert not faults(problem, found.placement, found.timeline)
        overlapping += least < serial * 0.999
    assert overlapping >= 2


@pytest.mark.slow
def test_bounds_every_simulated_request(catalogue: Catalogue) -> None:
    for seed, problem, state in _cases(catalogue, 1000, 25):
        every = [placement for placement in placements(problem) if _fits(problem, placement)]
        if every:
            simulated = min(simulate_request(problem, placement, state).makespan_s for placement in every)
            assert least_makespan(problem, state).bound_s <= simulated * (1 + 1e-9), seed


def _problem(catalogue: Catalogue, graph: BlockGraph, sla: SLA | None = None) -> Problem:
    tiers, links = line("generic-phone-cpu", "generic-edge-cpu", "t4", links=["wifi", "wan"], catalogue=catalogue)
    return make_problem(graph, tiers, links, sla)


def test_towers_run_side_by_side(catalogue: Catalogue) -> None:
    problem = _problem(catalogue, two_tower())
    serial = solve(problem)
    found = least_makespan(problem, hint=serial.placement)
    assert found.proven
    assert found.makespan_s < 0.95 * serial.objective
    rows = {each.what: each for each in found.timeline.intervals}
    assert rows["image0"].start_s < rows["words3"].end_s
    assert rows["words0"].start_s < rows["image3"].end_s
    assert found.makespan_s == found.timeline.makespan_s == rows["join"].end_s


@pytest.mark.slow
@pytest.mark.parametrize("graph", [cnn(), unet(), two_tower(), transformer(), two_tower(15)], ids=lambda g: g.name)
def test_families_are_proven(catalogue: Catalogue, graph: BlockGraph) -> None:
    problem = _problem(catalogue, graph)
    serial = solve(problem)
    found = least_makespan(problem, seconds=30, hint=serial.placement)
    assert found.proven
    assert found.bound_s <= found.makespan_s <= serial.objective * (1 + 1e-9)
    assert found.makespan_s - found.bound_s <= RESOLUTION * serial.objective * 4 * len(graph.blocks)
    assert not faults(problem, found.placement, found.timeline)


@pytest.mark.slow
def test_solver_is_imported_when_used() -> None:
    code = (
        "import sys, flagsplit.splitter.makespan, flagsplit.splitter.simulator; "
        "print([m for m in ('ortools', 'pandas', 'onnx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_is_deterministic(catalogue: Catalogue) -> None:
    problem = _problem(catalogue, two_tower(6))
    first, again = least_makespan(problem), least_makespan(problem)
    assert replace(first, seconds=0) == replace(again, seconds=0)


def test_dead_tiers_run_nothing(catalogue: Catalogue) -> None:
    problem = _problem(catalogue, two_tower())
    assert 1 in least_makespan(problem).placement
    alive = replace(problem.nominal, alive=(True, False, True))
    assert 1 not in least_makespan(problem, alive).placement
    pinned = problem.with_sla(SLA(pins={"join": "edge"}))
    with pytest.raises(PolicyError, match="'join' has no tier left"):
        least_makespan(pinned, alive)


def test_weights_that_do_not_fit(catalogue: Catalogue) -> None:
    caps = {"phone": 4.0, "edge": 4.0, "cloud": 8.5}
    found = least_makespan(_problem(catalogue, cnn(2, 2), SLA(memory_mb=caps)))
    assert found.placement[-1] == 2
    with pytest.raises(PolicyError, match=r"memory_mb: 8\.\d+ MB of weights fit the tiers in no allowed way"):
        least_makespan(_problem(catalogue, cnn(2, 2), SLA(memory_mb=dict.fromkeys(caps, 4.0))))


def test_a_hint_is_kept_when_time_is_short(catalogue: Catalogue) -> None:
    problem = _problem(catalogue, two_tower(40))
    serial = solve(problem)
    found = least_makespan(problem, seconds=0.0, hint=serial.placement)
    assert found.makespan_s <= serial.objective * (1 + 1e-9)
    assert found.bound_s <= found.makespan_s
    assert math.isfinite(found.bound_s)
