"""Which blocks to measure when not all can be: half of them for what they weigh, half for what they teach.

Measuring the heaviest makes a plan's figure right; but a regression that has seen heavy blocks only knows nothing of
light ones, so the other half is spread over all kinds and sizes. Blocks of equal signature need one measurement.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flagsplit.flagir.blockgraph import BlockGraph
from flagsplit.splitter.regression import features_of_block, places


def blocks_to_measure(graph: BlockGraph, seconds: NDArray[np.float64], share: float) -> tuple[int, ...]:
    """Indices of the blocks to measure, ascending.

    Args:
        graph: the blocks.
        seconds: what each takes according to the model, s.
        share: of the blocks that may be measured, above 0 and at most 1.

    Returns:
        At least one block. One of each signature comes first; if that leaves room, the heaviest of the others follow.
    """
    room = max(1, int(share * len(graph.blocks)))
    weight: dict[str, float] = {}
    first: dict[str, int] = {}
    for block in graph.blocks:
        work = block.signature or str(block.index)
        weight[work] = weight.get(work, 0.0) + float(seconds[block.index])
        first.setdefault(work, block.index)
    distinct = [first[work] for work in sorted(first, key=lambda work: (-weight[work], first[work]))]
    if room < len(distinct):
        return tuple(sorted(_heavy_and_spread(graph, seconds, distinct, room)))
    taken = set(distinct)
    others = sorted((i for i in range(len(graph.blocks)) if i not in taken), key=lambda i: (-seconds[i], i))
    return tuple(sorted(distinct + others[: room - len(distinct)]))


def _heavy_and_spread(
    graph: BlockGraph, seconds: NDArray[np.float64], distinct: Sequence[int], room: int
) -> Sequence[int]:
    """The heaviest for half of the room, then again and again the block that is least like those chosen."""
    where = places([features_of_block(graph.blocks[i]) for i in distinct], np.maximum(seconds[list(distinct)], 1e-9))
    chosen = list(range((room + 1) // 2))
    distance = np.min(((where[:, None] - where[None, chosen]) ** 2).sum(2), axis=1)
    while len(chosen) < room:
        distance[chosen] = -1.0
        chosen.append(int(np.argmax(distance)))
        distance = np.minimum(distance, ((where - where[chosen[-1]]) ** 2).sum(1))
    return [distinct[at] for at in chosen]
