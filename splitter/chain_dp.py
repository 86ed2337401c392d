"""Exact placement of a chain: blocks of which each reads only what the one before it made.

On a chain every change of tier is one move over the links between, so the best placement, round trips and tiers that
must be used included, is a shortest path over (tier, tiers used so far): Viterbi's recursion, O(n K^2 2^u) for u tiers
that must be used. Where coming back before the end costs more than a whole placement that is known, tiers only rise
along the chain, and a few running minima do.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flagsplit.splitter.charges import transfer_charges
from flagsplit.splitter.mincut import CutResult
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.rates import Rates

_Way = tuple[int, int, NDArray[np.float64]]
"""The tier and the mask that a run is entered from, and what has been paid by then, for each number of blocks."""


def is_chain(problem: Problem) -> bool:
    """Whether the graph is one: inputs enter at the first block, outputs leave at the last, no codec is allowed."""
    last = len(problem.graph.blocks) - 1
    # A block that needs nothing from the one before it could run on the way, without a turn of its own.
    linked = all(needs == ((i - 1,) if i else ()) for i, needs in enumerate(problem.predecessors))
    return (
        linked
        and len(problem.codecs) == 1
        and all(
            all(consumer == value.producer + 1 for consumer in value.consumers)
            and (not value.is_output or value.producer == last)
            for value in problem.graph.values
        )
    )


def best_on_chain(problem: Problem, rates: Rates) -> CutResult | None:
    """The placement of least measure that uses the tiers of `SLA.use_tiers`; None if there is none.

    Caps and bounds are not looked at.
    """
    wanted = [problem.tier_names.index(name) for name in problem.sla.use_tiers if name in problem.tier_names]
    n, tiers = problem.constraints.allowed.shape
    masks = np.arange(1 << len(wanted))
    marks = np.array([sum(1 << i for i, k in enumerate(wanted) if k == tier) for tier in range(tiers)])
    # A tier that is wanted is reached with its mark, from masks with it and without; another keeps the mask.
    without, lacks = masks[:, np.newaxis] & ~marks, (masks[:, np.newaxis] & marks) != marks
    moves = _moves(problem, rates)
    unary = np.where(problem.constraints.allowed, rates.unary, np.inf)
    rising = _rising(unary, moves, marks, len(masks))
    if rising is not None and _least_way_back(moves) > rising.objective:
        return rising
    cost = np.full((tiers, len(masks)), np.inf)
    cost[0, 0] = 0.0
    every, states = np.arange(tiers), []
    for i in range(n):
        steps = cost[:, :, np.newaxis] + moves[i][:, np.newaxis, :]
        nearest = steps.min(axis=0) + unary[i]
        cost = np.where(lacks, np.inf, np.minimum(nearest, nearest[without, every])).T
        states.append(steps)
    final = cost[:, -1] + moves[n][:, 0]
    tier, mask = int(final.argmin()), len(masks) - 1
    if not np.isfinite(final[tier]):
        return None
    value, placement = float(final[tier]), []
    for steps in reversed(states):
        placement.append(tier)
        before = int(without[mask, tier])
        ways = steps[:, [mask, before], tier]
        tier, which = divmod(int(ways.argmin()), 2)
        mask = before if which else mask
    return CutResult(tuple(reversed(placement)), value, value)


def _least_way_back(moves: NDArray[np.float64]) -> float:
    """What it costs at least to come back from a tier before the end."""
    tiers = moves.shape[1]
    back = moves[1:-1][:, np.tri(tiers, k=-1, dtype=bool)]
    return float(back.min()) if back.size else np.inf


def _rising(
    unary: NDArray[np.float64], moves: NDArray[np.float64], marks: NDArray[np.int64], masks: int
) -> CutResult | None:
    """The best placement whose tiers never fall along the chain.

    `best[tier, mask]` holds, for each number of blocks, the least cost of having run them with the last on that tier.
    """
    n, tiers = unary.shape
    allowed = np.isfinite(unary)
    stretches = [_stretches(allowed[:, tier]) for tier in range(tiers)]
    run = np.vstack([np.zeros(tiers), np.cumsum(np.where(allowed, unary, 0.0), axis=0)]).T
    start = np.full(n + 1, np.inf)
    start[0] = 0.0
    best: dict[tuple[int, int], NDArray[np.float64]] = {}
    entries: dict[tuple[int, int], list[_Way]] = {}
    for tier in range(tiers):
        ways: dict[int, list[_Way]] = {int(marks[tier]): [(-1, 0, start + moves[:, 0, tier])]}
        for (before, mask), cost in best.items():
            ways.setdefault(mask | int(marks[tier]), []).append((before, mask, cost + moves[:, before, tier]))
        for mask, came in ways.items():
            enter = np.minimum.reduce([cost for _, _, cost in came]) - run[tier]
            reached = np.full(n + 1, np.inf)
            for first, end in stretches[tier]:
                reached[first + 1 : end + 1] = run[tier, first + 1 : end + 1] + np.minimum.accumulate(enter[first:end])
            best[tier, mask] = reached
            entries[tier, mask] = came
    ends = {tier: best[tier, masks - 1][n] + moves[n, tier, 0] for tier in range(tiers) if (tier, masks - 1) in best}
    if not ends or not np.isfinite(min(ends.values())):
        return None
    tier = min(ends, key=lambda k: (ends[k], k))
    return CutResult(_unwound(entries, run, stretches, tier, masks - 1), float(ends[tier]), float(ends[tier]))


def _stretches(allowed: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First block and end of each stretch of blocks that a tier can run without a break."""
    if allowed.all():
        return [(0, len(allowed))]
    edges = np.flatnonzero(np.diff(allowed, prepend=False, append=False)).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def _unwound(
    entries: dict[tuple[int, int], list[_Way]],
    run: NDArray[np.float64],
    stretches: Sequence[Sequence[tuple[int, int]]],
    tier: int,
    mask: int,
) -> tuple[int, ...]:
    """The placement that a chain of best entries stands for, from its end."""
    end, runs = run.shape[1] - 1, []
    while tier >= 0:
        first = max((a for a, b in stretches[tier] if a < end <= b), default=0)
        offers = []
        for before, left, cost in entries[tier, mask]:
            enter = (cost - run[tier])[first:end]
            begin = int(enter.argmin())
            offers.append((float(enter[begin]), before, left, first + begin))
        _, before, left, begin = min(offers)
        runs.append([tier] * (end - begin))
        tier, mask, end = before, left, begin
    return tuple(k for each in reversed(runs) for k in each)


def _moves(problem: Problem, rates: Rates) -> NDArray[np.float64]:
    """What going from one tier to another costs before each block, and back to tier 0 at the end, (n + 1, K, K)."""
    n, tiers = problem.constraints.allowed.shape
    up, down = transfer_charges(problem, rates)
    made = problem.values.producer
    position = np.where(made == n, 0, made + 1)
    out = np.zeros((tiers - 1, n + 1))
    back = np.zeros((tiers - 1, n + 1))
    for row, charge in zip((*out, *back), (*up, *down), strict=True):
        np.add.at(row, position, charge)
    out += rates.up_message[:, np.newaxis]
    back += rates.down_message[:, np.newaxis]
    outward = np.vstack([np.zeros(n + 1), np.cumsum(out, axis=0)]).T
    homeward = np.vstack([np.zeros(n + 1), np.cumsum(back, axis=0)]).T
    go = outward[:, np.newaxis, :] - outward[:, :, np.newaxis]
    come = homeward[:, :, np.newaxis] - homeward[:, np.newaxis, :]
    nearer = np.tri(tiers, dtype=bool)
    moves: NDArray[np.float64] = np.where(nearer, come, go)
    return moves
