"""Which segments of a tier to load first, what each is expected to hold, and what those that are loaded really do.

Estimates come from the plans and decide what fits the budget. What a load added to the process is measured beside
them; it counts what is private to the process, not the pages of the shared weights file, which the system can drop.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flagsplit.errors import BundleError
from flagsplit.runtime.bundle import Bundle
from flagsplit.runtime.chained import SharedParts
from flagsplit.targets.interface import Executable, LoadOptions

Mode = Literal["segments", "atoms"]
"""How pooled plans are held: each segment on its own, or as chains of the parts that plans share."""

ModeChoice = Literal["auto", "segments", "atoms"]
"""What an operator can ask for; see `loadout`."""

_STATM = Path("/proc/self/statm")


@dataclass(frozen=True)
class Holding:
    """One loaded segment.

    Attributes:
        bundle: digest of its bundle.
        segment: its id.
        estimated_bytes: what it was expected to hold.
        measured_bytes: by how much the process's private memory grew while it was loaded, runs that went on at the
            same time included; None where the system does not tell.
    """

    bundle: str
    segment: str
    estimated_bytes: float
    measured_bytes: int | None


@dataclass(frozen=True)
class Residency:
    """What an engine has loaded.

    Attributes:
        mode: "segments" if plans are held as whole segments, "atoms" if as parts that plans share.
        budget_bytes: what the estimates may add up to.
        estimated_bytes: what all that is loaded was expected to hold; an atom of several segments counts once.
        loaded: the segments, that which was not used for longest first.
    """

    mode: Mode
    budget_bytes: float
    estimated_bytes: float
    loaded: tuple[Holding, ...]

    @property
    def measured_bytes(self) -> int | None:
        """What the loads added to the process, or None where the system does not tell."""
        measured = [holding.measured_bytes for holding in self.loaded]
        return None if None in measured else sum(each or 0 for each in measured)


def private_bytes() -> int | None:
    """Resident memory of this process that no file backs, in bytes; None where the system does not tell."""
    try:
        pages = _STATM.read_text(encoding="ascii").split()
    except OSError:
        return None
    return (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Loadout:
    """What an engine needs to know of one tier of a bundle.

    Attributes:
        mode: "segments" or "atoms".
        order: ids of the tier's segments, those of the best plan first.
        size_bytes: what each segment, or each atom, is expected to hold.
        parts: with "atoms", the chain of each segment.
        load: loads a segment by its id; atoms that are loaded already are shared.
    """

    mode: Mode
    order: Sequence[str]
    size_bytes: Mapping[str, float]
    parts: Mapping[str, Sequence[str]]
    load: Callable[[str], Executable]


def loadout(bundle: Bundle, tier: int, budget_bytes: float, host: LoadOptions, mode: ModeChoice = "auto") -> Loadout:
    """How a tier's segments are to be held.

    Args:
        bundle: the bundle.
        tier: position of the tier.
        budget_bytes: how much memory there is for them.
        host: choices of this host.
        mode: "auto" holds whole segments if those of all pooled plans fit, else atoms if the bundle has them.

    Raises:
        BundleError: atoms are asked for and the bundle has none, or its chains are damaged.
    """
    order, sizes, chains = order_of(bundle, tier), sizes_of(bundle, tier), bundle.chains_of(tier)
    if mode == "atoms" and not chains:
        raise BundleError(
            f"{bundle.path} has no atoms for tier {bundle.tiers[tier]}; build it with --residency atoms, "
            f"or hold whole segments"
        )
    if not chains or mode == "segments" or (mode == "auto" and sum(sizes.values()) <= budget_bytes):
        return Loadout("segments", order, sizes, {}, lambda segment: bundle.load(tier, segment, host))
    known = bundle.segments_of(tier)
    weights = bundle.artifact(tier).weight_bytes
    shared = SharedParts(lambda part: bundle.load(tier, part, host))
    parts = {segment: chains.get(segment, (segment,)) for segment in order}
    most = bundle.facts.weights_bytes
    size_bytes = {part: float(weights.get(part, most)) for chain in parts.values() for part in chain}

    def load(segment: str) -> Executable:
        step = known[segment]
        return shared.chain(parts[segment], step.inputs, step.outputs)

    return Loadout("atoms", order, size_bytes, parts, load)


def order_of(bundle: Bundle, tier: int) -> list[str]:
    """The tier's segments, those of the best plan first."""
    return list(bundle.segments_of(tier))


def sizes_of(bundle: Bundle, tier: int) -> dict[str, float]:
    """An estimate for each segment, in bytes: what the smallest plan with it holds on the tier."""
    return smallest(
        (step.segment, plan.features.resident_bytes[tier])
        for plan in bundle.plans.pool.plans
        for step in bundle.plans.steps[plan.name]
        if step.tier == tier
    )


def smallest(sizes: Iterable[tuple[str, float]]) -> dict[str, float]:
    """The least size that is said of each segment: what a plan holds on a tier includes its other segments there."""
    found: dict[str, float] = {}
    for segment, size in sizes:
        found[segment] = min(size, found.get(segment, size))
    return found
