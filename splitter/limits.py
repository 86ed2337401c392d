"""Caps and bounds of the SLA: what placements make of them, and which they break.

A limit is kept at the nominal state of devices and links. Which measures the bounds are is in
`flagsplit.splitter.rates`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flagsplit.splitter.evaluate import Usage
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.rates import bound_rates
from flagsplit.splitter.sla import BYTES_PER_MB

_ROUNDING = 1e-9  # relative: what the arithmetic of a measure can leave


@dataclass(frozen=True)
class Violation:
    """A cap or bound that a placement breaks.

    Attributes:
        limit: "latency_ms", "energy_mj", "price_per_1k_usd" or "memory_mb of TIER".
        value, allowed: in the limit's unit.
    """

    limit: str
    value: float
    allowed: float

    def __str__(self) -> str:
        return f"{self.limit} would be {self.value:.6g}, over {self.allowed:.6g}"


def memory_limit(tier: str) -> str:
    """How the memory cap of a tier is called in violations and messages."""
    return f"memory_mb of {tier}"


def limits_used(
    usage: Usage, round_trips: NDArray[np.float64] | None = None
) -> dict[str, tuple[NDArray[np.float64], float]]:
    """Every cap and bound by name: what each placement makes of it, (m,), in its unit, and what is allowed.

    A memory cap that all weights and values together keep is left out.

    With other `round_trips` (m, K-1) than the real ones if given.
    """
    problem = usage.problem
    found = {
        memory_limit(tier): (usage.resident_on(k) / BYTES_PER_MB, float(problem.memory_bytes[k]) / BYTES_PER_MB)
        for k, tier in enumerate(problem.tier_names)
        if problem.everything_bytes > problem.memory_bytes[k]
    }
    for name, (rates, limit) in bound_rates(problem).items():
        found[name] = usage.measure(rates, round_trips), limit
    return found


def which_keep(usage: Usage) -> NDArray[np.bool_]:
    """Which placements keep all caps and bounds of the SLA, (m,)."""
    keep = np.ones(len(usage.placements), dtype=bool)
    for values, limit in limits_used(usage).values():
        keep &= values <= limit * (1 + _ROUNDING)
    return keep


def violations(usage: Usage) -> list[Violation]:
    """Which caps and bounds of the SLA the first placement breaks at the nominal state."""
    return [
        Violation(name, float(values[0]), limit)
        for name, (values, limit) in limits_used(usage).items()
        if values[0] > limit * (1 + _ROUNDING)
    ]


def violations_of(problem: Problem, placement: Sequence[int] | NDArray[np.int64]) -> list[Violation]:
    """Which caps and bounds a placement breaks, with the codecs that are best for the objective."""
    return violations(Usage.for_objective(problem, np.array([placement], dtype=np.int64)))
