"""The placement program for CP-SAT: every rate as a whole number, rounded so that nothing possible is ruled out.

The same program as in `flagsplit.splitter.milp`, in pure 0/1 variables. Coefficients of a limit are rounded down and
the limit up, so what keeps the limit keeps the row; those of the objective are rounded down, so its bound holds. What
comes out is judged by the evaluator all the same. OR-Tools' CP-SAT is imported when first used.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from flagsplit.splitter.charges import transfer_charges
from flagsplit.splitter.milp_form import Found, Goal, Turns, chain_cover, size_of_goal
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.rates import Rates
from flagsplit.splitter.sla import BYTES_PER_MB

_UNITS = 1 << 24
"""Whole numbers that a limit is worth. More make the rows harder; what the rounding lets by is ruled out later."""

_OBJECTIVE_UNITS = 1 << 30
_MOST_UNITS = 1 << 44
_ROOM = 1e-7
_FEW_BLOCKS = 200


class CpSatProgram:
    """The program under construction; `Any` stands for CP-SAT's variables and expressions.

    Args:
        problem: graph, tiers, constraints and codecs.
        goal: what is to be least.
    """

    def __init__(self, problem: Problem, goal: Goal) -> None:
        from ortools.sat.python import cp_model

        self._cp: Any = cp_model
        self.problem = problem
        self._n, self._tiers = problem.constraints.allowed.shape
        self.model: Any = cp_model.CpModel()
        self._on = [[self._on_tier(v, k) for k in range(self._tiers)] for v in range(self._n)]
        for row in self._on:
            self.model.add_exactly_one(x for x in row if not isinstance(x, int) or x)
        self._on.append([1, *[0] * (self._tiers - 1)])
        self._beyond = [[self._reaches(row, k) for k in range(self._tiers)] for row in self._on]
        values = problem.values
        self._ends = [[int(i) for i in ends] for ends in np.split(values.endpoints, values.starts[1:])]
        self._turns: list[Turns] = []
        self._gains: dict[tuple[int, int, int], Any] = {}
        self._add_transfers()
        self._unit = 1.0
        self._solver: Any = None
        self._set_goal(goal)

    def _on_tier(self, block: int, tier: int) -> Any:
        allowed = self.problem.constraints.allowed[block]
        if not allowed[tier]:
            return 0
        return 1 if allowed.sum() == 1 else self.model.new_bool_var("")

    def _reaches(self, row: Sequence[Any], k: int) -> Any:
        """1 if a block is on tier k or beyond."""
        far = [x for x in row[k:] if not isinstance(x, int)]
        near = [x for x in row[:k] if not isinstance(x, int)]
        if any(isinstance(x, int) and x for x in row[k:]) or not near:
            return 0 if any(isinstance(x, int) and x for x in row[:k]) else 1
        if not far:
            return 0
        if len(far) == 1:
            return far[0]
        if len(near) == 1:
            return near[0].negated()
        made = self.model.new_bool_var("")
        self.model.add(sum(far) == made)
        return made

    def _negated(self, literal: Any) -> Any:
        return 1 - literal if isinstance(literal, int) else literal.negated()

    def _implies_any(self, pairs: Sequence[tuple[Any, Any]]) -> Any:
        """A literal that is 1 at least where both of some pair are."""
        left = [(a, b) for a, b in pairs if not (isinstance(a, int) and not a) and not (isinstance(b, int) and not b)]
        if not left:
            return 0
        if any(isinstance(a, int) and isinstance(b, int) for a, b in left):
            return 1
        single = {id(x): x for a, b in left for x in (a, b) if not isinstance(x, int)}
        if len(left) == 1 and len(single) == 1:
            return next(iter(single.values()))
        made = self.model.new_bool_var("")
        for a, b in left:
            self.model.add_bool_or([made, *(self._negated(x) for x in (a, b) if not isinstance(x, int))])
        return made

    def _add_transfers(self) -> None:
        links, beyond = range(1, self._tiers), self._beyond
        self._ups: dict[tuple[int, int], Any] = {}
        self._downs: dict[tuple[int, int], Any] = {}
        self._trips = {k: self.model.new_int_var(0, self._n + 1, "") for k in links}
        for k in links:
            for v in range(self._n):
                self.model.add(self._trips[k] >= beyond[v][k])
        for t, (made, *readers) in enumerate(self._ends):
            for k in links if readers and self.problem.values.size_bytes[t] else ():
                far = {id(beyond[c][k]): beyond[c][k] for c in readers}
                here = beyond[made][k]
                self._ups[t, k] = self._implies_any([(y, self._negated(here)) for y in far.values()])
                self._downs[t, k] = self._implies_any([(here, self._negated(y)) for y in far.values()])
        for k in links:
            self._add_use(k)
        for chain in chain_cover(self.problem):
            for k in links:
                steps = pairwise([self._n, *chain])
                gained = [self._gain(before, after, k) for before, after in steps]
                self.model.add(self._trips[k] >= sum(gained))

    def _add_use(self, k: int) -> None:
        """Who uses a link sends something over it, both ways: not so of a fraction of a placement."""
        used = self.model.new_bool_var("")
        for v in range(self._n):
            self.model.add(used >= self._beyond[v][k])
        self.model.add(self._trips[k] >= used)
        for moves in (self._ups, self._downs) if self.problem.all_connected else ():
            self.model.add(sum(moved for (_, link), moved in moves.items() if link == k) >= used)

    def _gain(self, before: int, after: int, k: int) -> Any:
        """A literal that is 1 at least where the second of two blocks is beyond a link and the first is not."""
        key = before, after, k
        if key not in self._gains:
            near = self._negated(self._beyond[before][k])
            self._gains[key] = self._implies_any([(self._beyond[after][k], near)])
        return self._gains[key]

    def _terms(self, rates: Rates) -> list[tuple[float, Any]]:
        terms = [
            (float(rates.unary[v, k]), self._on[v][k])
            for v in range(self._n)
            for k in range(self._tiers)
            if rates.unary[v, k]
        ]
        up, down = transfer_charges(self.problem, rates)
        for items, charges in ((self._ups, up), (self._downs, down)):
            terms += [(float(charges[k - 1, t]), moved) for (t, k), moved in items.items()]
        terms += [(float(rates.message[k - 1]), self._trips[k]) for k in self._trips]
        return [(rate, item) for rate, item in terms if rate and not (isinstance(item, int) and not item)]

    def _set_goal(self, goal: Goal) -> None:
        if isinstance(goal, str):
            tier = self.problem.tier_names.index(goal)
            everything = self.problem.everything_bytes
            self._unit = BYTES_PER_MB
            peak = self.model.new_int_var(0, int(everything) + 1, "")
            self._add_peak_rows(tier, peak)
            self.model.minimize(peak)
            return
        self._unit = _OBJECTIVE_UNITS / size_of_goal(self.problem, goal)
        if isinstance(goal, Rates):
            self.model.minimize(self._whole(goal))
            return
        largest = self.model.new_int_var(0, _MOST_UNITS, "")
        for rates in goal:
            self.model.add(self._whole(rates) <= largest)
        self.model.minimize(largest)

    def _whole(self, rates: Rates) -> Any:
        """A measure in whole units of the goal; nothing in an optimum is worth more than the most that counts."""
        return sum(int(min(rate * self._unit, _MOST_UNITS)) * item for rate, item in self._terms(rates))

    def add_measure_limit(self, rates: Rates, limit: float) -> None:
        """Keep a measure below its limit."""
        unit = _UNITS / limit
        whole = [(int(min(rate * unit, 2 * _UNITS)), item) for rate, item in self._terms(rates)]
        self.model.add(sum(rate * item for rate, item in whole) <= _UNITS + 1)

    def add_ceiling(self, goal: Goal, value: float) -> None:
        """Look only for what is not worse than a value that is known to be reachable."""
        measures = () if isinstance(goal, str) else (goal,) if isinstance(goal, Rates) else goal
        for rates in measures:
            self.model.add(self._whole(rates) <= int(min(value * self._unit * (1 + _ROOM), 1 << 62)) + 1)

    def stop(self) -> None:
        """End the search under way, from another thread."""
        if self._solver is not None:
            self._solver.stop_search()

    def add_memory_limit(self, tier: int, cap_mb: float) -> None:
        """Keep the peak of a tier below a cap."""
        cap = int(cap_mb * BYTES_PER_MB) + 1
        if self.problem.everything_bytes > cap:
            self._add_peak_rows(tier, cap)

    def _add_peak_rows(self, tier: int, peak: Any) -> None:
        """Block n on the tier implies weights + live values <= peak."""
        values, on = self.problem.values, [row[tier] for row in self._on]
        weights: Any = sum(int(w) * on[v] for v, w in enumerate(self.problem.weight_bytes) if w)
        if self._n > _FEW_BLOCKS:  # the sum once, and not in a row for each block
            total = self.model.new_int_var(0, int(self.problem.weight_bytes.sum()), "")
            self.model.add(weights <= total)
            weights = total
        resident = [self._any_on([on[end] for end in ends]) for ends in self._ends]
        self.model.add(weights <= peak)
        for n in range(self._n):
            now = np.flatnonzero((values.first_live <= n) & (values.last_live >= n) & (values.size_bytes > 0))
            if isinstance(on[n], int) and not on[n]:
                continue
            held = sum(int(values.size_bytes[t]) * resident[t] for t in now) + int(self.problem.held_bytes[n, tier])
            row = self.model.add(weights + held <= peak)
            if not isinstance(on[n], int):
                row.only_enforce_if(on[n])

    def _any_on(self, literals: Sequence[Any]) -> Any:
        if any(isinstance(x, int) and x for x in literals):
            return 1
        free = list({id(x): x for x in literals if not isinstance(x, int)}.values())
        if len(free) < 2:
            return free[0] if free else 0
        made = self.model.new_bool_var("")
        for x in free:
            self.model.add_implication(x, made)
        return made

    def add_turns(self, turns: Turns) -> bool:
        """Charge the turns along a chain; false if the program does so already."""
        if turns in self._turns:
            return False
        self._turns.append(turns)
        for k, starts in turns.starts.items():
            chain, beyond = turns.chain, self._beyond
            gained = sum(beyond[chain[i]][k] - (beyond[chain[i - 1]][k] if i else 0) for i in starts)
            self.model.add(self._trips[k] >= gained)
        return any(len(starts) > 1 for starts in turns.starts.values())

    def exclude(self, placement: Sequence[int]) -> None:
        """Rule out one placement."""
        chosen = [self._on[v][k] for v, k in enumerate(placement)]
        self.model.add_bool_or([x.negated() for x in chosen if not isinstance(x, int)])

    def solve(self, seconds: float, hint: Sequence[int] | None) -> Found:
        """The best placement found, if any, and the proven bound."""
        cp = self._cp
        self.model.clear_hints()
        for v, k in enumerate(hint or ()):
            for tier, x in enumerate(self._on[v]):
                if not isinstance(x, int):
                    self.model.add_hint(x, int(tier == k))
        solver = self._solver = cp.CpSolver()
        solver.parameters.max_time_in_seconds = seconds
        solver.parameters.random_seed = 1
        solver.parameters.num_workers = 1
        solver.parameters.linearization_level = 2
        solver.parameters.add_mir_cuts = False  # a third of the time, for nothing on these rows
        status = solver.solve(self.model)
        if status == cp.INFEASIBLE:
            return Found(None, math.inf)
        bound = float(solver.best_objective_bound) / self._unit
        bound = bound if math.isfinite(bound) else -math.inf
        if status not in (cp.OPTIMAL, cp.FEASIBLE):
            return Found(None, bound)
        placement = tuple(
            next(k for k, x in enumerate(row) if (x if isinstance(x, int) else solver.value(x)))
            for row in self._on[:-1]
        )
        return Found(placement, bound)
