"""Guesses keep the limits, are measured right, and the bound beside them holds."""

import random

import pytest
from tests.splitter.oracles import feasible, goal_value, keeps, random_state

from flagsplit.splitter.devices import Catalogue
from flagsplit.splitter.heuristics import Heuristic
from flagsplit.splitter.sla import parse_sla
from flagsplit.splitter.solvers import goal_of
from flagsplit.splitter.testing import placements, random_problem, with_random_limits


@pytest.mark.slow
@pytest.mark.parametrize("goal", ["latency", "throughput"])
def test_never_breaks_a_limit(catalogue: Catalogue, goal: str) -> None:
    best_found = tried = 0
    for seed in range(8000, 8012):
        rng = random.Random(seed)
        problem = with_random_limits(rng, random_problem(rng, catalogue, most_placements=150))
        data = problem.sla.model_dump(mode="json", exclude_none=True)
        data["objective"]["goal"] = goal
        problem = problem.with_sla(parse_sla(data))
        state, able = random_state(rng, problem.nominal), feasible(problem)
        heuristic = Heuristic(problem, goal_of(problem, state))
        guess = heuristic.best(polish=seed % 2 == 0)
        free = min(goal_value(problem, placement, state) for placement in placements(problem))
        assert heuristic.bound <= free * (1 + 1e-9), seed
        if guess is None:
            continue
        assert keeps(problem, guess.placement), seed
        assert guess.objective == pytest.approx(goal_value(problem, guess.placement, state), rel=1e-9), seed
        best = min(goal_value(problem, placement, state) for placement in able)
        tried += 1
        best_found += guess.objective <= best * (1 + 1e-6)
    assert tried >= 4
    assert best_found >= 0.8 * tried
