"""What a cut charges for moving values and for round trips, and the chain along which a placement turns back most.

A flow cannot charge everything exactly; what is here never charges more than what really happens, so that cuts bound.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flagsplit.splitter.evaluate import Usage
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.rates import Rates

Charges = tuple[NDArray[np.float64], NDArray[np.float64]]
"""By link and value, (K-1, values): away from the first tier, and towards it."""


def transfer_charges(problem: Problem, rates: Rates, share: float | None = None) -> Charges:
    """What it costs at least to move each value over each link, (K-1, values), away from and towards the first tier.

    Args:
        problem: whose values and codecs.
        rates: the measure.
        share: part of a codec's work that each link carries; the default, one part per link, never charges too much.
    """
    values, links = problem.values, len(problem.links)
    up = np.outer(rates.up_byte, values.size_bytes)
    down = np.outer(rates.down_byte, values.size_bytes)
    part = 1 / max(links, 1) if share is None else share
    for c in range(1, len(problem.codecs)):
        allowed = np.isfinite(values.coded_bytes[c])
        size = np.where(allowed, values.coded_bytes[c], 0.0)
        for k in range(links):
            near, far = rates.encode[c, : k + 1].min(), rates.encode[c, k + 1 :].min()
            near_reads, far_reads = rates.decode[c, : k + 1].min(), rates.decode[c, k + 1 :].min()
            one_way = rates.up_byte[k] * size + part * (near + far_reads) * values.size_bytes
            way_back = rates.down_byte[k] * size + part * (far + near_reads) * values.size_bytes
            up[k] = np.where(allowed, np.minimum(up[k], one_way), up[k])
            down[k] = np.where(allowed & ~values.is_output, np.minimum(down[k], way_back), down[k])
    return up, down


def charged_trips(usage: Usage, chain: Sequence[int] | None) -> NDArray[np.float64]:
    """What a cut charges for round trips, (m, K-1): once for each link in use, or the turns along a chain."""
    if chain is None:
        return usage.used_links
    after = usage.placements[:, list(chain), np.newaxis]
    before = np.concatenate([np.zeros_like(after[:, :1]), after[:, :-1]], axis=1)
    links = np.arange(1, len(usage.problem.tiers))
    trips: NDArray[np.float64] = ((before < links) & (after >= links)).sum(axis=1).astype(np.float64)
    return trips


def worst_chain(problem: Problem, placement: Sequence[int]) -> tuple[int, ...]:
    """The chain of dependent blocks along which a placement turns back most often, over whichever link that is."""
    best: tuple[int, tuple[int, ...]] = (0, ())
    for k in range(1, len(problem.tiers)):
        turns: list[int] = []
        via: list[int] = []
        for v, needs in enumerate(problem.predecessors):
            beyond = placement[v] >= k
            most, through = (int(beyond), -1) if not needs else (-1, -1)
            for p in needs:
                along = turns[p] + (beyond and placement[p] < k)
                if along > most:
                    most, through = along, p
            via.append(through)
            turns.append(most)
        end = max(range(len(turns)), key=turns.__getitem__)
        if turns[end] > best[0]:
            best = turns[end], _walk_back(via, end)
    return best[1]


def _walk_back(via: Sequence[int], end: int) -> tuple[int, ...]:
    chain = []
    while end >= 0:
        chain.append(end)
        end = via[end]
    return tuple(reversed(chain))
