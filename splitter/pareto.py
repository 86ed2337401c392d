"""The plans that no other plan beats in everything: the Pareto frontier over latency, energy, price or carbon.

Weighted sums, one minimum cut each, find the points on the frontier's convex hull. What lies behind the hull takes an
integer program each: the region that no known point dominates is kept as a set of corners (local upper bounds,
Klamroth, Lacour and Vanderpooten 2015); a corner is either shown to be empty, or gives a new point, which splits it.
When no corner is left, the frontier is complete, and says so.
"""

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np

from flagsplit.errors import PolicyError
from flagsplit.splitter import milp
from flagsplit.splitter.evaluate import Usage
from flagsplit.splitter.infeasible import limits_of
from flagsplit.splitter.limits import which_keep
from flagsplit.splitter.mincut import CutNetwork
from flagsplit.splitter.plan import Plan
from flagsplit.splitter.plan_maker import make_plan, tier_set_name
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.rates import (
    MJ_PER_J,
    MS_PER_S,
    REQUESTS,
    Rates,
    carbon_rates,
    energy_rates,
    latency_rates,
    price_rates,
)

MEASURES = ("latency_ms", "energy_mj", "price_per_1k_usd", "carbon_per_1k_g")
"""What a frontier can be over, in the units of the SLA's bounds."""

_APART = 1e-3
"""Points that differ by less than this share of a measure's range are one."""

_SWEEP = 6
_Point = tuple[float, ...]


@dataclass(frozen=True)
class ParetoPoint:
    """One plan of the frontier.

    Attributes:
        plan: the plan.
        figures: its measures, by name.
        supported: whether some weighted sum of the measures is least here; if not, only bounds lead to it.
    """

    plan: Plan
    figures: Mapping[str, float]
    supported: bool


@dataclass(frozen=True)
class Frontier:
    """What was found, the fastest plan first.

    Attributes:
        measures: names of the measures.
        points: none of them is dominated.
        complete: whether it is proven that there is no other, apart from plans that differ by next to nothing.
        seconds: wall time it took.
    """

    measures: tuple[str, ...]
    points: tuple[ParetoPoint, ...]
    complete: bool
    seconds: float


def pareto_frontier(
    problem: Problem,
    measures: Sequence[str] = ("latency_ms", "energy_mj", "price_per_1k_usd"),
    seconds: float = 20.0,
    most: int = 64,
) -> Frontier:
    """The frontier of the plans that keep the SLA; its objective does not matter, its caps and bounds do.

    Args:
        problem: what to place where; by-passes are left aside.
        measures: two or more of `MEASURES`.
        seconds: time to search what is behind the convex hull.
        most: number of points to stop at.

    Raises:
        PolicyError: a measure is unknown, or no plan keeps the SLA.
    """
    for name in measures:
        if name not in MEASURES:
            raise PolicyError(f"pareto: expected measures among {', '.join(MEASURES)}, got {name!r}")
    started = time.monotonic()
    search = _Search(problem, measures)
    search.sweep()
    complete = search.behind(started + seconds, most)
    if not search.found:
        raise PolicyError("pareto: no plan keeps the SLA; flagsplit plan without --pareto says what would have to give")
    return Frontier(tuple(measures), search.points(), complete, time.monotonic() - started)


class _Search:
    def __init__(self, problem: Problem, measures: Sequence[str]) -> None:
        self.problem = problem
        self.names = tuple(measures)
        every = {
            "latency_ms": latency_rates(problem, problem.nominal).times(MS_PER_S),
            "energy_mj": energy_rates(problem).times(MJ_PER_J),
            "price_per_1k_usd": price_rates(problem).times(REQUESTS),
            "carbon_per_1k_g": carbon_rates(problem).times(REQUESTS),
        }
        self.rates = [every[name] for name in self.names]
        self.network = CutNetwork(problem, problem.constraints.allowed)
        self.scale = [self._range(rates) for rates in self.rates]
        self.found: dict[_Point, tuple[tuple[int, ...], bool]] = {}

    def _range(self, rates: Rates) -> float:
        """The order of magnitude of a measure: its least value, or what the fastest plan makes of it."""
        least = self.network.least(rates).objective
        fastest = self.network.least(self.rates[0]).placement
        return max(least, float(self._measured(fastest)[self.rates.index(rates)]), 1e-12)

    def _measured(self, placement: Sequence[int]) -> _Point:
        usage = Usage.for_objective(self.problem, np.array([placement], dtype=np.int64))
        return tuple(float(usage.measure(rates)[0]) for rates in self.rates)

    def _weighted(self, weights: Sequence[float]) -> Rates:
        parts = (rates.times(w / s) for rates, w, s in zip(self.rates, weights, self.scale, strict=True))
        return reduce(add, parts)

    def _add(self, placement: tuple[int, ...], *, supported: bool) -> _Point:
        point = self._measured(placement)
        known = self.found.get(point)
        if not any(_beats(other, point) for other in self.found):
            self.found = {p: v for p, v in self.found.items() if not _beats(point, p)}
            self.found[point] = (placement, supported or (known is not None and known[1]))
        return point

    def sweep(self) -> None:
        """Weighted sums on an even and a skewed grid of weights."""
        steps = [0.0, *(4.0**i for i in range(-_SWEEP // 2, _SWEEP // 2 + 1))]
        for others in itertools.product(steps, repeat=len(self.rates) - 1):
            for lead in range(len(self.rates)):
                weights = [*others[:lead], 1.0, *others[lead:]]
                # A little of everything, so that of equals in one measure the best in the others is taken.
                cut = self.network.least(self._weighted([w + _APART for w in weights]))
                row = np.array([cut.placement], dtype=np.int64)
                if which_keep(Usage.for_objective(self.problem, row))[0]:
                    self._add(cut.placement, supported=cut.exact)

    def behind(self, deadline: float, most: int) -> bool:
        """Look into every corner that no point dominates; whether none is left."""
        corners = {(math.inf,) * len(self.rates)}
        for point in self.found:
            corners = _split(corners, point)
        goal, limits = self._weighted([1.0] * len(self.rates)), limits_of(self.problem)
        empty: list[_Point] = []
        proven = True
        while corners:
            left = deadline - time.monotonic()
            if left <= 0 or len(self.found) >= most:
                return False
            corner = max(corners, key=lambda c: (sum(map(math.isinf, c)), c))
            corners.discard(corner)
            bounds = self._below(corner)
            if bounds is None or any(all(a <= b for a, b in zip(corner, e, strict=True)) for e in empty):
                continue
            merged = milp.Limits({**limits.measures, **bounds}, limits.memory_mb)
            found = milp.minimize(self.problem, goal, merged, left)
            proven &= found.proven
            if found.placement is None:
                empty.append(corner)
            else:
                corners = _split(corners | {corner}, self._add(found.placement, supported=False))
                if corner in corners:  # what came is on its edge: nothing is inside but rounding
                    corners.discard(corner)
                    empty.append(corner)
        return proven

    def _below(self, corner: _Point) -> dict[str, tuple[Rates, float]] | None:
        """Bounds that keep a plan below a corner, by more than the resolution; None if nothing can."""
        bounds = {}
        for name, rates, limit, scale in zip(self.names, self.rates, corner, self.scale, strict=True):
            if math.isfinite(limit):
                if limit <= _APART * scale:
                    return None
                bounds[f"corner {name}"] = rates, limit - _APART * scale
        return bounds

    def points(self) -> tuple[ParetoPoint, ...]:
        """All points as plans, the first measure ascending."""
        made = []
        for i, (point, (placement, supported)) in enumerate(sorted(self.found.items())):
            name = f"pareto-{i + 1} ({tier_set_name(self.problem.tier_names, placement)})"
            plan = make_plan(self.problem, placement, name)
            made.append(ParetoPoint(plan, dict(zip(self.names, point, strict=True)), supported))
        return tuple(made)


def _beats(one: _Point, other: _Point) -> bool:
    """Whether one point is nowhere worse and somewhere better."""
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def _split(corners: set[_Point], point: _Point) -> set[_Point]:
    """The corners of what is left when all that a point dominates is taken away."""
    made: set[_Point] = set()
    for corner in corners:
        if all(p < c for p, c in zip(point, corner, strict=True)):
            made |= {(*corner[:i], point[i], *corner[i + 1 :]) for i in range(len(point))}
        else:
            made.add(corner)
    return {c for c in made if not any(c != d and all(a <= b for a, b in zip(c, d, strict=True)) for d in made)}
