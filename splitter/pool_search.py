"""Where a pool's plans come from: every set of tiers that can be left, in every state of a grid and some between.

Cuts answer one state in a fraction of a millisecond. Where caps, bounds or throughput take more than a cut, each set of
tiers is solved exactly at the nominal state only, as long as the time lasts, and by heuristics elsewhere.
"""

import contextlib
import itertools
import random
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flagsplit.errors import PolicyError
from flagsplit.splitter.evaluate import Usage, choose_codecs
from flagsplit.splitter.grid import Grid
from flagsplit.splitter.heuristics import Heuristic
from flagsplit.splitter.limits import violations
from flagsplit.splitter.mincut import CutNetwork
from flagsplit.splitter.plan import Plan
from flagsplit.splitter.plan_maker import make_plan
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.rates import objective_rates
from flagsplit.splitter.routes import Route, routes_of
from flagsplit.splitter.solvers import goal_of, solve
from flagsplit.splitter.state import State

_GUESSED_STATES = 12
_SEED = 20


class PoolSearch:
    """The search; `run` fills it.

    Args:
        problem: what to place where.
        grid: the states.
        seconds: time for exact searches, where cuts do not decide.

    Attributes:
        grid: the states' grid.
        states: its corners, then those between.
        sampled: how many of them are between.
        cells: corners of each cell, as indices into `states`.
        plans: found so far, without names; each keeps the SLA.
        optima: by set of tiers, a lower bound on the score in every state.
        exact: whether the optima are those of the problem with all its caps and bounds.
    """

    def __init__(self, problem: Problem, grid: Grid, seconds: float) -> None:
        self.problem = problem
        self.grid = grid
        rng = random.Random(_SEED)  # noqa: S311 - spreads states, guards nothing
        between = [
            grid.between(problem.nominal, rng)
            for _ in range(grid.samples(len(problem.graph.blocks)) if len(problem.tiers) > 1 else 0)
        ]
        self.states = [*grid.states(problem.nominal), *between]
        self.sampled = len(between)
        self.cells = list(grid.cells(problem.nominal))
        self.plans: list[Plan] = []
        self.optima: dict[tuple[int, ...], NDArray[np.float64]] = {}
        self.exact = True
        self._seconds = seconds
        self._index: dict[tuple[object, ...], int] = {}
        self._routes = {route.tiers: route for route in routes_of(problem)}
        self._keeps: dict[tuple[object, ...], bool] = {}

    def add(
        self, placement: tuple[int, ...], route: tuple[int, ...] = (), codecs: NDArray[np.int64] | None = None
    ) -> int:
        """The index of a plan that keeps the SLA, made if it is new."""
        chosen = self._routes.get(route, self._routes[tuple(range(len(self.problem.tiers)))])
        if codecs is None and len(self.problem.codecs) > 1:
            codecs = self._codecs(chosen, placement, chosen.state(self.problem.nominal))
        key = (placement, chosen.tiers, None if codecs is None else codecs.tobytes())
        if key not in self._index:
            self._index[key] = len(self.plans)
            whole = chosen.problem is self.problem
            self.plans.append(
                make_plan(self.problem, placement, "plan", route=None if whole else chosen, codecs=codecs)
            )
        return self._index[key]

    def add_everywhere(self, placement: tuple[int, ...]) -> None:
        """A placement by each route on which it keeps the SLA."""
        for route in self._routes.values():
            if set(placement) <= set(route.tiers):
                self._take(route, route.from_whole_line(placement), route.state(self.problem.nominal))

    def run(self) -> None:
        """Search all sets of tiers."""
        others = range(1, len(self.problem.tiers))
        sets = [(0, *rest) for n in range(len(self.problem.tiers)) for rest in itertools.combinations(others, n)]
        unmet: list[Problem] = []
        for tiers in sets:
            with contextlib.suppress(PolicyError):
                part = self.problem.restricted_to(tiers)
                if not self._cut_all(part, tiers):
                    unmet.append(part)
        self.exact = not unmet
        self._solve(unmet)

    def _cut_all(self, part: Problem, tiers: tuple[int, ...]) -> bool:
        """Cuts in every state; whether they kept the SLA everywhere."""
        bounds = np.full(len(self.states), np.inf)
        kept = self.problem.sla.objective.goal == "latency"
        for route in routes_of(part):
            network = CutNetwork(route.problem, route.problem.constraints.allowed)
            for i, state in enumerate(self.states if kept else ()):
                own = route.state(state)
                cut = network.least(objective_rates(route.problem, own))
                bounds[i] = min(bounds[i], cut.bound)
                kept &= self._take(self._routes[route.tiers], cut.placement, own) or len(route.tiers) < len(part.tiers)
        self.optima[tiers] = np.where(np.isfinite(bounds), bounds, 0.0)
        return kept

    def _take(self, route: Route, placement: tuple[int, ...], state: State) -> bool:
        """Keep a placement on a route if it keeps the SLA."""
        codecs = self._codecs(route, route.on_whole_line(placement), state)
        key = (placement, route.tiers, None if codecs is None else codecs.tobytes())
        if key not in self._keeps:
            row = np.array([placement], dtype=np.int64)
            self._keeps[key] = not violations(Usage(route.problem, row, None if codecs is None else codecs[np.newaxis]))
            if self._keeps[key]:
                self.add(route.on_whole_line(placement), route.tiers, codecs)
        return self._keeps[key]

    def _codecs(self, route: Route, placement: Sequence[int], state: State) -> NDArray[np.int64] | None:
        row = np.array([route.from_whole_line(placement)], dtype=np.int64)
        found = choose_codecs(route.problem, row, objective_rates(route.problem, state))
        return None if found is None else found[0]

    def _solve(self, unmet: Sequence[Problem]) -> None:
        """Exactly at the nominal state, as long as the time lasts; by heuristics in some states of the grid."""
        deadline = time.monotonic() + self._seconds
        for i, part in enumerate(unmet):
            share = max(deadline - time.monotonic(), 0.0) / (len(unmet) - i)
            with contextlib.suppress(PolicyError):  # no plan on these tiers alone is what a missing survivor means
                found = solve(part, None, share, diagnose=False)
                self.add(found.placement, found.route)
        for part in unmet[-1:]:
            self._guess(part)

    def _guess(self, part: Problem) -> None:
        step = max(1, len(self.states) // _GUESSED_STATES)
        for route in routes_of(part):
            network = CutNetwork(route.problem, route.problem.constraints.allowed)
            known = [p.placement for p in self.plans if set(p.placement) <= set(route.tiers)]
            own = [route.from_whole_line(placement) for placement in known]
            for state in self.states[::step]:
                goal = goal_of(route.problem, route.state(state))
                guess = Heuristic(route.problem, goal, network).best(own, polish=False)
                if guess is not None:
                    self._take(self._routes[route.tiers], guess.placement, route.state(state))
