"""Caps and bounds against exhaustive search, and what an infeasible SLA is told."""

import random
import re
from typing import Any

import numpy as np
import pytest

from flagsplit.errors import PolicyError
from flagsplit.splitter.devices import Catalogue
from flagsplit.splitter.evaluate import Usage
from flagsplit.splitter.limits import violations_of
from flagsplit.splitter.problem import Problem, make_problem
from flagsplit.splitter.rates import objective_rates
from flagsplit.splitter.sla import parse_sla
from flagsplit.splitter.solvers import solve
from flagsplit.splitter.testing import cnn, line, placements, random_problem, transformer, with_random_limits


@pytest.mark.slow
@pytest.mark.parametrize("first_seed", range(0, 120, 20))
def test_equals_exhaustive_search(catalogue: Catalogue, first_seed: int) -> None:
    for seed in range(first_seed, first_seed + 20):
        rng = random.Random(seed)
        problem = with_random_limits(rng, random_problem(rng, catalogue, most_placements=300))
        every = np.array(list(placements(problem)))
        objective = Usage(problem, every).measure(objective_rates(problem, problem.nominal))
        kept = [float(value) for value, row in zip(objective, every, strict=True) if not violations_of(problem, row)]
        if not kept:
            with pytest.raises(PolicyError, match="no plan keeps the SLA"):
                solve(problem)
            continue
        solution = solve(problem)
        assert not violations_of(problem, solution.placement), seed
        assert solution.objective == pytest.approx(min(kept), rel=1e-7), seed
        assert solution.bound <= min(kept) * (1 + 1e-7)


def _transformer(catalogue: Catalogue, sla: dict[str, Any]) -> Problem:
    tiers, links = line("generic-phone-cpu", "t4", links=["wifi"], catalogue=catalogue)
    return make_problem(transformer(), tiers, links, parse_sla(sla))


def test_memory_cap_moves_weights_away(catalogue: Catalogue) -> None:
    sla = {"keep_on": {"ids": "phone"}, "objective": {"price": 1e6}, "memory_mb": {"phone": 55.0}}
    free = solve(_transformer(catalogue, {**sla, "memory_mb": {}}))
    assert set(free.placement) == {0}
    problem = _transformer(catalogue, sla)
    capped = solve(problem)
    assert capped.solver == "milp-cp-sat"
    assert capped.proven
    assert set(capped.placement) == {0, 1}
    assert not violations_of(problem, capped.placement)


def test_infeasible_cap_says_the_smallest_that_would_do(catalogue: Catalogue) -> None:
    sla: dict[str, Any] = {"keep_on": {"ids": "phone"}, "memory_mb": {"phone": 40.0}}
    with pytest.raises(PolicyError) as caught:
        solve(_transformer(catalogue, sla))
    found = re.search(r"memory_mb of phone 40 -> ([\d.]+)", str(caught.value))
    assert found is not None
    assert "\n" not in str(caught.value)
    enough = float(found[1])
    solve(_transformer(catalogue, {**sla, "memory_mb": {"phone": enough}}))
    with pytest.raises(PolicyError):
        solve(_transformer(catalogue, {**sla, "memory_mb": {"phone": enough * 0.9999}}))


def test_bound_out_of_reach_says_the_best_there_is(catalogue: Catalogue) -> None:
    with pytest.raises(PolicyError) as caught:
        solve(_transformer(catalogue, {"bounds": {"latency_ms": 0.5}}))
    found = re.search(r"latency_ms 0\.5 -> ([\d.]+)", str(caught.value))
    assert found is not None
    fastest = solve(_transformer(catalogue, {})).objective * 1e3
    assert float(found[1]) == pytest.approx(fastest, rel=1e-4)
    assert float(found[1]) >= fastest * (1 - 1e-9)


def test_no_single_change_is_enough(catalogue: Catalogue) -> None:
    sla = {"bounds": {"latency_ms": 0.01}, "memory_mb": {"phone": 0.001, "cloud": 0.001}}
    with pytest.raises(PolicyError, match=r"no single change is enough: .*reachable at best"):
        solve(_transformer(catalogue, sla))


def test_price_bound_trades_latency_for_money(catalogue: Catalogue) -> None:
    tiers, links = line("generic-phone-cpu", "generic-edge-cpu", "t4", links=["wifi", "ethernet"], catalogue=catalogue)
    free = make_problem(cnn(), tiers, links)
    price = float(Usage(free, np.array([solve(free).placement])).price_usd[0]) * 1000
    bounded = free.with_sla(parse_sla({"bounds": {"price_per_1k_usd": price / 2}}))
    solution = solve(bounded)
    assert not violations_of(bounded, solution.placement)
    assert solution.objective > solve(free).objective
    assert solution.proven


def test_no_time_still_gives_an_honest_plan(catalogue: Catalogue) -> None:
    problem = _transformer(catalogue, {"keep_on": {"ids": "phone"}, "memory_mb": {"phone": 55.0}})
    solution = solve(problem, milp_seconds=0.0)
    assert not violations_of(problem, solution.placement)
    assert solution.bound <= solution.objective
