"""A good plan in a moment, where caps, bounds or throughput make the exact answer slow: candidates, then polish.

Four kinds of candidates: single tiers; cuts under rising prices on what the SLA limits (Lagrange); runs of blocks along
random topological orders, tier after tier and back, placed by dynamic programming under those prices; and whatever the
caller knows. The best few are then improved by moving windows of blocks along those orders from tier to tier.
Everything is judged by `flagsplit.splitter.evaluate`, many placements at a time. Nothing here proves anything.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from operator import add

import numpy as np
from numpy.typing import NDArray

from flagsplit.splitter.charges import transfer_charges
from flagsplit.splitter.evaluate import Usage
from flagsplit.splitter.limits import limits_used
from flagsplit.splitter.milp_form import chain_cover
from flagsplit.splitter.mincut import CutNetwork
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.rates import Rates, bound_rates, no_rates

_ORDERS = 6
_STARTS = 5
_WEIGHINGS = 24
_WINDOWS = (1, 2, 3, 5, 8, 13, 21, 34, 55, 89)
_EXACTLY = 24
_MOST_STEPS = 40
_MOST_ROWS = 600
_MOST_WORK = 60_000  # rows times blocks that are looked at in a step
_PAIRED = 20
_POWERS = range(-3, 5)
_BROKEN = 1e6  # how many times the objective a limit broken in full weighs

_Placement = NDArray[np.int64]


@dataclass(frozen=True)
class Guess:
    """A placement and its measure, infinite where it breaks a limit."""

    placement: tuple[int, ...]
    objective: float


class Heuristic:
    """Looks for good placements of a problem under a measure.

    Args:
        problem: what to place, with its caps and bounds.
        goal: the measure that is to be least, or several of which the largest is.
        network: for cuts; made if left out.

    Attributes:
        bound: no placement that the constraints allow is better than this.
    """

    def __init__(self, problem: Problem, goal: Rates | tuple[Rates, ...], network: CutNetwork | None = None) -> None:
        self.problem = problem
        self.goals = (goal,) if isinstance(goal, Rates) else goal
        self.rates = self.goals[0]
        self.bound = 0.0
        self.network = network or CutNetwork(problem, problem.constraints.allowed)
        self._chains = [np.array(chain) for chain in chain_cover(problem)]
        self._orders = _topological_orders(problem, _ORDERS)
        self._bounds = bound_rates(problem)
        self._rows = max(24, min(_MOST_ROWS, _MOST_WORK // len(problem.graph.blocks)))
        self._steps = max(8, min(_MOST_STEPS, self._rows))

    def best(self, known: Iterable[Sequence[int]] = (), *, polish: bool = True) -> Guess | None:
        """The best placement found that keeps the limits, or None.

        Args:
            known: placements to begin with.
            polish: whether to improve the best few by moves, which takes most of the time.
        """
        rows = self._candidates(known)
        order = np.argsort(self._screen(rows), kind="stable")
        if polish:
            rows = np.array([self._polish(start) for start in self._unlike(rows[order])])
            order = np.arange(len(rows))
        likely = rows[order[:_EXACTLY]]
        exact = self._exactly(likely)
        at = int(exact.argmin())
        objective = float(exact[at])
        return None if objective > self._worst else Guess(tuple(likely[at].tolist()), objective)

    def _unlike(self, rows: _Placement) -> list[_Placement]:
        """The first few of different kinds: another succession of tiers along the graph's own order."""
        kinds: dict[tuple[int, ...], _Placement] = {}
        for row in rows:
            kinds.setdefault(tuple(row[np.flatnonzero(np.diff(row, prepend=-1))].tolist()), row)
        return list(kinds.values())[:_STARTS]

    def _candidates(self, known: Iterable[Sequence[int]]) -> _Placement:
        allowed = self.network.allowed
        rows = [tuple(int(k) for k in row) for row in known]
        rows += [(int(k),) * len(allowed) for k in np.flatnonzero(allowed.all(axis=0))]
        for rates in self._priced():
            rows.append(self.network.solve(rates).placement)
            rows.append(_runs(self.problem, rates, self._orders[0]))
        return np.array(sorted(set(rows)), dtype=np.int64)

    def _priced(self) -> list[Rates]:
        """The measure alone, and with rising prices on each limit and on all of them together."""
        base = self._weighted()
        size = max(self.network.solve(base[-1]).objective, 1e-12)
        pressures = [measure.times(size / limit) for measure, limit in self._bounds.values()]
        for k, cap in enumerate(self.problem.memory_bytes):
            if cap < self.problem.everything_bytes:
                unary = np.zeros_like(self.rates.unary)
                unary[:, k] = self.problem.weight_bytes * (size / max(float(cap), 1.0))
                pressures.append(replace(no_rates(self.problem), unary=unary))
        if len(pressures) > 1:
            pressures.append(reduce(add, pressures))
        return [*base, *(base[-1] + pressure.times(4.0**i) for pressure in pressures for i in _POWERS)]

    def _weighted(self) -> list[Rates]:
        """The measures of the goal, weighted ever more towards those that come out largest; raises `bound` on the way.

        The least of a weighted mean is no more than the least of the largest, whatever the weights.
        """
        weights = np.full(len(self.goals), 1 / len(self.goals))
        found = []
        for _ in range(1 if len(self.goals) == 1 else _WEIGHINGS):
            found.append(reduce(add, (goal.times(float(w)) for goal, w in zip(self.goals, weights, strict=True))))
            cut = self.network.solve(found[-1])
            self.bound = max(self.bound, cut.bound)
            usage = Usage.for_measure(self.problem, np.array([cut.placement]), found[-1])
            sizes = np.array([float(usage.measure(goal)[0]) for goal in self.goals])
            weights = weights * np.exp(2.0 * (sizes / max(float(sizes.max()), 1e-300) - 1))
            weights /= weights.sum()
        return found

    @cached_property
    def _worst(self) -> float:
        """No placement that keeps the limits has a larger score."""
        total = 1e-12
        for rates in self.goals:
            total += float(np.where(self.network.allowed, rates.unary, 0.0).max(axis=1).sum())
            total += float(rates.message.sum()) * len(rates.unary)
            # A codec that is best for another measure may cost more than it saves: all its work, on all tiers.
            work = float(rates.encode.max() * 2 + rates.decode.max() * len(self.problem.tiers))
            sent = float(rates.up_byte.sum() + rates.down_byte.sum())
            total += float(self._largest_bytes.sum()) * sent + float(self.problem.values.size_bytes.sum()) * work
        return total

    @property
    def _largest_bytes(self) -> NDArray[np.float64]:
        """The size of each value by the codec that makes it largest."""
        coded = self.problem.values.coded_bytes
        largest: NDArray[np.float64] = np.where(np.isfinite(coded), coded, 0.0).max(axis=0)
        return largest

    def _screen(self, rows: _Placement) -> NDArray[np.float64]:
        """Scores with round trips counted along the cover of chains only: quick, and never too large."""
        usage = self._usage(rows)
        trips = usage.used_links
        links = np.arange(1, len(self.problem.tiers))
        for chain in self._chains:
            beyond = rows[:, chain, np.newaxis] >= links
            turns = beyond[:, :1].sum(axis=1) + (beyond[:, 1:] & ~beyond[:, :-1]).sum(axis=1)
            trips = np.maximum(trips, turns)
        return self._score(usage, trips)

    def _nominal(self, usage: Usage) -> Usage:
        """The same placements with the codecs by which limits are judged."""
        return usage if usage.codecs is None else Usage.for_objective(self.problem, usage.placements)

    def _usage(self, rows: _Placement) -> Usage:
        if len(self.goals) > 1:
            return Usage.for_objective(self.problem, rows)
        return Usage.for_measure(self.problem, rows, self.rates)

    def _exactly(self, rows: _Placement) -> NDArray[np.float64]:
        return self._score(self._usage(rows), None)

    def _score(self, usage: Usage, trips: NDArray[np.float64] | None) -> NDArray[np.float64]:
        """The measure; a placement that breaks limits scores worse than any that does not, the more the worse."""
        broken = self._broken(self._nominal(usage), trips)
        measured: NDArray[np.float64] = np.max([usage.measure(goal, trips) for goal in self.goals], axis=0)
        return np.where(broken > 0, self._worst * (1 + _BROKEN * broken) + measured, measured)

    def _polish(self, start: _Placement) -> _Placement:
        best, score = start, float(self._exactly(start[np.newaxis])[0])
        rng = random.Random(1)  # noqa: S311 - chooses among moves, guards nothing
        for _ in range(self._steps):
            rows = self._moves(best, rng)
            rows = np.concatenate([rows, self._pairs(best, rows), self._alike(best, rng)])
            likely = rows[np.argsort(self._screen(rows), kind="stable")[:_EXACTLY]]
            exact = self._exactly(likely)
            at = int(exact.argmin())
            if not exact[at] < score * (1 - 1e-12):
                break
            best, score = likely[at], float(exact[at])
        return best

    def _pairs(self, placement: _Placement, rows: _Placement) -> _Placement:
        """Two moves at once: one that lowers the measure whatever it breaks, one that makes room whatever it costs."""
        usage = self._usage(rows)
        trips = usage.used_links
        measured = np.max([usage.measure(goal, trips) for goal in self.goals], axis=0)
        broken = self._broken(usage, trips)
        here = float(self._broken(self._usage(placement[np.newaxis]), None)[0])
        paired = min(_PAIRED, max(3, int(self._rows**0.5)))
        gains = rows[np.lexsort((broken, measured))[:paired]]
        limits = limits_used(usage, trips)
        if not limits:
            return gains
        used = np.stack([values / limit for values, limit in limits.values()], axis=1)
        room = [rows[np.argsort(used[:, i], kind="stable")[: paired // 2]] for i in np.argsort(-used.max(axis=0))[:2]]
        makes = np.concatenate([*room, rows[np.argsort(measured + here, kind="stable")[paired : 2 * paired]]])
        first = np.repeat(gains, len(makes), axis=0)
        second = np.tile(makes, (len(gains), 1))
        pairs: _Placement = np.where(second != placement, second, first)
        return pairs

    def _alike(self, placement: _Placement, rng: random.Random) -> _Placement:
        """Two places where the tier changes, both moved so that one tier grows: how a skip connection goes along."""
        n, tiers = self.network.allowed.shape
        rows = np.repeat(placement[np.newaxis], self._rows // 2, axis=0)
        for row in rows:
            order, k = rng.choice(self._orders), rng.randrange(tiers)
            changes = [0, *(np.flatnonzero(np.diff(placement[order])) + 1).tolist(), n]
            for end in rng.sample(changes, 2):
                w = rng.randint(1, max(1, n // 2))
                low, high = (end, min(end + w, n)) if rng.random() < 0.5 else (max(0, end - w), end)
                window = order[low:high]
                row[window] = np.where(self.network.allowed[window, k], k, row[window])
        return rows

    def _broken(self, usage: Usage, trips: NDArray[np.float64] | None) -> NDArray[np.float64]:
        """By how much all limits together are broken, relative."""
        broken = np.zeros(len(usage.placements))
        for values, limit in limits_used(usage, trips).values():
            broken += np.maximum(values / limit - 1 - 1e-9, 0.0)
        return broken

    def _moves(self, placement: _Placement, rng: random.Random) -> _Placement:
        """Windows of blocks along the orders, each moved to each tier; a block stays where the other is not allowed.

        Windows that begin or end where the tier changes come first: most of what is better moves such a place.
        """
        n, tiers = self.network.allowed.shape
        choices = [(0, i, 1, k) for i in range(n) for k in range(tiers)]
        for o, order in enumerate(self._orders):
            changes = np.flatnonzero(np.diff(placement[order])) + 1
            ends = {0, n, *changes.tolist(), *rng.sample(range(n), min(n, 3))}
            choices += [
                (o, i, w, k) for w in _WINDOWS for end in ends for i in (end, end - w) for k in range(tiers)
                if w > 1 and 0 <= i <= n - w
            ]  # fmt: skip
        if len(choices) > self._rows:
            choices = rng.sample(choices, self._rows)
        for _ in range(self._rows // 2):
            w = rng.choice([w for w in _WINDOWS if w <= n])
            choices.append((rng.randrange(len(self._orders)), rng.randrange(n - w + 1), w, rng.randrange(tiers)))
        rows = np.repeat(placement[np.newaxis], len(choices), axis=0)
        for row, (o, i, w, k) in zip(rows, choices, strict=True):
            window = self._orders[o][i : i + w]
            row[window] = np.where(self.network.allowed[window, k], k, row[window])
        rows = rows[(rows != placement).any(axis=1)]
        return rows if len(rows) else placement[np.newaxis]


def _topological_orders(problem: Problem, count: int) -> list[NDArray[np.int64]]:
    """The graph's own order, one that goes deep first, and random ones."""
    n = len(problem.graph.blocks)
    readers: list[list[int]] = [[] for _ in range(n)]
    for v, needs in enumerate(problem.predecessors):
        for p in needs:
            readers[p].append(v)
    orders = [np.arange(n)]
    for seed in range(count - 1):
        rng = random.Random(seed)  # noqa: S311
        waiting = [len(needs) for needs in problem.predecessors]
        ready = [v for v in range(n) if not waiting[v]]
        order = []
        while ready:
            v = ready.pop() if seed == 0 else ready.pop(rng.randrange(max(0, len(ready) - 3), len(ready)))
            order.append(v)
            for reader in readers[v]:
                waiting[reader] -= 1
                if not waiting[reader]:
                    ready.append(reader)
        orders.append(np.array(order))
    return orders


def _runs(problem: Problem, rates: Rates, order: NDArray[np.int64]) -> tuple[int, ...]:
    """Least measure of going outwards tier by tier along an order, then back; a tier may be left out.

    What crosses where is counted exactly for runs: after position i everything that was made and is still needed. A
    value that several later runs read is counted once per link, as it lives on.
    """
    n, tiers = problem.constraints.allowed.shape
    at = np.empty(n + 1, dtype=np.int64)
    at[order], at[n] = np.arange(n), -1
    unary = np.where(problem.constraints.allowed, rates.unary, np.inf)[order]
    up, down = _crossing(problem, rates, at)
    # State: whether the way back has begun, and the tier; the cost of a step is that of the links between.
    out = np.vstack([np.zeros(n + 1), np.cumsum(up + rates.up_message[:, np.newaxis], axis=0)]).T
    home = np.vstack([np.zeros(n + 1), np.cumsum(down + rates.down_message[:, np.newaxis], axis=0)]).T
    steps = np.full((n + 1, 2, tiers, 2, tiers), np.inf)
    nearer = np.tri(tiers, dtype=bool)
    steps[:, 0, :, 0] = np.where(nearer.T, out[:, np.newaxis, :] - out[:, :, np.newaxis], np.inf)
    steps[:, 0, :, 1] = np.where(nearer, home[:, :, np.newaxis] - home[:, np.newaxis, :], np.inf)
    steps[:, 1, :, 1] = steps[:, 0, :, 1]
    steps = steps.reshape(n + 1, 2 * tiers, 2 * tiers)
    twice, states = np.tile(unary, 2), np.arange(2 * tiers)
    cost = np.full(2 * tiers, np.inf)
    cost[0] = 0.0
    came = np.empty((n, 2 * tiers), dtype=np.int64)
    for i in range(n):
        ways = cost[:, np.newaxis] + steps[i]
        came[i] = ways.argmin(axis=0)
        cost = ways[came[i], states] + twice[i]
    state = int((cost + np.tile(home[n], 2)).argmin())
    placed = np.zeros(n, dtype=np.int64)
    for i in reversed(range(n)):
        placed[order[i]] = state % tiers
        state = int(came[i][state])
    return tuple(np.where(_allowed_at(problem, placed), placed, problem.constraints.allowed.argmax(axis=1)).tolist())


def _allowed_at(problem: Problem, placed: _Placement) -> NDArray[np.bool_]:
    chosen: NDArray[np.bool_] = problem.constraints.allowed[np.arange(len(placed)), placed]
    return chosen


def _crossing(problem: Problem, rates: Rates, at: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What all values that are live between two positions cost to move over each link, (K-1, n + 1), up and down."""
    values, n = problem.values, len(at) - 1
    position = at[values.endpoints].copy()
    request = values.endpoints == n
    first = at[values.producer] + 1
    position[request] = n
    last = np.maximum.reduceat(np.where(_is_start(values.starts, len(position)), -1, position), values.starts)
    up, down = transfer_charges(problem, rates)
    return tuple(_live_sum(charges, first, last, n) for charges in (up, down))  # type: ignore[return-value]


def _is_start(starts: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    found = np.zeros(count, dtype=bool)
    found[starts] = True
    return found


def _live_sum(
    charges: NDArray[np.float64], first: NDArray[np.int64], last: NDArray[np.int64], n: int
) -> NDArray[np.float64]:
    total = np.zeros((len(charges), n + 2))
    for row, charge in zip(total, charges, strict=True):
        kept = last >= first
        np.add.at(row, first[kept], charge[kept])
        np.add.at(row, last[kept] + 1, -charge[kept])
    summed: NDArray[np.float64] = np.cumsum(total, axis=1)[:, : n + 1]
    return summed
