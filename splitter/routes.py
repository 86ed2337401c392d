"""The lines that a request may take: the whole line, or a shorter one where by-pass links leave tiers out.

A plan that runs nothing on the tiers between two others may go directly from one to the other if a link joins them.
Each such choice is a line of its own, so the solvers need to know nothing of it: they solve every line, and the best
one wins. A request that would use a by-pass for some tensors and the line for others is not modelled.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from flagsplit.errors import PolicyError
from flagsplit.splitter.constraints import Constraints
from flagsplit.splitter.costs import on_other_links
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.state import State


@dataclass(frozen=True, eq=False)
class Route:
    """One line.

    Attributes:
        tiers: indices of its tiers in the whole line, 0 first.
        links: for each of its links, the index among all: those of the line, then the by-passes.
        problem: the placement problem on it.
    """

    tiers: tuple[int, ...]
    links: tuple[int, ...]
    problem: Problem

    def on_whole_line(self, placement: Sequence[int]) -> tuple[int, ...]:
        """A placement on the route in terms of the whole line."""
        return tuple(self.tiers[k] for k in placement)

    def from_whole_line(self, placement: Sequence[int]) -> tuple[int, ...]:
        """The other way round; every tier must be on the route."""
        return tuple(self.tiers.index(k) for k in placement)

    def state(self, state: State) -> State:
        """The part of a state that this route sees."""
        at = self.links

        def of_links(figures: Sequence[float]) -> tuple[float, ...]:
            return tuple(figures[i] for i in at)

        return State(
            slowdown=tuple(state.slowdown[k] for k in self.tiers),
            up_s_per_byte=of_links(state.up_s_per_byte),
            down_s_per_byte=of_links(state.down_s_per_byte),
            up_s_per_message=of_links(state.up_s_per_message),
            down_s_per_message=of_links(state.down_s_per_message),
            alive=tuple(state.alive[k] for k in self.tiers),
        )


def routes_of(problem: Problem) -> tuple[Route, ...]:
    """All lines of a problem, the whole one first. One that another only goes on from is left out: the other is it."""
    whole = Route(tuple(range(len(problem.tiers))), tuple(range(len(problem.links))), problem)
    return (whole, *_shorter(problem)) if problem.bypasses else (whole,)


def route_through(problem: Problem, tiers: Sequence[int]) -> Route:
    """The line of exactly these tiers.

    Raises:
        PolicyError: no such line, for want of a by-pass or because it leaves out what must be used.
    """
    routes = {route.tiers: route for route in routes_of(problem)}
    if tuple(tiers) not in routes:
        known = ", ".join("-".join(map(str, each)) for each in routes)
        raise PolicyError(f"route: expected one of {known}, came {'-'.join(map(str, tiers))}")
    return routes[tuple(tiers)]


def _shorter(problem: Problem) -> Iterator[Route]:
    count = len(problem.tiers)
    link_of = {(k, k + 1): k for k in range(count - 1)}
    link_of |= {(bypass.near, bypass.far): count - 1 + i for i, bypass in enumerate(problem.bypasses)}
    known = [tuple(range(count))]
    for size in range(count - 1, 1, -1):
        for rest in itertools.combinations(range(1, count), size - 1):
            tiers = (0, *rest)
            hops = list(itertools.pairwise(tiers))
            is_line = all(hop in link_of for hop in hops) and not any(other[:size] == tiers for other in known)
            if is_line and _may_do(problem, tiers):
                known.append(tiers)
                yield _shortened(problem, tiers, tuple(link_of[hop] for hop in hops))


def _may_do(problem: Problem, tiers: tuple[int, ...]) -> bool:
    """Whether every block has a tier among these, and all that must be used are there."""
    wanted = {k for k, name in enumerate(problem.tier_names) if name in problem.sla.use_tiers}
    return wanted <= set(tiers) and bool(problem.constraints.allowed[:, list(tiers)].any(axis=1).all())


def _shortened(problem: Problem, tiers: tuple[int, ...], at: tuple[int, ...]) -> Route:
    every = (*problem.links, *(bypass.link for bypass in problem.bypasses))
    links = tuple(every[i] for i in at)
    kept = tuple(problem.tiers[k] for k in tiers)
    allowed: NDArray[np.bool_] = problem.constraints.allowed[:, list(tiers)]
    reasons = {
        (block, tiers.index(tier)): why for (block, tier), why in problem.constraints.reasons.items() if tier in tiers
    }
    shorter = replace(
        problem,
        tiers=kept,
        links=links,
        bypasses=(),
        costs=on_other_links(problem.costs, tiers, [tier.device for tier in kept], links),
        constraints=Constraints(allowed, reasons),
        memory_bytes=problem.memory_bytes[list(tiers)],
        nominal=State.nominal(links),
    )
    return Route(tiers, at, shorter)
