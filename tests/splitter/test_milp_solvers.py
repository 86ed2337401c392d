"""Both integer programs on their own, the race between them, and that the same problem gets the same answer."""

import math
import os
import random
import subprocess
import sys
import time

import pytest
from tests.splitter.oracles import feasible, figures, weighted

from flagsplit.splitter import milp
from flagsplit.splitter.cpsat import CpSatProgram
from flagsplit.splitter.devices import Catalogue
from flagsplit.splitter.highs import HighsProgram
from flagsplit.splitter.infeasible import limits_of
from flagsplit.splitter.milp import MilpResult
from flagsplit.splitter.milp_form import Goal
from flagsplit.splitter.problem import Problem, make_problem
from flagsplit.splitter.rates import latency_rates, objective_rates, stage_rates
from flagsplit.splitter.sla import parse_sla
from flagsplit.splitter.solvers import solve
from flagsplit.splitter.testing import fpn, line, placements, random_problem, simulate, with_random_limits


def _alone(problem: Problem, goal: Goal, program: type) -> MilpResult:
    """What one program proves by itself."""
    search = milp._Search(problem, goal, limits_of(problem), None)
    made, until = search.complete(program(problem, goal)), time.monotonic() + 20
    while not search.best.proven and time.monotonic() < until:
        search.run(made, "alone", until)
    return search.best


@pytest.mark.slow
@pytest.mark.parametrize("first_seed", range(0, 60, 20))
def test_both_prove_the_same_optimum(catalogue: Catalogue, first_seed: int) -> None:
    for seed in range(first_seed, first_seed + 20):
        rng = random.Random(seed)
        problem = with_random_limits(rng, random_problem(rng, catalogue, most_placements=150))
        goal = objective_rates(problem, problem.nominal)
        best = min((weighted(problem, placement) for placement in feasible(problem)), default=math.inf)
        for program in (CpSatProgram, HighsProgram):
            found = _alone(problem, goal, program)
            assert found.proven, (seed, program)
            assert found.value == pytest.approx(best, rel=1e-6, abs=1e-12), (seed, program)
            assert found.infeasible == (best == math.inf), (seed, program)


@pytest.mark.slow
def test_every_form_of_goal(catalogue: Catalogue) -> None:
    for seed in range(60, 75):
        rng = random.Random(seed)
        problem = with_random_limits(rng, random_problem(rng, catalogue, most_placements=100))
        able, tier = feasible(problem), rng.choice(problem.tier_names)
        if not able:
            continue
        at = problem.tier_names.index(tier)
        answers: list[tuple[Goal, float]] = [
            (latency_rates(problem, problem.nominal), min(figures(problem, p).latency_s for p in able)),
            (
                tuple(stage_rates(problem, problem.nominal).values()),
                min(max(figures(problem, p).stages.values()) for p in able),
            ),
            (tier, min(simulate(problem, p, problem.nominal).resident_bytes[at] for p in able) / 1e6),
        ]
        for goal, best in answers:
            for program in (CpSatProgram, HighsProgram):
                found = _alone(problem, goal, program)
                assert found.proven, (seed, program)
                assert found.value == pytest.approx(best, rel=1e-6, abs=2e-6), (seed, program, goal)


@pytest.mark.slow
def test_the_race_ends_when_one_proves(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    """CP-SAT is given no start of its own, so that both are always at work."""
    monkeypatch.setattr(milp, "_ALONE_S", 0.0)
    for seed in range(8):
        rng = random.Random(seed)
        problem = with_random_limits(rng, random_problem(rng, catalogue, most_placements=150))
        started = time.monotonic()
        found = milp.minimize(problem, objective_rates(problem, problem.nominal), limits_of(problem), 60.0)
        assert time.monotonic() - started < 10
        best = min((weighted(problem, placement) for placement in feasible(problem)), default=math.inf)
        assert found.value == pytest.approx(best, rel=1e-6), seed


@pytest.mark.slow
def test_a_proof_elsewhere_stops_cp_sat(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long search that the other thread makes needless, because it proved what is known already."""
    tiers, links = line(
        *("generic-phone-cpu", "raspberry-pi-5", "generic-edge-cpu", "t4"), links=["wifi"] * 3, catalogue=catalogue
    )
    problem = make_problem(fpn(8, 8), tiers, links, parse_sla({"memory_mb": {"t3": 30.0}}))
    goal = objective_rates(problem, problem.nominal)
    search = milp._Search(problem, goal, limits_of(problem), (0,) * len(problem.graph.blocks))
    program = search.complete(CpSatProgram(problem, goal))

    class Oracle:
        """Stands in for a solver that is done at once."""

        def __init__(self, problem: Problem, goal: Goal) -> None:
            time.sleep(0.5)
            search.best = MilpResult(search.best.placement, search.best.value, search.best.value, "milp-highs")

        def add_measure_limit(self, *_: object) -> None: ...
        def add_memory_limit(self, *_: object) -> None: ...
        def add_ceiling(self, *_: object) -> None: ...

    monkeypatch.setattr(milp, "HighsProgram", Oracle)
    started = time.monotonic()
    milp._race(search, program, started + 120)
    assert time.monotonic() - started < 20


@pytest.mark.slow
def test_little_time_is_honest(catalogue: Catalogue) -> None:
    for seed in range(12):
        rng = random.Random(seed)
        problem = with_random_limits(rng, random_problem(rng, catalogue, most_placements=150))
        best = min((weighted(problem, placement) for placement in feasible(problem)), default=math.inf)
        goal = objective_rates(problem, problem.nominal)
        for seconds in (0.0, 0.001, 0.01):
            found = milp.minimize(problem, goal, limits_of(problem), seconds)
            assert found.bound <= best * (1 + 1e-9) + 1e-12, seed
            assert best <= found.value * (1 + 1e-9) + 1e-12, seed


_SOLVED_ANEW = """
import random
from flagsplit.splitter.devices import load_catalogue
from flagsplit.splitter.solvers import solve
from flagsplit.splitter.sla import parse_sla
from flagsplit.splitter.problem import make_problem
from flagsplit.splitter.testing import fpn, line, two_tower, unet
catalogue = load_catalogue()
for graph in (unet(), two_tower(), fpn(3, 2)):
    for sla in ({"memory_mb": {"edge": 6.0}}, {"objective": {"goal": "throughput"}}):
        tiers, links = line("generic-phone-cpu", "generic-edge-cpu", "t4", links=["wifi", "wan"], catalogue=catalogue)
        print(solve(make_problem(graph, tiers, links, parse_sla(sla))).placement)
"""


@pytest.mark.slow
def test_fresh_processes_agree() -> None:
    said = []
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", _SOLVED_ANEW],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        said.append(done.stdout.splitlines())
    assert len(said[0]) == 6
    assert said[0] == said[1]


@pytest.mark.slow
def test_a_transfer_that_dwarfs_computing_is_weighed(catalogue: Catalogue) -> None:
    """Where what must move costs a million times what runs, the program still sees which way is shorter."""
    for seed in range(10):
        rng = random.Random(seed)
        problem = random_problem(rng, catalogue, most_placements=100)
        slow = problem.nominal.scaled([1e-4] * len(problem.links))
        found = _alone(problem, objective_rates(problem, slow), CpSatProgram)
        best = min(weighted(problem, placement, slow) for placement in placements(problem))
        assert found.value == pytest.approx(best, rel=1e-6), seed
        assert solve(problem, slow).objective == pytest.approx(best, rel=1e-6), seed
