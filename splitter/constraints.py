"""Where each block may run: operator support, pins, forbidden tiers and privacy, as one table with reasons.

Round trips are allowed, so a placement exists exactly when every block has at least one tier; a block with none is the
contradiction, and the error names what to change. Caps and bounds couple blocks and are the solvers' business.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from flagsplit.errors import PolicyError
from flagsplit.flagir.blockgraph import GRAPH_INPUT, Block, BlockGraph, BlockValue
from flagsplit.splitter.costs import Tier
from flagsplit.splitter.memory import too_large_loops
from flagsplit.splitter.sla import INPUTS, SLA

Support = Callable[[Block], str | None] | Sequence[str | None]
"""Of one tier: why a block cannot run there, or None where it can."""


@dataclass(frozen=True, eq=False)
class Constraints:
    """The table.

    Attributes:
        allowed: shape (blocks, K).
        reasons: (block, tier) to why not, for every pair that is not allowed.
    """

    allowed: NDArray[np.bool_]
    reasons: Mapping[tuple[int, int], str]


def build_constraints(
    graph: BlockGraph, tiers: Sequence[Tier], sla: SLA, supports: Mapping[str, Support]
) -> Constraints:
    """Apply every rule.

    Raises:
        PolicyError: a rule names what does not exist, or leaves a block without a tier.
    """
    tier_names = [tier.name for tier in tiers]
    _check_names(tier_names, sla, supports)
    reasons: dict[tuple[int, int], str] = {}
    _apply_support(graph, tier_names, supports, reasons)
    for name, why in _forbidden(tiers, sla).items():
        for block in graph.blocks:
            reasons.setdefault((block.index, tier_names.index(name)), why)
    if sla.min_blocks_deep:
        why = f"min_blocks_deep {sla.min_blocks_deep} keeps it on {tier_names[0]}"
        _confine(_shallow(graph, sla.min_blocks_deep), tier_names, tier_names[0], why, reasons)
    for pattern, name in sla.pins.items():
        _confine(_pinned(graph, pattern), tier_names, name, f"pin {pattern!r} wants {name}", reasons)
    for key, name in sla.keep_on.items():
        for value in _private(graph, key):
            _confine(_holders(value, key, name, tier_names), tier_names, name, f"keep_on {key!r} wants {name}", reasons)
    for pair, why in too_large_loops(graph, tiers, sla).items():
        reasons.setdefault(pair, why)
    allowed = np.ones((len(graph.blocks), len(tier_names)), dtype=bool)
    for block_index, tier in reasons:
        allowed[block_index, tier] = False
    _check_nonempty(graph, tier_names, allowed, reasons)
    return Constraints(allowed, reasons)


def _forbidden(tiers: Sequence[Tier], sla: SLA) -> dict[str, str]:
    """Tiers on which nothing may run, with the reason."""
    found: dict[str, str] = {}
    for tier in tiers:
        rules = {
            f"forbid_tiers has {tier.name!r}": tier.name in sla.forbid_tiers,
            f"forbid_vendors has {tier.device.vendor!r}": _is_named(tier.device.vendor, sla.forbid_vendors),
            f"forbid_targets has {tier.target_name!r}": _is_named(tier.target_name, sla.forbid_targets),
            f"mode {sla.mode}": tier.name not in _tiers_of_mode(tiers, sla),
        }
        for why, holds in rules.items():
            if holds:
                found.setdefault(tier.name, why)
    return found


def _tiers_of_mode(tiers: Sequence[Tier], sla: SLA) -> set[str]:
    only = {"only_on_device": tiers[0].name, "only_in_cloud": tiers[-1].name}
    return {only[sla.mode]} if sla.mode in only else {tier.name for tier in tiers}


def _is_named(name: str, names: Sequence[str]) -> bool:
    return name.casefold() in {each.casefold() for each in names}


def preferred_tiers(tiers: Sequence[Tier], sla: SLA) -> tuple[int, ...]:
    """Indices of the tiers that the SLA prefers; all of them if it prefers none.

    Raises:
        PolicyError: what it prefers is on no tier of the line.
    """
    if not sla.has_preferences:
        return tuple(range(len(tiers)))
    found = tuple(
        k
        for k, tier in enumerate(tiers)
        if tier.name in sla.prefer_tiers
        or _is_named(tier.device.vendor, sla.prefer_vendors)
        or _is_named(tier.target_name, sla.prefer_targets)
    )
    if not found:
        there = "; ".join(f"{tier.name}: {tier.device.vendor}, {tier.target_name}" for tier in tiers)
        raise PolicyError(f"prefer_vendors and prefer_targets: none of them is in the line ({there})")
    return found


def _shallow(graph: BlockGraph, depth: int) -> list[int]:
    """Blocks that read what went through fewer than `depth` blocks on some way from the graph's inputs."""
    deep = len(graph.blocks) + 1
    depth_of = [deep] * len(graph.blocks)
    for value in graph.values:
        made = 0 if value.producer == GRAPH_INPUT else depth_of[value.producer]
        for consumer in value.consumers:
            depth_of[consumer] = min(depth_of[consumer], made + 1)
    return [block for block, at in enumerate(depth_of) if at <= depth]


def _check_names(tier_names: Sequence[str], sla: SLA, supports: Mapping[str, Support]) -> None:
    uses = {
        "memory_mb": list(sla.memory_mb),
        "power_w": list(sla.power_w),
        "streams": list(sla.streams),
        "prefer_tiers": list(sla.prefer_tiers),
        "use_tiers": list(sla.use_tiers),
        "keep_on": list(sla.keep_on.values()),
        "pins": list(sla.pins.values()),
        "forbid_tiers": list(sla.forbid_tiers),
        "supports": list(supports),
    }
    for field, names in uses.items():
        for name in names:
            if name not in tier_names:
                raise PolicyError(f"{field}: there is no tier {name!r}: the line is {', '.join(tier_names)}")


def _apply_support(
    graph: BlockGraph, tier_names: Sequence[str], supports: Mapping[str, Support], reasons: dict[tuple[int, int], str]
) -> None:
    for name, support in supports.items():
        if not callable(support) and len(support) != len(graph.blocks):
            raise PolicyError(f"supports: expected {len(graph.blocks)} entries for {name}, got {len(support)}")
        for block in graph.blocks:
            reason = support(block) if callable(support) else support[block.index]
            if reason is not None:
                reasons[block.index, tier_names.index(name)] = reason


def _pinned(graph: BlockGraph, pattern: str) -> list[int]:
    found = [
        block.index
        for block in graph.blocks
        if pattern in block.op_types or any(fnmatchcase(node, pattern) for node in (block.name, *block.nodes))
    ]
    if not found:
        raise PolicyError(f"pins: {pattern!r} matches no node and is no operator of {graph.name!r}")
    return found


def _private(graph: BlockGraph, key: str) -> list[BlockValue]:
    found = [v for v in graph.values if v.name == key or (key == INPUTS and v.producer == GRAPH_INPUT)]
    if not found:
        raise PolicyError(
            f"keep_on: {key!r} is not a value that passes between blocks of {graph.name!r}; use 'inputs' or one of its "
            f"value names, or pin the block that makes it"
        )
    return found


def _holders(value: BlockValue, key: str, tier: str, tier_names: Sequence[str]) -> list[int]:
    """The blocks that touch a value which must not leave its tier."""
    first = tier_names[0]
    if tier != first and value.producer == GRAPH_INPUT:
        raise PolicyError(f"keep_on {key!r}: {tier}: inputs start on {first}; keep them on {first} instead")
    if tier != first and value.is_output:
        raise PolicyError(f"keep_on {key!r}: {tier}: it is an output, and outputs end on {first}; name {first} instead")
    return [*value.consumers] if value.producer == GRAPH_INPUT else [value.producer, *value.consumers]


def _confine(
    blocks: Sequence[int], tier_names: Sequence[str], tier: str, why: str, reasons: dict[tuple[int, int], str]
) -> None:
    for block in blocks:
        for k, name in enumerate(tier_names):
            if name != tier:
                reasons.setdefault((block, k), why)


def _check_nonempty(
    graph: BlockGraph,
    tier_names: Sequence[str],
    allowed: NDArray[np.bool_],
    reasons: Mapping[tuple[int, int], str],
) -> None:
    stuck = np.flatnonzero(~allowed.any(axis=1))
    if stuck.size == 0:
        return
    block = graph.blocks[int(stuck[0])]
    story = "; ".join(f"not {name}: {reasons[block.index, k]}" for k, name in enumerate(tier_names))
    more = f" (and {stuck.size - 1} more blocks)" if stuck.size > 1 else ""
    raise PolicyError(f"block {block.name!r} has no tier left{more}: {story}; drop one of these rules")
