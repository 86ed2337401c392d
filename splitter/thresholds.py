"""How far the world must change before another placement is best: a factor for each link, tier and price.

Along one knob (a link's bandwidth or round-trip time, a tier's slow-down or price) every plan's objective is a straight
line, and the best objective is their lower envelope, which is concave. So the first plan to overtake is found from the
far end: solve there, go to where that plan's line crosses ours, solve there, and so on until nothing lies below the
crossing (Eisner and Severance, J. ACM 23, 1976). Each solve is a minimum cut, so thresholds are exact, unless caps and
bounds call for programs and these for more time than there is, or codecs bend the lines; `Flip.exact` says which.
Caps and bounds stay those of the nominal state; where the plan itself would break a bound is `breaking_points`.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from flagsplit.splitter import milp
from flagsplit.splitter.infeasible import limits_of
from flagsplit.splitter.knobs import Knob, knobs_of, turned
from flagsplit.splitter.limits import violations_of
from flagsplit.splitter.milp_form import measured
from flagsplit.splitter.mincut import CutNetwork
from flagsplit.splitter.plan import Plan
from flagsplit.splitter.plan_maker import tier_set_name
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.rates import Rates, objective_rates
from flagsplit.splitter.routes import Route, routes_of

FARTHEST = 64.0
"""Factors from 1/64 to 64 are searched."""

_SAME = 1e-7
_MOST_STEPS = 60
_BISECTIONS = 60


@dataclass(frozen=True)
class Flip:
    """Where another placement becomes best.

    Attributes:
        knob: what changes.
        factor: on its value now.
        placement: what is best beyond, tier index of each block.
        route: the way that takes.
        plan: what that is called, by its tiers.
        exact: whether the factor is proven to be the first; otherwise it is about right.
    """

    knob: Knob
    factor: float
    placement: tuple[int, ...]
    route: tuple[int, ...]
    plan: str
    exact: bool

    @property
    def then(self) -> float:
        """The knob's value there, in its unit."""
        return self.knob.now * self.factor


@dataclass(frozen=True)
class BreakingPoint:
    """Where a plan stops keeping a bound: from that factor on, in the direction away from 1."""

    knob: Knob
    factor: float
    bound: str


@dataclass(frozen=True)
class _Candidate:
    """A placement on a route, in terms of that route."""

    route: int
    placement: tuple[int, ...]
    proven: bool = True


class Thresholds:
    """The search, with one flow network for each route.

    Args:
        problem: its goal must be "latency" (a weighted sum); its limits are kept at the nominal state.
        placement: the plan that is best now, tier index of each block.
        seconds: time that programs may take in all; cuts are not counted.
    """

    def __init__(self, problem: Problem, placement: Sequence[int], seconds: float = 5.0) -> None:
        self.problem = problem
        self._routes = routes_of(problem)
        self._networks = [CutNetwork(r.problem, r.problem.constraints.allowed) for r in self._routes]
        self._keeps: dict[tuple[int, tuple[int, ...]], bool] = {}
        self._deadline = time.monotonic() + seconds
        self._seconds = seconds
        self._here = tuple(int(k) for k in placement)

    def flips(self) -> tuple[Flip, ...]:
        """The first flip in both directions of every knob, in the order of `knobs_of`, the smaller factor first.

        Nothing if the placement is not best even now, which is so where the SLA's mode or preferences decide, or if
        the goal is throughput.
        """
        if self.problem.sla.objective.goal != "latency" or self.problem.sla.mode is not None:
            return ()
        if self.problem.sla.has_preferences:
            return ()
        found = []
        for knob in knobs_of(self.problem):
            ends = (FARTHEST, 1 / FARTHEST) if knob.kind == "bandwidth" else (1 / FARTHEST, FARTHEST)
            found += [flip for end in ends if (flip := self.first(knob, end)) is not None]
        return tuple(found)

    def first(self, knob: Knob, end: float) -> Flip | None:
        """The first flip between now and a factor on costs; None if there is none. For a bandwidth that is 1 / end."""
        search = _Line(self, knob)
        rival = search.least(end)
        if rival is None or not search.beats(rival, end):
            return None
        x, exact = end, rival.proven
        for _ in range(_MOST_STEPS):
            cross = search.crossing(rival, x)
            there = search.least(cross) if self._time_left() else None
            if there is None:
                exact = False
                x = cross
                break
            exact = exact and there.proven
            if not search.beats(there, cross):
                x = cross
                break
            rival, x = there, cross
        return self._flip(knob, x, rival, exact and len(self.problem.codecs) == 1)

    def _flip(self, knob: Knob, x: float, rival: _Candidate, exact: bool) -> Flip:
        route = self._routes[rival.route]
        placement = route.on_whole_line(rival.placement)
        name = tier_set_name(self.problem.tier_names, placement)
        factor = 1 / x if knob.kind == "bandwidth" else x
        return Flip(knob, factor, placement, route.tiers, name, exact)

    def _time_left(self) -> bool:
        return time.monotonic() < self._deadline

    def routes(self, knob: Knob, x: float) -> Iterator[tuple[int, Route, Rates]]:
        """Each route with the objective on it where a knob is turned."""
        problem, state = turned(self.problem, knob, x)
        for i, route in enumerate(self._routes):
            costs = route.problem.costs
            if knob.kind == "price":
                costs = replace(costs, usd_per_s=problem.costs.usd_per_s[list(route.tiers)])
            yield i, route, objective_rates(replace(route.problem, costs=costs), route.state(state))

    def now(self) -> list[_Candidate]:
        """The placement that is best now, on every route that it can take."""
        return [
            _Candidate(i, route.from_whole_line(self._here))
            for i, route in enumerate(self._routes)
            if set(self._here) <= set(route.tiers)
        ]

    def least_on(self, i: int, route: Route, rates: Rates) -> _Candidate | None:
        """The best placement on a route that keeps caps and bounds: the cut, or a program where that does not do."""
        cut = self._networks[i].least(rates)
        keeps = self._keeps_limits(i, route, cut.placement)
        if cut.exact and keeps:
            return _Candidate(i, cut.placement)
        start = cut.placement if keeps else None
        left = max(self._deadline - time.monotonic(), 0.0)
        if left > 0:
            share = min(left, self._seconds / 4)
            found = milp.minimize(route.problem, rates, limits_of(route.problem), share, start)
            if found.placement is not None:
                return _Candidate(i, found.placement, found.proven)
        return None if start is None else _Candidate(i, start, proven=False)

    def _keeps_limits(self, i: int, route: Route, placement: tuple[int, ...]) -> bool:
        if (i, placement) not in self._keeps:
            self._keeps[i, placement] = not violations_of(route.problem, placement)
        return self._keeps[i, placement]


class _Line:
    """The objective of placements along one knob."""

    def __init__(self, search: Thresholds, knob: Knob) -> None:
        self._search, self._knob = search, knob
        self._mine = search.now()

    def value(self, candidate: _Candidate, x: float) -> float:
        """The objective of a placement."""
        routes = {i: (route, rates) for i, route, rates in self._search.routes(self._knob, x)}
        route, rates = routes[candidate.route]
        return measured(route.problem, rates, candidate.placement)

    def mine(self, x: float) -> float:
        """That of the plan which is best now."""
        return min(self.value(each, x) for each in self._mine)

    def least(self, x: float) -> _Candidate | None:
        """The best placement that is allowed."""
        found = []
        for i, route, rates in self._search.routes(self._knob, x):
            best = self._search.least_on(i, route, rates)
            if best is not None:
                found.append((measured(route.problem, rates, best.placement), i, best))
        return min(found, key=lambda each: each[:2])[2] if found else None

    def beats(self, rival: _Candidate, x: float) -> bool:
        """Whether it is better than the plan of now."""
        return self.value(rival, x) < self.mine(x) * (1 - _SAME)

    def crossing(self, rival: _Candidate, end: float) -> float:
        """Where a rival that is better at one end starts to be."""

        def lead(x: float) -> float:
            return self.mine(x) - self.value(rival, x)

        near, far = lead(1.0), lead(end)
        if near >= 0:
            return 1.0
        if len(self._search.problem.codecs) == 1 and len(self._mine) == 1:
            return 1.0 + (end - 1.0) * near / (near - far)
        low, high = 1.0, end
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if lead(middle) < 0 else (low, middle)
        return high


def breaking_points(problem: Problem, plan: Plan) -> tuple[BreakingPoint, ...]:
    """Where a plan alone would stop keeping the SLA's latency bound: for links and tiers, in the direction that slows.

    Latency is linear in what a byte, a message and a tier take, so this is exact.
    """
    bound_ms = problem.sla.bounds.latency_ms
    if bound_ms is None:
        return ()
    found = []
    for knob in knobs_of(problem):
        if knob.kind != "price":
            base, doubled = plan.latency_s(problem.nominal), plan.latency_s(turned(problem, knob, 2.0)[1])
            per_x = doubled - base
            x = 1 + (bound_ms / 1e3 - base) / per_x if per_x > base * _SAME else math.inf
            if 1 <= x <= FARTHEST:
                found.append(BreakingPoint(knob, 1 / x if knob.kind == "bandwidth" else x, "latency_ms"))
    return tuple(found)
