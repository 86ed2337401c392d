"""The placement program for HiGHS, through OR-Tools' MathOpt, which is imported when first used.

Variables y[v,k] = [block v on tier k or beyond] as in the cuts, one for each value and link that it may cross, and the
round trips over each link. Peak memory is a row for each block and tier: if block n runs on tier k, the weights on k
plus the values resident on k and live at n stay below the cap.
"""

import datetime as dt
import math
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from flagsplit.splitter.charges import transfer_charges
from flagsplit.splitter.milp_form import Found, Goal, Turns, chain_cover, size_of_goal
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.rates import Rates
from flagsplit.splitter.sla import BYTES_PER_MB

_OBJECTIVE_SIZE = 1e4  # HiGHS stops at an absolute gap of 1e-6, which must mean nothing
_ROOM = 1e-7


class HighsProgram:
    """The program under construction; `Any` stands for MathOpt's variables and linear expressions.

    Args:
        problem: graph, tiers, constraints and codecs.
        goal: what is to be least.
    """

    def __init__(self, problem: Problem, goal: Goal) -> None:
        from ortools.math_opt.python import mathopt

        self._opt: Any = mathopt
        self.problem = problem
        self.model: Any = self._opt.Model()
        self._n, self._tiers = problem.constraints.allowed.shape
        self._y = [self._tier_variables(v) for v in range(self._n)]
        self._y.append([1.0, *[0.0] * self._tiers])
        self._goal_scale = 1.0
        self._turns: list[Turns] = []
        self._add_transfers()
        self._set_goal(goal)

    def _tier_variables(self, block: int) -> list[Any]:
        allowed = self.problem.constraints.allowed[block]
        options = np.flatnonzero(allowed)
        low, high = int(options[0]), int(options[-1])
        free = range(low + 1, high + 1)
        row = [self.model.add_binary_variable() if k in free else float(k <= low) for k in range(self._tiers + 1)]
        for k in range(low, high):
            if k > low:
                self.model.add_linear_constraint(row[k] >= row[k + 1])
            if not allowed[k]:
                self.model.add_linear_constraint(row[k] == row[k + 1])
        return row

    def _on(self, block: int, tier: int) -> Any:
        """x[v,k], 1 if the block runs on the tier; the request, block n, runs on tier 0."""
        return self._y[block][tier] - self._y[block][tier + 1]

    def _at_least(self, *differences: Any) -> Any:
        """A variable from 0 to 1 that is no less than any of the differences."""
        if all(isinstance(difference, float) for difference in differences):
            return max(0.0, *differences)
        top = self.model.add_variable(lb=0.0, ub=1.0)
        for difference in differences:
            if not (isinstance(difference, float) and difference <= 0):
                self.model.add_linear_constraint(top >= difference)
        return top

    def _add_transfers(self) -> None:
        values, y, links = self.problem.values, self._y, range(1, self._tiers)
        self._ends = [[int(i) for i in ends] for ends in np.split(values.endpoints, values.starts[1:])]
        self._trips = {k: self.model.add_variable(lb=0.0) for k in links}
        for k in links:
            for v in range(self._n):
                self.model.add_linear_constraint(self._trips[k] >= y[v][k])
        self._ups: dict[int, list[tuple[int, Any]]] = {k: [] for k in links}
        self._downs: dict[int, list[tuple[int, Any]]] = {k: [] for k in links}
        for t, (made, *readers) in enumerate(self._ends):
            for k in links if readers and values.size_bytes[t] else ():
                self._ups[k].append((t, self._at_least(*(y[c][k] - y[made][k] for c in readers))))
                self._downs[k].append((t, self._at_least(*(y[made][k] - y[c][k] for c in readers))))
        self._add_ways()

    def _add_ways(self) -> None:
        """What every placement keeps and a fraction of one need not: who uses a link sends something over it, both
        ways, and goes round at least as often as a chain of dependent blocks turns."""
        y = self._y
        for k in range(1, self._tiers):
            used = self.model.add_binary_variable()
            for v in range(self._n):
                self.model.add_linear_constraint(used >= y[v][k])
            self.model.add_linear_constraint(self._trips[k] >= used)
            if self.problem.all_connected:
                for items in (self._ups[k], self._downs[k]):
                    self.model.add_linear_constraint(self._opt.fast_sum(moved for _, moved in items) >= used)
            for chain in chain_cover(self.problem):
                gained = [self._at_least(y[after][k] - y[before][k]) for before, after in pairwise([self._n, *chain])]
                self.model.add_linear_constraint(self._trips[k] >= self._opt.fast_sum(gained))

    def _measure(self, rates: Rates, scale: float) -> Any:
        terms = [
            float(rates.unary[v, k]) * scale * self._on(v, k)
            for v in range(self._n)
            for k in np.flatnonzero(self.problem.constraints.allowed[v]).tolist()
        ]
        for items, charges in zip((self._ups, self._downs), transfer_charges(self.problem, rates), strict=True):
            terms += [float(charges[k - 1, t]) * scale * moved for k in items for t, moved in items[k]]
        terms += [float(rates.message[k - 1]) * scale * self._trips[k] for k in self._trips]
        return self._opt.fast_sum(terms)

    def _set_goal(self, goal: Goal) -> None:
        if isinstance(goal, str):
            tier = self.problem.tier_names.index(goal)
            peak = self.model.add_variable(lb=0.0)
            self._add_peak_rows(tier, peak, self._everything_mb)
            self.model.minimize(peak)
            return
        self._goal_scale = _OBJECTIVE_SIZE / size_of_goal(self.problem, goal)
        if isinstance(goal, Rates):
            self.model.minimize(self._measure(goal, self._goal_scale))
            return
        largest = self.model.add_variable(lb=0.0)
        for rates in goal:
            self.model.add_linear_constraint(self._measure(rates, self._goal_scale) <= largest)
        self.model.minimize(largest)

    def add_ceiling(self, goal: Goal, value: float) -> None:
        """Look only for what is not worse than a value that is known to be reachable."""
        measures = () if isinstance(goal, str) else (goal,) if isinstance(goal, Rates) else goal
        for rates in measures if value > 0 else ():
            self.model.add_linear_constraint(self._measure(rates, 1 / value) <= 1 + _ROOM)

    def stop(self) -> None:
        """HiGHS cannot be stopped from outside; give it little time at once."""

    def add_measure_limit(self, rates: Rates, limit: float) -> None:
        """Keep a measure below its limit; the row is scaled so that tolerances are relative to the limit.

        A little room, lest rounding rule out what is just there: a row without variables knows no tolerance.
        """
        self.model.add_linear_constraint(self._measure(rates, 1 / limit) <= 1 + _ROOM)

    def add_memory_limit(self, tier: int, cap_mb: float) -> None:
        """Keep the peak of a tier below a cap."""
        if self._everything_mb > cap_mb:
            self._add_peak_rows(tier, cap_mb, max(self._everything_mb - cap_mb, 0.0))

    @cached_property
    def _everything_mb(self) -> float:
        """No peak is above all weights, all values and all that loops hold together."""
        return self.problem.everything_bytes / BYTES_PER_MB

    def _add_peak_rows(self, tier: int, peak: Any, slack_mb: float) -> None:
        """Block n on the tier implies weights + live values <= peak; off it, `slack_mb` makes the row void."""
        unit = 1 / (peak * BYTES_PER_MB) if isinstance(peak, float) else 1 / BYTES_PER_MB
        top = 1.0 + _ROOM if isinstance(peak, float) else peak
        weights = self.model.add_variable(lb=0.0)
        held = self._opt.fast_sum(float(w) * unit * self._on(v, tier) for v, w in enumerate(self.problem.weight_bytes))
        self.model.add_linear_constraint(weights == held)
        values = self.problem.values
        resident = [self._at_least(*(self._on(end, tier) for end in ends)) for ends in self._ends]
        for n in range(self._n):
            on = self._on(n, tier)
            if isinstance(on, float) and on == 0:
                continue
            now = np.flatnonzero((values.first_live <= n) & (values.last_live >= n) & (values.size_bytes > 0))
            live = self._opt.fast_sum(float(values.size_bytes[t]) * unit * resident[t] for t in now)
            void = slack_mb * BYTES_PER_MB * unit
            state = float(self.problem.held_bytes[n, tier]) * unit
            self.model.add_linear_constraint(weights + live + state + void * on <= top + void)

    def add_turns(self, turns: Turns) -> bool:
        """Charge the turns along a chain; false if the program does so already."""
        if turns in self._turns:
            return False
        self._turns.append(turns)
        chain, y = turns.chain, self._y
        for k, starts in turns.starts.items():
            gained = [y[chain[i]][k] - (y[chain[i - 1]][k] if i else 0.0) for i in starts]
            if len(gained) > 1:
                self.model.add_linear_constraint(self._trips[k] >= self._opt.fast_sum(gained))
        return any(len(starts) > 1 for starts in turns.starts.values())

    def exclude(self, placement: Sequence[int]) -> None:
        """Rule out one placement."""
        differs = [
            (1 - y) if k <= placement[v] else y
            for v in range(self._n)
            for k, y in enumerate(self._y[v])
            if not isinstance(y, float)
        ]
        self.model.add_linear_constraint(self._opt.fast_sum(differs) >= 1)

    def solve(self, seconds: float, hint: Sequence[int] | None) -> Found:
        """The best placement found, if any, and the proven bound."""
        opt = self._opt
        parameters = opt.SolveParameters(
            time_limit=dt.timedelta(seconds=seconds), relative_gap_tolerance=1e-9, random_seed=1
        )
        hints = [] if hint is None else [opt.SolutionHint(variable_values=self._hint(hint))]
        try:
            result = opt.solve(
                self.model,
                opt.SolverType.HIGHS,
                params=parameters,
                model_params=opt.ModelSolveParameters(solution_hints=hints),
            )
        except (AttributeError, RuntimeError, ValueError):
            # HiGHS gave up on the numbers; MathOpt 9.15 turns that into an AttributeError. Nothing is proven then.
            return Found(None, -math.inf)
        reason = result.termination.reason
        if reason in (opt.TerminationReason.INFEASIBLE, opt.TerminationReason.INFEASIBLE_OR_UNBOUNDED):
            return Found(None, math.inf)
        bound = float(result.termination.objective_bounds.dual_bound) / self._goal_scale
        if not result.has_primal_feasible_solution():
            return Found(None, -math.inf)
        values = result.variable_values()
        placement = tuple(
            sum(round(y if isinstance(y, float) else values[y]) for y in row[1:]) for row in self._y[: self._n]
        )
        return Found(placement, bound)

    def _hint(self, placement: Sequence[int]) -> dict[Any, float]:
        return {
            y: float(k <= placement[v])
            for v in range(self._n)
            for k, y in enumerate(self._y[v])
            if not isinstance(y, float)
        }
