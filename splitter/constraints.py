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
    graph: BlockGraph, tier_names: Sequence[str], sla: SLA, supports: Mapping[str, Support]
) -> Constraints:
    """Apply every rule.

    Raises:
        PolicyError: a rule names what does not exist, or leaves a block without a tier.
    """
    _check_names(tier_names, sla, supports)
    reasons: dict[tuple[int, int], str] = {}
    _apply_support(graph, tier_names, supports, reasons)
    for name in sla.forbid_tiers:
        for block in graph.blocks:
            reasons.setdefault((block.index, tier_names.index(name)), f"forbid_tiers has {name!r}")
    for pattern, name in sla.pins.items():
        _confine(_pinned(graph, pattern), tier_names, name, f"pin {pattern!r} wants {name}", reasons)
    for key, name in sla.keep_on.items():
        for value in _private(graph, key):
            _confine(_holders(value, key, name, tier_names), tier_names, name, f"keep_on {key!r} wants {name}", reasons)
    allowed = np.ones((len(graph.blocks), len(tier_names)), dtype=bool)
    for block_index, tier in reasons:
        allowed[block_index, tier] = False
    _check_nonempty(graph, tier_names, allowed, reasons)
    return Constraints(allowed, reasons)


def _check_names(tier_names: Sequence[str], sla: SLA, supports: Mapping[str, Support]) -> None:
    uses = {
        "memory_mb": list(sla.memory_mb),
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
