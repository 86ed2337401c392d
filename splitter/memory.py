"""What tiers can hold, and what the loops of a graph need of it: their state at its longest, for each stream.

A decoder's state is its cache of keys and values: so many bytes for each token, and those of the cross-attention, which
are values of the graph. What a whole placement holds is in `flagsplit.splitter.evaluate`.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flagsplit.flagir.blockgraph import Block, BlockGraph
from flagsplit.splitter.costs import Tier
from flagsplit.splitter.sla import BYTES_PER_MB, SLA


def memory_caps(tiers: Sequence[Tier], sla: SLA) -> NDArray[np.float64]:
    """The most bytes that each tier may hold: the SLA's cap, else the device's memory; shape (K,)."""
    return np.array(
        [
            sla.memory_mb[tier.name] * BYTES_PER_MB if tier.name in sla.memory_mb else tier.device.memory.value
            for tier in tiers
        ]
    )


def held_bytes(graph: BlockGraph, tiers: Sequence[Tier], sla: SLA) -> NDArray[np.float64]:
    """What the loops of each block hold on each tier beside weights and values between blocks, shape (n, K).

    The values that a loop captures are held as values of the graph for one stream, and as its own for all others.
    """
    more = np.array([sla.streams.get(tier.name, 1) - 1 for tier in tiers], dtype=np.float64)
    one = np.array([sum(loop.held_bytes for loop in block.loops) for block in graph.blocks], dtype=np.float64)
    each = np.array([sum(loop.stream_bytes for loop in block.loops) for block in graph.blocks], dtype=np.float64)
    held: NDArray[np.float64] = one[:, np.newaxis] + each[:, np.newaxis] * more
    return held


def too_large_loops(graph: BlockGraph, tiers: Sequence[Tier], sla: SLA) -> dict[tuple[int, int], str]:
    """Blocks whose loops no placement can put on a tier, since they alone need more than it has, with the reason."""
    looping = [block for block in graph.blocks if block.loops]
    if not looping:
        return {}
    caps, held = memory_caps(tiers, sla), held_bytes(graph, tiers, sla)
    return {
        (block.index, k): _why(block, tier, float(held[block.index, k]), float(caps[k]), sla)
        for block in looping
        for k, tier in enumerate(tiers)
        if block.weight_bytes + held[block.index, k] > caps[k]
    }


def _why(block: Block, tier: Tier, held: float, cap: float, sla: SLA) -> str:
    trips, streams = max(loop.trips for loop in block.loops), sla.streams.get(tier.name, 1)
    of_streams = f" of {streams} streams" if streams > 1 else ""
    weights = block.weight_bytes / BYTES_PER_MB
    return (
        f"its weights of {weights:.4g} MB and its state{of_streams} after {trips} trips, {held / BYTES_PER_MB:.4g} MB, "
        f"are more than the {cap / BYTES_PER_MB:.4g} MB of {tier.name}"
    )
