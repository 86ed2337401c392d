"""Which segments of a tier to load first, what each is expected to hold, and what those that are loaded really do.

Estimates come from the plans and decide what fits the budget. What a load added to the process is measured beside
them; it counts what is private to the process, not the pages of the shared weights file, which the system can drop.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from flagsplit.runtime.bundle import Bundle

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
        loaded: the segments, that which was not used for longest first.
    """

    mode: str
    budget_bytes: float
    loaded: tuple[Holding, ...]

    @property
    def estimated_bytes(self) -> float:
        """The estimates of all that is loaded."""
        return sum(holding.estimated_bytes for holding in self.loaded)

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


def order_of(bundle: Bundle, tier: int) -> list[str]:
    """The tier's segments, those of the best plan first."""
    return list(bundle.segments_of(tier))


def sizes_of(bundle: Bundle, tier: int) -> dict[str, float]:
    """An estimate for each segment, in bytes: what the smallest plan with it holds on the tier."""
    sizes: dict[str, float] = {}
    for plan in bundle.plans.pool.plans:
        for step in bundle.plans.steps[plan.name]:
            if step.tier == tier:
                held = plan.features.resident_bytes[tier]
                sizes[step.segment] = min(held, sizes.get(step.segment, held))
    return sizes
