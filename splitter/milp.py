"""Placement under caps and bounds, proven: an integer program, for what is no minimum cut.

Round trips are charged along chains of dependent blocks; where a solution makes more, the turns along its worst chain
become a row, and the program is solved again. What a program cannot say exactly (round trips, codecs over several
links) it says too low, so its bound holds; solutions are judged by the evaluator, and one that does not do what its
program promised is ruled out.

CP-SAT (`flagsplit.splitter.cpsat`) goes first, on one thread, so that the same problem gets the same answer. Where it
does not finish soon, HiGHS (`flagsplit.splitter.highs`) joins on another thread, and the first proof wins. Which
program to solve when, and what an infeasible one means, is in `flagsplit.splitter.solvers`.
"""

import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from flagsplit.splitter.cpsat import CpSatProgram
from flagsplit.splitter.evaluate import Usage
from flagsplit.splitter.highs import HighsProgram
from flagsplit.splitter.limits import memory_limit
from flagsplit.splitter.milp_form import Found, Goal, Turns, measured, turns_of
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.rates import Rates
from flagsplit.splitter.sla import BYTES_PER_MB

_MOST_ROUNDS = 60
_SAME = 1e-6  # relative, or one byte of a peak: what the solvers' tolerances can leave
_ALONE_S = 2.0
_FIRST_SLICE_S = 1.0
_PATIENCE_S = 0.02


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
        solver: who ended it, "milp-cp-sat" or "milp-highs".
    """

    placement: tuple[int, ...] | None
    value: float
    bound: float
    solver: str = "milp-cp-sat"

    @property
    def infeasible(self) -> bool:
        """Whether it is proven that nothing keeps the limits."""
        return self.placement is None and self.bound == math.inf

    @property
    def proven(self) -> bool:
        """Whether nothing better is left to find."""
        return self.infeasible or (self.placement is not None and self.bound >= self.value * (1 - _SAME))


class _Program(Protocol):
    def add_measure_limit(self, rates: Rates, limit: float) -> None: ...
    def add_memory_limit(self, tier: int, cap_mb: float) -> None: ...
    def add_ceiling(self, goal: Goal, value: float) -> None: ...
    def add_turns(self, turns: Turns) -> bool: ...
    def exclude(self, placement: Sequence[int]) -> None: ...
    def solve(self, seconds: float, hint: Sequence[int] | None) -> Found: ...
    def stop(self) -> None: ...


def minimize(
    problem: Problem, goal: Goal, limits: Limits, seconds: float, hint: Sequence[int] | None = None
) -> MilpResult:
    """The placement of least measure that keeps the limits.

    Args:
        problem: graph, tiers and constraints.
        goal: what is to be least.
        limits: what to keep.
        seconds: time limit.
        hint: a placement to start from.
    """
    deadline = time.monotonic() + seconds
    search = _Search(problem, goal, limits, hint)
    first = search.complete(CpSatProgram(problem, goal))
    search.run(first, "milp-cp-sat", min(deadline, time.monotonic() + _ALONE_S))
    if not search.best.proven and time.monotonic() < deadline:
        _race(search, first, deadline)
    return search.best


def _race(search: "_Search", first: _Program, deadline: float) -> None:
    """Both solvers at once, each with rows of its own; what one finds bounds the other from its next round on."""

    ended = threading.Event()

    def highs() -> None:
        program, share = search.complete(HighsProgram(search.problem, search.goal)), _FIRST_SLICE_S
        while not search.best.proven and time.monotonic() < deadline:
            search.run(program, "milp-highs", min(deadline, time.monotonic() + share))
            share *= 2
        while search.best.proven and not ended.wait(_PATIENCE_S):
            first.stop()  # again and again: the other may be between two rounds, with nothing to stop

    other = threading.Thread(target=highs, name="flagsplit-highs", daemon=True)
    other.start()
    while not search.best.proven and time.monotonic() < deadline:
        search.run(first, "milp-cp-sat", deadline)
    ended.set()
    other.join()


class _Search:
    """The best that is known so far, and the rounds of one program that improve it."""

    def __init__(self, problem: Problem, goal: Goal, limits: Limits, hint: Sequence[int] | None) -> None:
        self.problem, self.goal, self.limits, self.hint = problem, goal, limits, hint
        self._lock = threading.Lock()
        self.best = MilpResult(None, math.inf, -math.inf)
        if hint is not None and keeps(problem, hint, limits):
            self.best = MilpResult(tuple(hint), measured(problem, goal, hint), -math.inf)

    def complete(self, made: _Program) -> _Program:
        """A program with all the limits, and the ceiling that the best so far sets."""
        for rates, limit in self.limits.measures.values():
            made.add_measure_limit(rates, limit)
        for tier, cap_mb in self.limits.memory_mb.items():
            made.add_memory_limit(self.problem.tier_names.index(tier), cap_mb)
        if self.best.placement is not None:
            made.add_ceiling(self.goal, self.best.value)
        return made

    def run(self, program: _Program, name: str, until: float) -> None:
        """Solve, look at what came, add rows, until something is proven or the time is over."""
        for _ in range(_MOST_ROUNDS):
            if self.best.proven:
                return
            found = program.solve(max(until - time.monotonic(), 0.01), self.best.placement or self.hint)
            # Placements are only ever ruled out after they were looked at, so what is left bounds the rest.
            self._learn(found, name)
            if found.placement is None or self.best.proven:
                return
            if not program.add_turns(turns_of(self.problem, found.placement)):
                program.exclude(found.placement)
            if time.monotonic() >= until:
                return

    def _learn(self, found: Found, name: str) -> None:
        kept = found.placement is not None and keeps(self.problem, found.placement, self.limits)
        value = measured(self.problem, self.goal, found.placement) if kept and found.placement else math.inf
        with self._lock:
            best = self.best
            if value < best.value:
                best = replace(best, placement=found.placement, value=value, solver=name)
            bound = found.bound
            if isinstance(self.goal, str) and best.value <= bound + _SAME:
                bound = best.value
            if bound > best.bound:
                best = replace(best, bound=min(bound, best.value), solver=name)
            self.best = best


def keeps(problem: Problem, placement: Sequence[int], limits: Limits) -> bool:
    """Whether a placement keeps the limits, by the evaluator rather than by the program."""
    usage = Usage.for_objective(problem, np.array([placement], dtype=np.int64))
    resident = dict(zip(problem.tier_names, usage.resident_bytes[0] / BYTES_PER_MB, strict=True))
    return all(resident[tier] <= cap * (1 + 1e-9) for tier, cap in limits.memory_mb.items()) and all(
        usage.measure(rates)[0] <= limit * (1 + 1e-9) for rates, limit in limits.measures.values()
    )


def named_limits(limits: Limits) -> list[str]:
    """Names of all limits, as they are called in messages."""
    return [*(memory_limit(tier) for tier in limits.memory_mb), *limits.measures]
