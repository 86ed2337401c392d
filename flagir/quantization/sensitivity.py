"""What each node costs in accuracy, found by trials of parts of a graph, the costliest part looked into first."""

import heapq
from collections.abc import Callable, Collection, Sequence

MOST_TRIALS = 64


def costs_of(names: Sequence[str], trial: Callable[[Collection[str]], float], little: float) -> dict[str, float]:
    """Share what a whole costs among its nodes.

    A part that costs something is halved and its halves tried; the nodes of a part that costs next to nothing, or that
    is left when `MOST_TRIALS` were made, share what it costs.

    Args:
        names: of the nodes, in execution order.
        trial: what some of them cost when no others are int8.
        little: what may be lost for each node without a look into it.
    """
    if not names:
        return {}
    done: list[tuple[float, int, Sequence[str]]] = []
    parts: list[tuple[float, int, Sequence[str]]] = [(-trial(names), 0, names)]
    trials = 1
    while parts and trials < MOST_TRIALS:
        part = heapq.heappop(parts)
        cost, start, some = part
        if len(some) == 1 or -cost <= little * len(some):
            done.append(part)
            continue
        middle = len(some) // 2
        for at, half in ((start, some[:middle]), (start + middle, some[middle:])):
            heapq.heappush(parts, (-trial(half), at, half))
            trials += 1
    return {name: max(-cost, 0.0) / len(some) for cost, _, some in (*done, *parts) for name in some}
