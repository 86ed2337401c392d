"""The `/stats` page: one JSON object that says how a session or a worker is doing; `flagsplit top` shows it.

Schema 1. Keys may be added; a reader ignores those that it does not know. What is unknown is null or absent, figures
are finite. Names from outside (reasons, plans) are plain text and may be hostile: a reader escapes what it shows.

    {"schema": 1, "kind": "session" | "worker", "version": str, "tier": str, "bundle": str, "instance": str, "pid": int,
     "now_unix_s": float, "uptime_s": float,
     "ready": bool, "not_ready": str,                      reason, "" if ready
     "epoch": int, "queue": int, "flights": int, "held_bytes": int,
     "waiting": int,                                       sessions: requests that wait for the window
     "plan": str | null, "plans": [{"plan": str, "predicted_ms": float}],     sessions: in use, then the runner-up
     "tiers": {TIER: {"state": "up" | "down" | "refused" | "draining", "reason": str, "peers": int}},
     "estimates": {"tiers": {TIER: {"slowdown", "queue", "wait_ms", "held_bytes"}},        figures, or null if unknown
                   "links": [{"from": TIER, "to": TIER, "mbit_s": float, "rtt_ms": float, "loss": float}]},
     "requests": {"totals": {"answered": int, "failed/compute": int, ...}, "rate_per_s": float,
                  "latency_ms": {"p50": float | null, "p99": float | null, "count": int},       of the last minute
                  "series": [[answers, p50_ms | null, p99_ms | null], ...]},             60 seconds, the newest last
     "links": [{"tier": TIER, "bytes_in": int, "bytes_out": int}],                  payload to and from that tier
     "squeezed": {"in": {"wire": int, "raw": int}, "out": {"wire": int, "raw": int}},
     "segments": [{"segment": str, "resident_bytes": int | null, "runs": int, "run_ms": {"p50", "p99"},
                   "wait_ms": {"p50", "p99"}}],                          resident_bytes null: not loaded
     "memory": {"resident_bytes": int, "budget_bytes": int},
     "batches": {"runs": float, "requests": int},
     "decisions": [{"at_unix_s": float, "request": int | null, "from": str, "to": str, "reason": str,
                    "numbers": {str: float}}],                           sessions: the newest last, at most 50
     "switches": {REASON: int},
     "process": {"cpu_s": float | null, "rss_bytes": int | null, "open_fds": int | null}}

For a worker the latency of a request is from its announcement to the word that its session has the answer.
"""

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from prometheus_client import Counter

from flagsplit._version import VERSION
from flagsplit.runtime.telemetry.gauges import Reading
from flagsplit.runtime.telemetry.metrics import MachineMetrics
from flagsplit.runtime.telemetry.recent import Recent, percentile
from flagsplit.runtime.telemetry.settings import About
from flagsplit.runtime.telemetry.stats import EngineStats, SessionStats, Stats

SCHEMA: Final = 1
_MOST_DECISIONS = 50


@dataclass(frozen=True)
class Source:
    """Where the figures come from.

    Attributes:
        about: who is watched.
        metrics: its counters.
        reading: its gauges.
        not_ready: why it is not ready, "" if it is.
        now: on the machine's clock.
        wall_offset_s: from that clock to Unix time.
    """

    about: About
    metrics: MachineMetrics
    reading: Reading
    not_ready: str
    now: float
    wall_offset_s: float


def snapshot(source: Source) -> dict[str, Any]:
    """The object of the module's docstring."""
    about, reading, stats = source.about, source.reading, source.reading.stats
    return {
        "schema": SCHEMA,
        "kind": about.role,
        "version": VERSION,
        "tier": about.tier,
        "bundle": about.bundle,
        "instance": about.instance,
        "pid": os.getpid(),
        "now_unix_s": time.time(),
        "uptime_s": reading.uptime_s,
        "ready": not source.not_ready,
        "not_ready": source.not_ready,
        "epoch": stats.epoch,
        "queue": stats.queue,
        "flights": stats.flights,
        "held_bytes": stats.held_bytes,
        "tiers": {peer.tier: {"state": peer.state, "reason": peer.reason, "peers": peer.count} for peer in stats.peers},
        "estimates": _estimates(stats, about.tier),
        "requests": _requests(source.metrics, source.now, reading.uptime_s),
        "links": _links(source.metrics),
        "squeezed": _squeezed(source.metrics),
        "segments": _segments(source.metrics.recent, reading.engine),
        "memory": {
            "resident_bytes": int(sum(reading.engine.resident_bytes.values())),
            "budget_bytes": int(reading.engine.budget_bytes),
        },
        "batches": _batches(source.metrics),
        "process": _process(source.metrics),
        **(_session(stats, reading.plan, source.wall_offset_s) if isinstance(stats, SessionStats) else {}),
    }


def _session(stats: SessionStats, plan: str, wall_offset_s: float) -> dict[str, Any]:
    return {
        "waiting": stats.waiting,
        "plan": plan or None,
        "plans": [{"plan": each.plan, "predicted_ms": each.predicted_s * 1e3} for each in stats.plans],
        "decisions": [
            {
                "at_unix_s": each.at_s + wall_offset_s,
                "request": each.rid,
                "from": each.from_plan,
                "to": each.to_plan,
                "reason": each.reason,
                "numbers": dict(each.numbers),
            }
            for each in stats.decisions[-_MOST_DECISIONS:]
        ],
        "switches": dict(stats.switches),
    }


def _estimates(stats: Stats, own: str) -> dict[str, Any]:
    tiers: dict[str, dict[str, float | None]] = {}
    if isinstance(stats, SessionStats):
        tiers[own] = {"slowdown": stats.slowdown, "queue": stats.queue, "wait_ms": None, "held_bytes": stats.held_bytes}
    for peer in stats.peers:
        if peer.state == "up" and (peer.slowdown, peer.queue, peer.wait_s, peer.held_bytes) != (None,) * 4:
            tiers[peer.tier] = {
                "slowdown": peer.slowdown,
                "queue": peer.queue,
                "wait_ms": None if peer.wait_s is None else peer.wait_s * 1e3,
                "held_bytes": peer.held_bytes,
            }
    links = [
        {
            "from": link.source,
            "to": link.target,
            "mbit_s": link.bytes_per_s * 8e-6,
            "rtt_ms": link.rtt_s * 1e3,
            "loss": link.loss,
        }
        for link in stats.links
    ]
    return {"tiers": tiers, "links": links}


def _requests(metrics: MachineMetrics, now: float, uptime_s: float) -> dict[str, Any]:
    recent = metrics.recent
    latencies = recent.latencies_s(now)
    totals = {"/".join(filter(None, labels)): int(count) for labels, count in _values(metrics.requests).items()}
    return {
        "totals": totals,
        "rate_per_s": recent.rate_per_s(now, uptime_s),
        "latency_ms": {**_percentiles(latencies), "count": len(latencies)},
        "series": [[each.answers, each.p50_s * 1e3, each.p99_s * 1e3] for each in recent.seconds(now)],
    }


def _links(metrics: MachineMetrics) -> list[dict[str, Any]]:
    tiers: dict[str, dict[str, Any]] = {}
    for (direction, tier), count in _values(metrics.payload_bytes).items():
        tiers.setdefault(tier, {"tier": tier, "bytes_in": 0, "bytes_out": 0})[f"bytes_{direction}"] = int(count)
    return list(tiers.values())


def _squeezed(metrics: MachineMetrics) -> dict[str, dict[str, int]]:
    found = {direction: {"wire": 0, "raw": 0} for direction in ("in", "out")}
    for (direction, form), count in _values(metrics.squeezed_bytes).items():
        found[direction][form] = int(count)
    return found


def _segments(recent: Recent, engine: EngineStats) -> list[dict[str, Any]]:
    resident, runs = dict(engine.resident_bytes), recent.runs()
    return [
        {
            "segment": segment,
            "resident_bytes": int(resident[segment]) if segment in resident else None,
            "runs": count,
            "run_ms": _percentiles(ran),
            "wait_ms": _percentiles(waited),
        }
        for segment in dict.fromkeys((*resident, *runs))
        for count, waited, ran in (runs.get(segment, (0, [], [])),)
    ]


def _batches(metrics: MachineMetrics) -> dict[str, float]:
    """Each request saw the size of its run, so a run of n requests is in the histogram n times."""
    samples = {sample.name: sample.value for sample in next(iter(metrics.batch.collect())).samples}
    return {"requests": int(samples["flagsplit_batch_requests_count"]), "runs": metrics.batched_runs}


def _process(metrics: MachineMetrics) -> dict[str, float | None]:
    figures = {sample.name: sample.value for family in metrics.process.collect() for sample in family.samples}
    rss, fds = figures.get("process_resident_memory_bytes"), figures.get("process_open_fds")
    return {
        "cpu_s": figures.get("process_cpu_seconds_total"),
        "rss_bytes": None if rss is None else int(rss),
        "open_fds": None if fds is None else int(fds),
    }


def _percentiles(ordered_s: list[float]) -> dict[str, float]:
    return {"p50": percentile(ordered_s, 50) * 1e3, "p99": percentile(ordered_s, 99) * 1e3}


def _values(counter: Counter) -> Mapping[tuple[str, ...], float]:
    """By its labels' values, how far a counter has come."""
    family = next(iter(counter.collect()))
    found = {tuple(sample.labels.values()): sample.value for sample in family.samples if sample.name.endswith("_total")}
    return {labels: value for labels, value in found.items() if math.isfinite(value)}
