"""Placement under memory caps and SLA bounds, as a mixed-integer program in the encoding of the minimum cut.

y[v,k] = [tier(v) >= k] as there; transfers are differences of y; every measure (`rates.Rates`) is a linear expression
of them, so it can be the objective or a bound. Memory is exact: if block n runs on tier k, the weights on k plus the
values resident on k and live at n stay below the cap. Round trips start at one for each link in use; where a solution
makes more, the turns along its worst chain of dependent blocks become a row, and the program is solved again. Solved by
HiGHS through OR-Tools' MathOpt, imported when first used. Which program to solve when, and what an infeasible one
means, is in `flagsplit.splitter.solvers`.
"""

import datetime as dt
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from flagsplit.splitter.evaluate import Usage, memory_limit
from flagsplit.splitter.mincut import worst_chain
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.rates import Rates
from flagsplit.splitter.sla import BYTES_PER_MB

_MOST_ROUNDS = 30
_SAME = 1e-6  # relative, or one byte of a peak: what HiGHS' tolerances can leave
_OBJECTIVE_SIZE = 1e4  # HiGHS stops at an absolute gap of 1e-6, which must mean nothing


@dataclass(frozen=True)
class Limits:
    """What a placement must keep: measures by name with their limit, and memory caps in MB by tier name."""

    measures: Mapping[str, tuple[Rates, float]]
    memory_mb: Mapping[str, float]


@dataclass(frozen=True)
class MilpResult:
    """How a program ended.

    Attributes:
        placement: the best found that really keeps the limits, or None.
        value: its measure.
        bound: proven lower bound on the measure; infinite if there is proof that no placement exists.
    """

    placement: tuple[int, ...] | None
    value: float
    bound: float

    @property
    def infeasible(self) -> bool:
        """Whether it is proven that nothing keeps the limits."""
        return self.placement is None and self.bound == math.inf


def minimize(
    problem: Problem, goal: Rates | str, limits: Limits, seconds: float, hint: Sequence[int] | None = None
) -> MilpResult:
    """The placement of least measure that keeps the limits.

    Args:
        problem: graph, tiers and constraints.
        goal: a measure, or the name of a tier whose resident MB are to be least.
        limits: what to keep.
        seconds: time limit.
        hint: a placement to start from.
    """
    deadline = time.monotonic() + seconds
    program = _Program(problem)
    program.set_goal(goal)
    for rates, limit in limits.measures.values():
        program.add_measure_limit(rates, limit)
    for tier, cap_mb in limits.memory_mb.items():
        program.add_memory_limit(problem.tier_names.index(tier), cap_mb)
    best = MilpResult(None, math.inf, -math.inf)
    for _ in range(_MOST_ROUNDS):
        found, proven = program.solve(max(deadline - time.monotonic(), 0.01), best.placement or hint)
        # Placements are only ever ruled out after they were looked at, so what is left bounds the rest.
        best = replace(best, bound=min(max(best.bound, proven), best.value))
        if found is None or best.bound == best.value:
            return best
        if keeps(problem, found, limits):
            value = _value(problem, goal, found)
            if value < best.value:
                best = MilpResult(found, value, min(best.bound, value))
            if value <= proven + _SAME * max(abs(proven), isinstance(goal, str)):
                return replace(best, bound=min(proven, best.value))
        if not program.add_turns(found):
            program.exclude(found)
        if time.monotonic() >= deadline:
            break
    return best


def keeps(problem: Problem, placement: Sequence[int], limits: Limits) -> bool:
    """Whether a placement keeps the limits, by the evaluator rather than by the program."""
    usage = Usage(problem, np.array([placement], dtype=np.int64))
    resident = dict(zip(problem.tier_names, usage.resident_bytes[0] / BYTES_PER_MB, strict=True))
    return all(resident[tier] <= cap * (1 + 1e-9) for tier, cap in limits.memory_mb.items()) and all(
        usage.measure(rates)[0] <= limit * (1 + 1e-9) for rates, limit in limits.measures.values()
    )


def _value(problem: Problem, goal: Rates | str, placement: Sequence[int]) -> float:
    usage = Usage(problem, np.array([placement], dtype=np.int64))
    if isinstance(goal, Rates):
        return float(usage.measure(goal)[0])
    return float(usage.resident_bytes[0][problem.tier_names.index(goal)]) / BYTES_PER_MB


class _Program:
    """The model under construction; `Any` stands for MathOpt's variables and linear expressions."""

    def __init__(self, problem: Problem) -> None:
        from ortools.math_opt.python import mathopt

        self._opt: Any = mathopt
        self.problem = problem
        self.model: Any = self._opt.Model()
        self._n, self._tiers = problem.constraints.allowed.shape
        self._y = [self._tier_variables(v) for v in range(self._n)]
        self._y.append([1.0, *[0.0] * self._tiers])
        self._goal_scale = 1.0
        self._chains: set[tuple[int, ...]] = set()
        self._add_transfers()

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
        self._ups: dict[int, list[tuple[float, Any]]] = {k: [] for k in links}
        self._downs: dict[int, list[tuple[float, Any]]] = {k: [] for k in links}
        for size, (made, *readers) in zip(values.size_bytes, self._ends, strict=True):
            for k in links if readers and size else ():
                self._ups[k].append((float(size), self._at_least(*(y[c][k] - y[made][k] for c in readers))))
                self._downs[k].append((float(size), self._at_least(*(y[made][k] - y[c][k] for c in readers))))

    def _measure(self, rates: Rates, scale: float) -> Any:
        terms = [
            float(rates.unary[v, k]) * scale * self._on(v, k)
            for v in range(self._n)
            for k in np.flatnonzero(self.problem.constraints.allowed[v]).tolist()
        ]
        for k in range(1, self._tiers):
            for items, per_byte in ((self._ups[k], rates.up_byte), (self._downs[k], rates.down_byte)):
                terms += [size * float(per_byte[k - 1]) * scale * moved for size, moved in items]
            terms.append(float(rates.up_message[k - 1] + rates.down_message[k - 1]) * scale * self._trips[k])
        return self._opt.fast_sum(terms)

    def set_goal(self, goal: Rates | str) -> None:
        """Minimize a measure, or the peak of a tier in MB."""
        if isinstance(goal, str):
            tier = self.problem.tier_names.index(goal)
            peak = self.model.add_variable(lb=0.0)
            self._add_peak_rows(tier, peak, self._everything_mb)
            self.model.minimize(peak)
            return
        allowed = self.problem.constraints.allowed
        reference = float(np.where(allowed, goal.unary, np.inf).min(axis=1).sum()) or 1.0
        self._goal_scale = _OBJECTIVE_SIZE / reference
        self.model.minimize(self._measure(goal, self._goal_scale))

    def add_measure_limit(self, rates: Rates, limit: float) -> None:
        """Keep a measure below its limit; the row is scaled so that tolerances are relative to the limit."""
        self.model.add_linear_constraint(self._measure(rates, 1 / limit) <= 1)

    def add_memory_limit(self, tier: int, cap_mb: float) -> None:
        """Keep the peak of a tier below a cap."""
        if self._everything_mb > cap_mb:
            self._add_peak_rows(tier, cap_mb, max(self._everything_mb - cap_mb, 0.0))

    @cached_property
    def _everything_mb(self) -> float:
        """No peak is above all weights and all values together."""
        return float(self.problem.weight_bytes.sum() + self.problem.values.size_bytes.sum()) / BYTES_PER_MB

    def _add_peak_rows(self, tier: int, peak: Any, slack_mb: float) -> None:
        """Block n on the tier implies weights + live values <= peak; off it, `slack_mb` makes the row void."""
        unit = 1 / (peak * BYTES_PER_MB) if isinstance(peak, float) else 1 / BYTES_PER_MB
        top = 1.0 if isinstance(peak, float) else peak
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
            self.model.add_linear_constraint(weights + live + void * on <= top + void)

    def add_turns(self, placement: Sequence[int]) -> bool:
        """Charge the turns along a placement's worst chain; false if the program does so already."""
        chain = worst_chain(self.problem, placement)
        if chain in self._chains:
            return False
        self._chains.add(chain)
        added = False
        for k in range(1, self._tiers):
            beyond = [placement[v] >= k for v in chain]
            starts = [i for i, now in enumerate(beyond) if now and (i == 0 or not beyond[i - 1])]
            if len(starts) > 1:
                turns = [self._y[chain[i]][k] - (self._y[chain[i - 1]][k] if i else 0.0) for i in starts]
                self.model.add_linear_constraint(self._trips[k] >= self._opt.fast_sum(turns))
                added = True
        return added

    def exclude(self, placement: Sequence[int]) -> None:
        """Rule out one placement."""
        differs = [
            (1 - y) if k <= placement[v] else y
            for v in range(self._n)
            for k, y in enumerate(self._y[v])
            if not isinstance(y, float)
        ]
        self.model.add_linear_constraint(self._opt.fast_sum(differs) >= 1)

    def solve(self, seconds: float, hint: Sequence[int] | None) -> tuple[tuple[int, ...] | None, float]:
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
            return None, -math.inf
        reason = result.termination.reason
        if reason in (opt.TerminationReason.INFEASIBLE, opt.TerminationReason.INFEASIBLE_OR_UNBOUNDED):
            return None, math.inf
        bound = float(result.termination.objective_bounds.dual_bound) / self._goal_scale
        if not result.has_primal_feasible_solution():
            return None, -math.inf
        values = result.variable_values()
        placement = tuple(
            sum(round(y if isinstance(y, float) else values[y]) for y in row[1:]) for row in self._y[: self._n]
        )
        return placement, bound

    def _hint(self, placement: Sequence[int]) -> dict[Any, float]:
        return {
            y: float(k <= placement[v])
            for v in range(self._n)
            for k, y in enumerate(self._y[v])
            if not isinstance(y, float)
        }


def named_limits(limits: Limits) -> list[str]:
    """Names of all limits, as they are called in messages."""
    return [*(memory_limit(tier) for tier in limits.memory_mb), *limits.measures]
