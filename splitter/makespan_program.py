"""The constraint program of `flagsplit.splitter.makespan`: a tier for each block, and a start for all that happens.

`beyond[v][k]` says that block v runs on tier k or farther, as in the minimum cut; a tensor crosses a link upwards if
its maker is not beyond it and some reader is. Time is in whole ticks. Rows that follow from the others (length of
paths, work of tiers and links) are there because linear relaxation prunes with them. Solved by OR-Tools' CP-SAT,
imported when first used, as it pulls pandas.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flagsplit.splitter.problem import Problem


class Step(NamedTuple):
    """Something with a start: `kind` is "request", "block" (item: block, place: tier), "up" or "down" (value, link)."""

    kind: str
    item: int
    place: int


@dataclass(frozen=True, eq=False)
class Durations:
    """How long everything takes, in seconds or in ticks.

    Attributes:
        request: the first tier's, before anything else.
        blocks: by block and tier, shape (n, K).
        up, down: by value and link, how long it occupies the link, shape (values, K-1).
        up_delay, down_delay: by link, from leaving it to being usable, shape (K-1,).
    """

    request: float
    blocks: NDArray[np.float64]
    up: NDArray[np.float64]
    down: NDArray[np.float64]
    up_delay: NDArray[np.float64]
    down_delay: NDArray[np.float64]

    def ticks(self, unit: float) -> "Durations":
        """The same in whole ticks of `unit` seconds, rounded down: what is too long in ticks is so in seconds."""
        return Durations(
            float(np.floor(self.request / unit)),
            np.floor(self.blocks / unit),
            np.floor(self.up / unit),
            np.floor(self.down / unit),
            np.floor(self.up_delay / unit),
            np.floor(self.down_delay / unit),
        )


@dataclass(frozen=True)
class Found:
    """How the search ended.

    Attributes:
        placement: the best found, or None.
        starts: in ticks, of every step of that placement, and of others that mean nothing.
        bound: proven least makespan, in ticks.
        proven: whether the placement is proven to be optimal in ticks, or that there is none.
    """

    placement: tuple[int, ...] | None
    starts: dict[Step, int]
    bound: float
    proven: bool


class Program:
    """The model under construction; `Any` stands for CP-SAT's variables, literals and expressions."""

    def __init__(self, problem: Problem, durations: Durations, horizon: int) -> None:
        from ortools.sat.python import cp_model

        self._cp: Any = cp_model
        self._model: Any = cp_model.CpModel()
        self._problem, self._ticks, self._horizon = problem, durations, horizon
        self._count, self._tiers = problem.constraints.allowed.shape
        self._makespan = self._model.new_int_var(0, horizon, "")
        self._starts: dict[Step, Any] = {}
        self._crosses: dict[Step, Any] = {}
        self._way: dict[Step, int] = {}
        ends = np.split(problem.values.endpoints, problem.values.starts[1:])
        self._touching = [[int(end) for end in each] for each in ends]
        self._read = [i for i, (_, *readers) in enumerate(self._touching) if readers]
        self._place_blocks()
        self._run_blocks()
        self._send_values()
        self._hold_weights()
        self._model.minimize(self._makespan)

    def _place_blocks(self) -> None:
        """Block n is the request, on tier 0."""
        model, allowed = self._model, self._problem.constraints.allowed
        no, yes = model.new_constant(0), model.new_constant(1)
        self._beyond: list[list[Any]] = []
        for _ in range(self._count):
            self._beyond.append([yes, *(model.new_bool_var("") for _ in range(1, self._tiers)), no])
        self._on = [[model.new_bool_var("") for _ in range(self._tiers)] for _ in range(self._count)]
        for v, row in enumerate(self._beyond):
            model.add_exactly_one(self._on[v])
            for k in range(self._tiers):
                model.add(self._on[v][k] == row[k] - row[k + 1])
                if not allowed[v, k]:
                    model.add(self._on[v][k] == 0)
        self._beyond.append([yes, *[no] * self._tiers])

    def _run_blocks(self) -> None:
        """One at a time on each tier, after the request was taken up."""
        model, ticks = self._model, self._ticks.blocks.astype(int).tolist()
        request = int(self._ticks.request)
        self._begins: list[Any] = []
        self._ends: list[Any] = []
        runs: list[list[Any]] = [[] for _ in range(self._tiers)]
        for v in range(self._count):
            start = model.new_int_var(request, self._horizon, "")
            self._begins.append(start)
            for k in np.flatnonzero(self._problem.constraints.allowed[v]).tolist():
                self._starts[Step("block", v, k)] = start
                runs[k].append(model.new_optional_fixed_size_interval_var(start, ticks[v][k], self._on[v][k], ""))
            self._ends.append(start + sum(ticks[v][k] * self._on[v][k] for k in range(self._tiers)))
            model.add(self._makespan >= self._ends[v])
        for k in range(self._tiers):
            model.add_no_overlap(runs[k])
            model.add(self._makespan >= request + sum(ticks[v][k] * self._on[v][k] for v in range(self._count)))
        self._begins.append(self._makespan)
        self._ends.append(request)

    def _send_values(self) -> None:
        """Each link carries one tensor at a time in each direction."""
        links = range(self._tiers - 1)
        up, down = (self._ticks.up, self._ticks.up_delay), (self._ticks.down, self._ticks.down_delay)
        for kind, (took, delays), along in (("up", up, links), ("down", down, links[::-1])):
            for link in along:
                trips = []
                load = []
                for i in self._read:
                    step, ticks = Step(kind, i, link), int(took[i, link])
                    trips.append(self._trip(step, ticks, ticks + int(delays[link])))
                    load.append(ticks * self._crosses[step])
                self._model.add_no_overlap(trips)
                self._model.add(self._makespan >= int(self._ticks.request) + sum(load))
        for i in self._read:
            self._add_paths(i)

    def _trip(self, step: Step, ticks: int, ticks_to_arrival: int) -> Any:
        """A tensor over a link in one direction, if it has to."""
        model, (maker, *readers) = self._model, self._touching[step.item]
        start = self._starts[step] = model.new_int_var(int(self._ticks.request), self._horizon, "")
        crosses = self._crosses[step] = model.new_bool_var("")
        self._way[step] = ticks_to_arrival
        model.add_implication(crosses, ~self._is_far(step, maker))
        model.add_bool_or([~crosses, *(self._is_far(step, reader) for reader in readers)])
        model.add(start == int(self._ticks.request)).only_enforce_if(~crosses)
        model.add(start >= self._ends[maker]).only_enforce_if(crosses)
        before = step._replace(place=step.place + (-1 if step.kind == "up" else 1))
        if before in self._crosses:
            model.add(start >= self._starts[before] + self._way[before]).only_enforce_if(crosses, self._crosses[before])
        for reader in readers:
            far = self._is_far(step, reader)
            model.add_bool_or([~far, self._is_far(step, maker), crosses])
            model.add(self._begins[reader] >= start + self._way[step]).only_enforce_if(crosses, far)
        return model.new_optional_fixed_size_interval_var(start, ticks, crosses, "")

    def _is_far(self, step: Step, block: int) -> Any:
        """A literal: the block is on the side of a link to which the step goes."""
        beyond = self._beyond[block][step.place + 1]
        return beyond if step.kind == "up" else ~beyond

    def _add_paths(self, value: int) -> None:
        """A reader begins after the maker, and after the way between them."""
        maker, *readers = self._touching[value]
        trips = [step for step in self._crosses if step.item == value]
        for reader in readers:
            way = []
            for step in trips:
                passes = self._crosses[step]
                if len(readers) > 1:
                    passes = self._model.new_bool_var("")
                    self._model.add_bool_or([~self._is_far(step, reader), self._is_far(step, maker), passes])
                way.append(self._way[step] * passes)
            self._model.add(self._begins[reader] >= self._ends[maker] + sum(way))

    def _hold_weights(self) -> None:
        weights = self._problem.weight_bytes.astype(int).tolist()
        for k, cap in enumerate(self._problem.memory_bytes.tolist()):
            if sum(weights) > cap:
                held = sum(weight * self._on[v][k] for v, weight in enumerate(weights))
                self._model.add(held <= int(cap * (1 + 1e-9)))

    def add_hint(self, placement: Sequence[int], starts: Mapping[Step, int]) -> None:
        """Start from a placement and the starts of its steps, in ticks."""
        model = self._model
        for v, tier in enumerate(placement):
            for k in range(self._tiers):
                model.add_hint(self._on[v][k], k == tier)
            for k in range(1, self._tiers):
                model.add_hint(self._beyond[v][k], k <= tier)
            model.add_hint(self._begins[v], starts[Step("block", v, tier)])
        for step, crosses in self._crosses.items():
            model.add_hint(crosses, step in starts)
            model.add_hint(self._starts[step], starts.get(step, int(self._ticks.request)))

    def solve(self, seconds: float) -> Found:
        """Search until there is a proof or the time is over."""
        solver = self._cp.CpSolver()
        solver.parameters.max_time_in_seconds = seconds
        solver.parameters.random_seed = 1
        solver.parameters.num_workers = 1
        status = solver.solve(self._model)
        proven = status in (self._cp.OPTIMAL, self._cp.INFEASIBLE)
        if status not in (self._cp.OPTIMAL, self._cp.FEASIBLE):
            return Found(None, {}, solver.best_objective_bound, proven)
        placement = tuple(next(k for k, on in enumerate(row) if solver.boolean_value(on)) for row in self._on)
        starts = {step: int(solver.value(start)) for step, start in self._starts.items()}
        return Found(placement, starts, solver.best_objective_bound, proven)
