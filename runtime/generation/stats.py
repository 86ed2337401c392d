"""How a generation engine does, in figures for metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flagsplit.runtime.generation.scheduler import Scheduler
from flagsplit.runtime.generation.stream import State

RECENT_S = 10.0
"""Over how long the rate of tokens is taken."""


@dataclass(frozen=True)
class EngineStats:
    """Figures of one moment; counts are since the start.

    Attributes:
        streams: how many are "waiting", "running" and "parked".
        slots: how many there are.
        kv_bytes: what all caches hold, those that are kept for streams to come included.
        kv_budget_bytes: how much they may take, also while they grow.
        tokens: given out.
        tokens_per_s: of the last ten seconds.
        prefilled: tokens that were put into caches before tokens came.
        evictions: streams that lost their slots to others.
        failures: steps that the model did not do.
        is_broken: whether the model fails again and again.
        batches: steps by number of streams.
        ended: streams by reason or code.
        first_ms_p50, first_ms_p95: time to first token of the latest streams; NaN if there were none.
    """

    streams: Mapping[str, int]
    slots: int
    kv_bytes: int
    kv_budget_bytes: int
    tokens: int
    tokens_per_s: float
    prefilled: int
    evictions: int
    failures: int
    is_broken: bool
    batches: Mapping[int, int]
    ended: Mapping[str, int]
    first_ms_p50: float
    first_ms_p95: float


def stats_of(
    scheduler: Scheduler,
    slots: int,
    kv_bytes: tuple[int, int],
    given: Sequence[tuple[float, int]],
    now: float,
    is_broken: bool,
) -> EngineStats:
    """Gather the figures of a scheduler.

    Args:
        scheduler: whose.
        slots: of its step model.
        kv_bytes: what caches hold, and may take.
        given: times and numbers of tokens of the last ten seconds.
        now: time in seconds.
        is_broken: whether the model fails again and again.
    """
    counts = scheduler.counts
    first_ms = np.array(counts.first_s or [np.nan]) * 1e3
    recent = [(at, number) for at, number in given if at >= now - RECENT_S]
    over_s = now - recent[0][0] if recent else 0.0
    return EngineStats(
        streams={state.value: len(scheduler.in_state(state)) for state in State if state is not State.LOST},
        slots=slots,
        kv_bytes=kv_bytes[0],
        kv_budget_bytes=kv_bytes[1],
        tokens=counts.tokens,
        tokens_per_s=sum(number for _, number in recent[1:]) / over_s if over_s > 0 else 0.0,
        prefilled=counts.prefilled,
        evictions=counts.evictions,
        failures=counts.failures,
        is_broken=is_broken,
        batches=dict(counts.batches),
        ended=dict(counts.ended),
        first_ms_p50=float(np.percentile(first_ms, 50)),
        first_ms_p95=float(np.percentile(first_ms, 95)),
    )
