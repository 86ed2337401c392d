"""Pages as sessions and workers make them, with everything in them that a machine can know."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flagsplit.apps.top.fetch import Page
from flagsplit.apps.top.model import Stats
from flagsplit.runtime.events import Deliver, Ran, Run, Send
from flagsplit.runtime.report import Report
from flagsplit.runtime.telemetry.gauges import Reading
from flagsplit.runtime.telemetry.http import finite
from flagsplit.runtime.telemetry.recent import Recent
from flagsplit.runtime.telemetry.session_metrics import SessionMetrics
from flagsplit.runtime.telemetry.settings import About
from flagsplit.runtime.telemetry.snapshot import Source, snapshot
from flagsplit.runtime.telemetry.stats import EngineStats, LinkStats, PeerStats, PlanStats, SessionStats, WorkerStats
from flagsplit.runtime.telemetry.worker_metrics import WorkerMetrics
from flagsplit.transport.channel import Received
from flagsplit.transport.messages import Chunk, Done, Hop, HopTiming, Open

TIERS = ("phone", "edge", "cloud")
NOW = 1000.0
_SID = "5" * 32


@dataclass(frozen=True)
class Decision:
    at_s: float
    rid: int | None
    from_plan: str
    to_plan: str
    reason: str
    numbers: Mapping[str, float] = field(default_factory=dict)


DECISIONS = (
    Decision(940.0, None, "phone+cloud-1", "phone+edge-2", "cloud is down", {"predicted_ms": 61.2, "before_ms": 42.3}),
    Decision(975.5, 118, "phone+edge-2", "all-phone", "deadline is near", {"left_ms": 35.0}),
    Decision(981.0, None, "all-phone", "phone+cloud-1", "cloud is up again", {"gain_ms": 72.1, "loss": math.nan}),
)
STATS = SessionStats(
    queue=1,
    waiting=3,
    flights=8,
    held_bytes=1_200_000,
    epoch=4,
    plans=(PlanStats("phone+cloud-1", 0.0423), PlanStats("phone+edge-2", 0.0612), PlanStats("all-phone", 0.114)),
    peers=(
        PeerStats("edge", "down", "it went silent"),
        PeerStats("cloud", "up", "", 1, 2, 0.0034, 900_000, 1.25, credit_paused=True),
    ),
    links=(LinkStats("phone", "cloud", 2.5e6, 0.041, 0.002), LinkStats("cloud", "phone", 5e6, 0.041)),
    slowdown=1.1,
    decisions=DECISIONS,
    switches={"cloud is down": 1, "deadline is near": 1, "cloud is up again": 1},
)


def session_data(stats: SessionStats = STATS) -> dict[str, Any]:
    """What a session's page says after a minute of 4 requests a second."""
    about = About("session", "phone", TIERS, ("stem", "head"), "b" * 64, _SID)
    metrics = SessionMetrics("phone", TIERS, about.segments, Recent())
    for number in range(240):
        at = NOW - 60 + number / 4
        latency_ms = 42 + 9 * math.sin(number / 12) + (40 if 80 < number < 110 else 0)
        metrics.instruction(Run(number, "stem", {}), at)
        metrics.event(Ran(number, {}, "", 150 + number, 5000 + 10 * number), at)
        metrics.instruction(Send("cloud", opened(number, 1, HopTiming("phone", "stem", 150, 5000, 0, 9000))), at)
        metrics.instruction(Send("cloud", Chunk(_SID, number, 1, 1, 0, 0, 0, payload=b"x" * 9000)), at)
        metrics.event(Received("cloud", Chunk(_SID, number, 1, 2, 0, 0, 0, "zstd", 900, payload=b"y" * 400)), at)
        report = Report("phone+cloud-1", 1 + (number == 90), latency_ms, (), ())
        metrics.instruction(Deliver(number, {}, report), at)
    engine = EngineStats({"stem": 5.9e6}, 2e9)
    reading = Reading(3723.0, True, stats, engine, stats.plans[0].plan if stats.plans else "")
    found: dict[str, Any] = finite(snapshot(Source(about, metrics, reading, "", NOW, 1.79e9)))
    return found


def worker_data(not_ready: str = "") -> dict[str, Any]:
    """What a worker's page says."""
    about = About("worker", "cloud", TIERS, ("middle",), "b" * 64, "6" * 32)
    metrics = WorkerMetrics("cloud", TIERS, about.segments, Recent())
    for number in range(24):
        at = NOW - 12 + number / 2
        metrics.event(Received("in:1", opened(number, 1, HopTiming("phone", "stem", 1, 2, 3, 4))), at)
        metrics.instruction(Run(number, "middle", {}), at)
        metrics.event(Ran(number, {}, "", 300, 2100), at + 0.002)
        answer = opened(number, 2, HopTiming("phone", "stem", 1, 2, 3, 4), HopTiming("cloud", "middle", 9, 9, 9, 9, 4))
        metrics.instruction(Send("in:1", answer), at + 0.003)
        metrics.event(Received("in:1", Done(_SID, number)), at + 0.01)
    stats = WorkerStats(2, 5, 900_000, bool(not_ready), 4, (PeerStats("phone", "up", count=2),))
    reading = Reading(4000.0, not not_ready, stats, EngineStats({"middle": 12.4e6, "spare": 3e6}, 8e9))
    found: dict[str, Any] = finite(snapshot(Source(about, metrics, reading, not_ready, NOW, 1.79e9)))
    return found


def opened(rid: int, hop: int, *trace: HopTiming) -> Open:
    route = (Hop("phone", "stem"), Hop("cloud", "middle"), Hop("phone", "head"))
    return Open(_SID, rid, 1, 0, "phone+cloud-1", hop, route, (), 1000, trace)


def pages() -> list[Page]:
    """A session, two workers, and one that is not there."""
    found = []
    for port, data in enumerate((session_data(), worker_data(), worker_data("draining")), start=9100):
        found.append(Page(f"http://127.0.0.1:{port}/stats", Stats.model_validate(data), data))
    return [*found, Page("http://10.0.0.9:9100/stats", error="unreachable: Connection refused")]
