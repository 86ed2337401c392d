"""The frontier against exhaustive search."""

import random

import numpy as np
import pytest
from numpy.typing import NDArray

from flagsplit.errors import PolicyError
from flagsplit.splitter.devices import Catalogue
from flagsplit.splitter.evaluate import Usage
from flagsplit.splitter.limits import which_keep
from flagsplit.splitter.pareto import pareto_frontier
from flagsplit.splitter.problem import Problem, make_problem
from flagsplit.splitter.rates import energy_rates, latency_rates
from flagsplit.splitter.testing import line, placements, random_problem, two_tower, with_random_limits


def _all_points(problem: Problem, count: int) -> NDArray[np.float64]:
    every = Usage(problem, np.array(list(placements(problem))))
    columns = [1e3 * every.measure(latency_rates(problem, problem.nominal)), 1e3 * every.measure(energy_rates(problem))]
    columns.append(1e3 * every.price_usd)
    points: NDArray[np.float64] = np.stack(columns[:count], axis=1)[which_keep(every)]
    return points


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("limited", [False, True], ids=["free", "limited"])
def test_equals_exhaustive_search(catalogue: Catalogue, count: int, limited: bool) -> None:
    for seed in range(12):
        rng = random.Random(1000 * count + seed)
        problem = random_problem(rng, catalogue, most_placements=200)
        problem = with_random_limits(rng, problem) if limited else problem
        points = _all_points(problem, count)
        names = ("latency_ms", "energy_mj", "price_per_1k_usd")[:count]
        if not len(points):
            with pytest.raises(PolicyError, match="no plan keeps the SLA"):
                pareto_frontier(problem, names)
            continue
        found = pareto_frontier(problem, names)
        assert found.complete, seed
        mine = np.array([[point.figures[name] for name in names] for point in found.points])
        room = 3e-3 * np.maximum(mine.max(axis=0), 1e-9)
        # Nothing that exists beats a point of the frontier by more than its resolution, and each is near one of it.
        for point in points:
            assert not any(np.all(point <= m - room) for m in mine), seed
            assert any(np.all(m <= point + room) for m in mine), seed
        assert len({tuple(m) for m in mine}) == len(mine)


def test_has_points_behind_the_hull(catalogue: Catalogue) -> None:
    tiers, links = line("generic-phone-cpu", "generic-edge-cpu", "t4", links=["wifi", "wan"], catalogue=catalogue)
    found = pareto_frontier(make_problem(two_tower(), tiers, links))
    assert found.complete
    assert {point.supported for point in found.points} == {True, False}
    latencies = [point.figures["latency_ms"] for point in found.points]
    assert latencies == sorted(latencies)


def test_out_of_time_is_said(catalogue: Catalogue) -> None:
    tiers, links = line("generic-phone-cpu", "generic-edge-cpu", "t4", links=["wifi", "wan"], catalogue=catalogue)
    found = pareto_frontier(make_problem(two_tower(), tiers, links), seconds=0.0)
    assert not found.complete
    assert found.points


def test_unknown_measure(catalogue: Catalogue) -> None:
    tiers, links = line("generic-phone-cpu", "t4", links=["wifi"], catalogue=catalogue)
    with pytest.raises(PolicyError, match="expected measures among latency_ms"):
        pareto_frontier(make_problem(two_tower(), tiers, links), ("speed", "price_per_1k_usd"))
