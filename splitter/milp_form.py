"""What the placement programs of both solvers share: what they give, and the turns that they are told of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flagsplit.splitter.charges import worst_chain
from flagsplit.splitter.evaluate import Usage
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.rates import Rates
from flagsplit.splitter.sla import BYTES_PER_MB

Goal = Rates | tuple[Rates, ...] | str
"""What is to be least: a measure, the largest of several measures, or the resident MB of a tier by its name."""


_MOST_SPAN = 1 << 12


def size_of_goal(problem: Problem, goal: Rates | tuple[Rates, ...]) -> float:
    """What a goal is roughly worth: each block where it costs least, over all measures of the goal.

    More where transfers make even a plain placement cost far more, so that what is worth that counts in full.
    """
    goals = (goal,) if isinstance(goal, Rates) else goal
    allowed = problem.constraints.allowed
    unary = np.where(allowed, sum((rates.unary for rates in goals), np.zeros(())), np.inf)
    whole = [np.full(len(allowed), k) for k in np.flatnonzero(allowed.all(axis=0))]
    usage = Usage.for_objective(problem, np.array([unary.argmin(axis=1), *whole]))
    reachable = np.max([usage.measure(rates) for rates in goals], axis=0).min()
    return max(float(unary.min(axis=1).sum()), float(reachable) / _MOST_SPAN) or 1.0


def measured(problem: Problem, goal: Goal, placement: Sequence[int]) -> float:
    """What a placement makes of a goal, by the evaluator."""
    row = np.array([placement], dtype=np.int64)
    if isinstance(goal, str):
        return float(Usage(problem, row).resident_bytes[0][problem.tier_names.index(goal)]) / BYTES_PER_MB
    if isinstance(goal, Rates):
        return float(Usage.for_measure(problem, row, goal).measure(goal)[0])
    usage = Usage.for_objective(problem, row)
    return max(float(usage.measure(rates)[0]) for rates in goal)


@dataclass(frozen=True)
class Found:
    """What a solver says of a program.

    Attributes:
        placement: the best found, or None.
        bound: proven lower bound on the goal; infinite if there is proof that nothing keeps the limits.
    """

    placement: tuple[int, ...] | None
    bound: float


@dataclass(frozen=True)
class Turns:
    """Where a placement turns back along its worst chain of dependent blocks.

    Attributes:
        chain: the blocks.
        starts: by link, positions in the chain at which it goes beyond.
    """

    chain: tuple[int, ...]
    starts: Mapping[int, Sequence[int]]


def turns_of(problem: Problem, placement: Sequence[int]) -> Turns:
    """The turns of a placement."""
    chain = worst_chain(problem, placement)
    starts = {}
    for k in range(1, len(problem.tiers)):
        beyond = [placement[v] >= k for v in chain]
        starts[k] = [i for i, now in enumerate(beyond) if now and (i == 0 or not beyond[i - 1])]
    return Turns(chain, starts)


def chain_cover(problem: Problem, most: int = 8) -> tuple[tuple[int, ...], ...]:
    """Chains of dependent blocks that together hold as many blocks as `most` chains can, the longest first.

    A placement turns back at least as often as along any of them, so charging these keeps a program from going to and
    fro for nothing. Found one by one, each as the chain with the most blocks that no earlier one holds.
    """
    left = set(range(len(problem.graph.blocks)))
    found: list[tuple[int, ...]] = []
    while left and len(found) < most:
        fresh: list[int] = []
        via: list[int] = []
        for v, needs in enumerate(problem.predecessors):
            through = max(needs, key=lambda p: fresh[p], default=-1)
            via.append(through)
            fresh.append((v in left) + (fresh[through] if through >= 0 else 0))
        end = max(range(len(fresh)), key=fresh.__getitem__)
        chain = []
        while end >= 0:
            chain.append(end)
            end = via[end]
        found.append(tuple(reversed(chain)))
        left -= set(chain)
    return tuple(chain for chain in found if len(chain) > 1)
