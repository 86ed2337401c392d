"""Costs out of a profile: measured where a block's work was measured, else the model corrected by what was.

The regression behind the correction is in `flagsplit.splitter.regression`, the profile's form in
`flagsplit.splitter.profiles`. Where a profile says nothing, the roofline of `flagsplit.splitter.costs` stands.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from flagsplit.flagir.blockgraph import BlockGraph
from flagsplit.splitter.costs import CostModel, Tier
from flagsplit.splitter.profiles import BlockTime, Profile
from flagsplit.splitter.regression import features_of_block, predict_seconds

_MOST_LEARNED = 500
"""The regression takes the cube of the blocks it learns from; of more it takes these many, over all sizes."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """A tier's costs with what was measured there.

    Attributes:
        seconds: by block, what it adds to a segment, s.
        measured: by block, whether work of its signature was measured; the others are modelled.
        method: how the others were found: as `flagsplit.splitter.regression.Prediction` has it; "" if there are none.
        error: median relative error of that method on measured blocks that it was not told of; NaN if unknown.
        run_s: s for each run of a segment.
        boundary_s_per_byte: s per byte that crosses a cut, half of it on either side.
    """

    seconds: NDArray[np.float64]
    measured: NDArray[np.bool_]
    method: str
    error: float
    run_s: float
    boundary_s_per_byte: float

    def segment_s(self, blocks: Sequence[int], boundary_bytes: int) -> float:
        """Seconds of one run of a segment.

        Args:
            blocks: indices of its blocks.
            boundary_bytes: bytes that enter and leave it.
        """
        return float(self.seconds[list(blocks)].sum()) + self.run_s + self.boundary_s_per_byte * boundary_bytes / 2


def boundary_bytes(graph: BlockGraph, blocks: Collection[int]) -> int:
    """Bytes that enter and leave a segment of these blocks, each value once a direction."""
    inside = set(blocks)
    entering = [v for v in graph.values if v.producer not in inside and not inside.isdisjoint(v.consumers)]
    leaving = [v for v in graph.values if v.producer in inside and (v.is_output or not inside.issuperset(v.consumers))]
    return sum(value.size_bytes for value in (*entering, *leaving))


def calibrate(graph: BlockGraph, tier: Tier, profile: Profile) -> Calibration:
    """The seconds of a graph's blocks on a tier that has a profile.

    Args:
        graph: the blocks; those without a signature count as not measured.
        tier: whose device's figures to correct where nothing was measured.
        profile: of this tier.
    """
    known = [profile.blocks.get(block.signature) for block in graph.blocks]
    measured = np.array([time is not None for time in known], dtype=np.bool_)
    seconds = np.array([0.0 if time is None else time.added_s for time in known])
    method, error = "", float("nan")
    if not measured.all():
        lessons = _lessons(profile)
        said = predict_seconds(
            [time.features for time in lessons],
            np.array([time.added_s for time in lessons]),
            [features_of_block(graph.blocks[index]) for index in np.flatnonzero(~measured)],
            tier,
        )
        seconds[~measured] = said.seconds
        method, error = said.method, said.error
    return Calibration(seconds, measured, method, error, profile.run_s, profile.boundary_s_per_byte)


def _lessons(profile: Profile) -> list[BlockTime]:
    """The measured blocks to learn from, in an order that does not depend on the file's."""
    usable = [(time.added_s, name) for name, time in profile.blocks.items() if time.features]
    ordered = [profile.blocks[name] for _, name in sorted(usable)]
    if len(ordered) <= _MOST_LEARNED:
        return ordered
    return [ordered[at] for at in np.linspace(0, len(ordered) - 1, _MOST_LEARNED).round().astype(int)]


def calibrated_costs(
    costs: CostModel, graph: BlockGraph, tiers: Sequence[Tier], profiles: Mapping[str, Profile]
) -> tuple[CostModel, dict[str, Calibration]]:
    """Modelled costs with the seconds of profiled tiers replaced.

    Args:
        costs: of the same graph and tiers, from `flagsplit.splitter.costs.model_costs`.
        graph: its blocks.
        tiers: the line.
        profiles: by tier name; tiers without one stay as they are.

    Returns:
        The costs, and what each profile made of its tier, by tier name.
    """
    found = {tier.name: calibrate(graph, tier, profiles[tier.name]) for tier in tiers if tier.name in profiles}
    seconds, invocation_s = costs.seconds.copy(), costs.invocation_s.copy()
    for at, tier in enumerate(tiers):
        if tier.name in found:
            seconds[:, at] = found[tier.name].seconds
            # Starting a segment is a part of acting on a message: the device's figure covers it unless it is too low.
            invocation_s[at] = max(invocation_s[at], found[tier.name].run_s)
    return replace(costs, seconds=seconds, invocation_s=invocation_s), found
