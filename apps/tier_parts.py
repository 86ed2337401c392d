"""What a tier's compiler is given: the segments of all pooled plans and, where they are too many to hold, their atoms.

Whole segments of different plans have weights in common, and an engine packs them anew for each. Where that is more
than the tier's memory, the bundle has the atoms too (`flagsplit.flagir.atoms`), and a worker can hold those instead.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from flagsplit.apps.plan_graphs import PlanGraphs, original_name
from flagsplit.flagir import BlockGraph, Segment
from flagsplit.flagir.atoms import atoms_of, weight_bytes_of
from flagsplit.runtime.residency import smallest
from flagsplit.splitter.plan import Plan

ResidencyChoice = Literal["auto", "segments", "atoms"]
"""Where a bundle has atoms: where whole segments are more than the tier's memory, nowhere, or wherever they help."""


@dataclass(frozen=True)
class TierParts:
    """What one tier has compiled.

    Attributes:
        segments: segments, then atoms that are none.
        whole: how many of them are segments.
        chains: for segments that are more than one atom, the ids of these; empty if the tier has no atoms.
        weight_bytes: of each.
    """

    segments: Sequence[Segment]
    whole: int
    chains: Mapping[str, tuple[str, ...]]
    weight_bytes: Mapping[str, int]


def tier_parts(
    graphs: PlanGraphs,
    graph: BlockGraph,
    plans: Sequence[Plan],
    tier: int,
    memory_bytes: float,
    choice: ResidencyChoice,
) -> TierParts:
    """The parts of one tier.

    Args:
        graphs: all plans, cut.
        graph: the blocks of the model.
        plans: the pooled plans.
        tier: position of the tier.
        memory_bytes: what the tier can hold.
        choice: see `ResidencyChoice`.
    """
    steps = [(plan, step.segment) for plan in plans for step in graphs.steps[plan.name] if step.tier == tier]
    segments = list({segment.id: segment for _, segment in steps}.values())
    weights = weight_bytes_of(graphs.model, segments)
    every = {name: None for segment in segments for name in segment.nodes}
    once = sum(weight_bytes_of(graphs.model, [Segment("", tuple(every), (), ())]).values())
    held_bytes = smallest((segment.id, plan.features.resident_bytes[tier]) for plan, segment in steps)
    fit = sum(held_bytes.values()) <= memory_bytes
    if choice == "segments" or sum(weights.values()) <= once or (choice == "auto" and fit):
        return TierParts(segments, len(segments), {}, weights)
    chains = atoms_of(graphs.model, segments, _units(graphs.model, graph))
    every_part = {part.id: part for chain in chains.values() for part in chain}
    atoms = [atom for name, atom in every_part.items() if name not in weights]
    return TierParts(
        [*segments, *atoms],
        len(segments),
        {
            name: tuple(atom.id for atom in chain)
            for name, chain in chains.items()
            if [atom.id for atom in chain] != [name]
        },
        weights | weight_bytes_of(graphs.model, atoms),
    )


def _units(model: ir.Model, graph: BlockGraph) -> dict[str, str]:
    """The block of each node, those that a codec's loss gave another name included."""
    blocks = {node: block.name for block in graph.blocks for node in block.nodes}
    names = [node.name or "" for node in model.graph]
    found = {name: blocks.get(name) or blocks.get(original_name(name)) for name in names}
    return {name: block for name, block in found.items() if block is not None}
