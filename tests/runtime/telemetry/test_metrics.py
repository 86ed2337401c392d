"""What is counted, how many series that can make at most, and that the documentation lists all of it."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from tests.runtime.telemetry.test_histories_watched import total

from flagsplit.errors import UnavailableError
from flagsplit.runtime.events import (
    Abandon,
    Deliver,
    Event,
    Fail,
    Instruction,
    Ran,
    Run,
    Send,
    Withdraw,
)
from flagsplit.runtime.report import Report
from flagsplit.runtime.telemetry.gauges import Gauges, Reading
from flagsplit.runtime.telemetry.labels import MAX_VALUES, BoundedLabel
from flagsplit.runtime.telemetry.metrics import MachineMetrics
from flagsplit.runtime.telemetry.observer import Observer, Observers
from flagsplit.runtime.telemetry.recent import Recent, percentile
from flagsplit.runtime.telemetry.seen import Seen
from flagsplit.runtime.telemetry.session_metrics import SessionMetrics
from flagsplit.runtime.telemetry.stats import EngineStats, LinkStats, PeerStats, PlanStats, SessionStats, WorkerStats
from flagsplit.runtime.telemetry.worker_metrics import WorkerMetrics
from flagsplit.transport.channel import Down, Received, Violated
from flagsplit.transport.messages import (
    Cancel,
    Chunk,
    Done,
    Drain,
    Failed,
    Hello,
    Hop,
    HopTiming,
    Open,
    Pong,
    Reject,
    Welcome,
)

TIERS = ("phone", "edge", "cloud")
SID = "a" * 32
ROUTE = (Hop("phone", "s"), Hop("edge", "m"), Hop("phone", "h"))
OPERATIONS = Path(__file__).parents[3] / "docs" / "operations.md"


def opened(rid: int = 1, attempt: int = 1, hop: int = 1, trace: tuple[HopTiming, ...] = ()) -> Open:
    return Open(SID, rid, attempt, 0, "p", hop, ROUTE, (), 1000, trace)


def failed(code: str, tier: str = "edge", rid: int = 1) -> Failed:
    return Failed(SID, rid, 1, tier, code)


def worker() -> WorkerMetrics:
    return WorkerMetrics("edge", TIERS, ("m",), Recent())


def session() -> SessionMetrics:
    return SessionMetrics("phone", TIERS, ("s", "h"), Recent())


def show(observer: Observer, each: Event | Instruction, now: float) -> None:
    if isinstance(each, Event):
        observer.event(each, now)
    else:
        observer.instruction(each, now)


def feed(metrics: MachineMetrics, *story: Event | Instruction) -> CollectorRegistry:
    for now, each in enumerate(story):
        show(metrics, each, float(now))
    return metrics.registry


def requests(registry: CollectorRegistry) -> dict[str, float]:
    return {
        "/".join(filter(None, (sample.labels["outcome"], sample.labels["code"]))): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "flagsplit_requests_total" and sample.value
    }


def test_a_worker_counts_requests_by_how_they_ended() -> None:
    caller = f"in:{SID}"
    story: list[Event | Instruction] = []
    for rid in range(1, 6):
        story += [Received(caller, opened(rid)), Received(caller, opened(rid, hop=1))]
    story += [
        Received(caller, Done(SID, 1)),
        Received(caller, Done(SID, 1)),
        Received(caller, Cancel(SID, 2, 1)),
        Received(caller, opened(3, attempt=2)),
        Received(caller, Cancel(SID, 3, 1)),
        Withdraw(caller, SID, 3),
        Withdraw(caller, SID, 3),
        Send(caller, failed("compute", rid=4)),
        Send(caller, failed("unreachable", tier="cloud", rid=5)),
        Received(caller, opened(6)),
        Send(caller, failed("busy", rid=6)),
        Received(caller, Done(SID, 6)),
        Send(caller, Reject("draining")),
    ]
    registry = feed(worker(), *story)
    assert requests(registry) == {
        "answered": 1,
        "cancelled": 1,
        "abandoned": 1,
        "failed/compute": 1,
        "refused/busy": 1,
        "refused/draining": 1,
    }
    assert total(registry, "flagsplit_attempt_failures_total", tier="cloud", code="unreachable") == 1


def test_a_session_counts_what_the_application_got() -> None:
    report = Report("p", 3, 250.0, (), ())
    registry = feed(
        session(),
        Deliver(1, {}, report),
        Fail(2, UnavailableError("no")),
        Abandon(3),
        Fail(3, UnavailableError("abandoned")),
        Received("edge", failed("busy")),
    )
    assert requests(registry) == {"answered": 1, "failed/unavailable": 1, "cancelled": 1}
    assert total(registry, "flagsplit_answers_total", plan="p") == 1
    assert total(registry, "flagsplit_request_attempts_sum") == 3
    assert total(registry, "flagsplit_request_seconds_sum") == pytest.approx(0.25)
    assert total(registry, "flagsplit_attempt_failures_total", tier="edge", code="busy") == 1


def test_payload_and_what_compression_saves_by_tier() -> None:
    squeezed = Chunk(SID, 1, 1, 2, 0, 0, 0, "zstd", 4000, b"x" * 1000)
    metrics = worker()
    registry = feed(
        metrics,
        Received(f"in:{SID}", Hello((1, 0), (1, 1), SID, "session", "d" * 64, 1000)),
        Received(f"in:{SID}", Chunk(SID, 1, 1, 1, 0, 0, 0, payload=b"x" * 500)),
        Send("cloud@tcp://10.0.0.1:1", squeezed),
        Send("moon@tcp://10.0.0.1:1", squeezed),
        Down(f"in:{SID}", "gone"),
        Received(f"in:{SID}", Chunk(SID, 1, 1, 1, 0, 0, 0, payload=b"x" * 7)),
    )
    name = "flagsplit_payload_bytes_total"
    assert total(registry, name, direction="in", tier="phone") == 500
    assert total(registry, name, direction="out", tier="cloud") == 1000
    assert total(registry, name, direction="out", tier="unknown") == 1000
    assert total(registry, name, direction="in", tier="unknown") == 7
    squeezed_name = "flagsplit_squeezed_bytes_total"
    assert [total(registry, squeezed_name, direction="out", form=form) for form in ("wire", "raw")] == [2000, 8000]


def test_runs_waits_and_batches() -> None:
    timing = HopTiming("edge", "m", 1, 2, 3, 4, batch=4)
    trace = (HopTiming("phone", "s", 1, 2, 3, 4, batch=9), timing)
    metrics = worker()
    registry = feed(
        metrics,
        *(Run(token, "m", {}) for token in range(4)),
        Ran(0, {}, "", 2_000_000, 500_000),
        Ran(1, None, "skipped"),
        Ran(2, None, "it broke"),
        *(Send(f"in:{SID}", opened(rid, hop=2, trace=trace)) for rid in range(8)),
    )
    outcomes = [
        total(registry, "flagsplit_segment_runs_total", segment="m", outcome=o) for o in ("done", "skipped", "failed")
    ]
    assert outcomes == [1, 1, 1]
    assert total(registry, "flagsplit_segment_run_seconds_sum", segment="m") == 0.5
    assert total(registry, "flagsplit_segment_wait_seconds_sum", segment="m") == 2.0
    assert total(registry, "flagsplit_batch_requests_count") == 8
    assert total(registry, "flagsplit_batch_requests_sum") == 32
    assert metrics.batched_runs == 2


def test_strangers_cannot_make_series() -> None:
    """A thousand peers, codes, tiers, plans and segments leave a bounded number of series, in both roles."""
    flood: list[Event | Instruction] = []
    for n in range(1000):
        peer = f"in:{n:032x}"
        hop = replace(opened(n), route=(Hop(f"tier{n}"), *ROUTE[1:]))
        flood += [
            Received(peer, hop),
            Received(peer, Chunk(SID, n, 1, 1, 0, 0, 0, payload=b"x")),
            Violated(peer, f"reason {n}"),
            Send(peer, failed(f"code{n}")),
            Received("edge", failed(f"code{n}", tier=f"tier{n}")),
            Run(n, f"segment{n}", {}),
            Ran(n, {}),
            Deliver(n, {}, Report(f"plan{n}", 1, 1.0, (), ())),
        ]
    for metrics in (worker(), session()):
        registry = feed(metrics, *flood)
        series = [sample for family in registry.collect() for sample in family.samples]
        per_label = MAX_VALUES + 1
        assert len(series) < 64 * 2 * 18 + 12 * per_label
        assert not any("in:" in value for sample in series for value in sample.labels.values())
        assert total(registry, "flagsplit_segment_runs_total") == 1000
    assert total(registry, "flagsplit_answers_total", plan="other") == 1000 - MAX_VALUES


def test_labels_are_short_and_printable() -> None:
    label = BoundedLabel(["known"], 3)
    assert [label(text) for text in ("known", "a\nb\x1b[2J\u202e", "x" * 500, "late", "known")] == [
        "known",
        "a\\nb\\x1b[2J\\u202e",
        "x" * 80,
        "other",
        "known",
    ]


def readings() -> Iterator[Reading]:
    peers = (PeerStats("edge", "up", count=2, slowdown=1.5, wait_s=0.1, credit_paused=True), PeerStats("cloud", "down"))
    links = (LinkStats("phone", "edge", 1e6, 0.02, 0.001),)
    engine = EngineStats({"m": 100.0, "n": 20.0}, 1000.0)
    yield Reading(5.0, True, WorkerStats(1, 2, 3, True, 4, peers, links), engine)
    plans = (PlanStats("p", 0.1), PlanStats("q", 0.2), PlanStats("r", 0.3))
    switches = {f"reason{n}": 1 for n in range(50)}
    yield Reading(5.0, True, SessionStats(1, 2, 3, 4, 5, plans, peers, links, None, (), switches), engine, "p")


def test_gauges_say_what_the_stats_say() -> None:
    for reading in readings():
        registry = CollectorRegistry()
        registry.register(Gauges(lambda reading=reading: reading, {"tier": "edge"}))  # type: ignore[misc]
        stats = reading.stats
        assert total(registry, "flagsplit_queue_length") == 1
        assert total(registry, "flagsplit_held_bytes") == stats.held_bytes
        assert total(registry, "flagsplit_peers_up", tier="edge") == 2
        assert total(registry, "flagsplit_peers_up", tier="cloud") == 0
        assert total(registry, "flagsplit_credit_paused_peers") == 1
        assert total(registry, "flagsplit_resident_bytes") == 120
        assert total(registry, "flagsplit_link_rtt_seconds", source="phone", target="edge") == 0.02
        if isinstance(stats, SessionStats):
            assert total(registry, "flagsplit_plan_in_use", plan="p") == 1
            assert total(registry, "flagsplit_plan_predicted_seconds") == pytest.approx(0.3)
            assert total(registry, "flagsplit_plan_switches_total") == 50
            assert total(registry, "flagsplit_plan_switches_total", reason="other") == 50 - MAX_VALUES
            assert total(registry, "flagsplit_tier_slowdown", tier="edge") == 1.5


def test_the_documentation_lists_every_metric() -> None:
    row = re.compile(r"^\| `(flagsplit_\w+)` \|([^|]*)\| (both|worker|session) \|", re.MULTILINE)
    rows = row.findall(OPERATIONS.read_text())
    listed = {(name, roles) for name, _, of in rows for roles in (("worker", "session") if of == "both" else (of,))}
    labels = {name: {each.strip() for each in text.split(",") if each.strip()} for name, text, _ in rows}
    real = set()
    for role, metrics, reading in zip(("worker", "session"), (worker(), session()), readings(), strict=True):
        info = dict.fromkeys(("version", "role", "tier", "bundle"), "x")
        metrics.registry.register(Gauges(lambda reading=reading: reading, info))  # type: ignore[misc]
        metrics.request("failed", "x")
        for family in metrics.registry.collect():
            if family.name.startswith("flagsplit_") and not family.name.endswith("_created"):
                name = family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
                real.add((name, role))
                for sample in family.samples:
                    assert set(sample.labels) - {"le"} == labels[name]
    assert real == listed


def test_seen_follows_peers() -> None:
    metrics = worker()
    seen = Seen(TIERS, metrics.peers)
    welcome = Welcome((1, 1), SID, 0, "d" * 64, "cloud", 1, 1)
    story: list[Event | Instruction] = [
        Received("in:1", Hello((1, 0), (1, 1), SID, "session", "d" * 64, 1000)),
        Send("in:1", welcome),
        Received("cloud@x", welcome),
        Received("cloud@x", Pong(0, 0, 7, 0, 2_000_000, 9)),
    ]
    for each in story:
        for observer in (metrics, seen):
            show(observer, each, 0.0)
    assert seen.peers() == (PeerStats("phone", "up"), PeerStats("cloud", "up", "", 1, 7, 2.0, 9))
    seen.event(Down("in:1", "left"), 1.0)
    seen.event(Down("cloud@x", "went silent"), 1.0)
    assert [(peer.tier, peer.state, peer.reason) for peer in seen.peers()] == [("cloud", "down", "went silent")]
    seen.instruction(Send("in:1", Drain("bye", "d" * 64)), 1.0)
    assert not seen.draining
    seen.instruction(Send("in:1", Drain("bye")), 1.0)
    assert seen.draining


def test_an_observer_that_breaks_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []

    class Broken:
        def event(self, event: Event, now: float) -> None:
            calls.append("broken")
            raise ZeroDivisionError

        def instruction(self, instruction: Instruction, now: float) -> None:
            calls.append("never")

        def turn(self, now: float) -> None:
            calls.append("never")

    metrics = session()
    observers = Observers([Broken(), metrics])
    observers.event(Abandon(1), 0.0)
    observers.event(Abandon(2), 0.0)
    observers.turn(0.0)
    assert calls == ["broken"]
    assert total(metrics.registry, "flagsplit_requests_total", outcome="cancelled") == 2
    assert "Broken broke" in caplog.text


def test_the_last_minute() -> None:
    recent = Recent()
    for at in range(100):
        recent.answer(float(at), at / 1000)
    assert recent.latencies_s(99.0) == [at / 1000 for at in range(39, 100)]
    assert recent.rate_per_s(99.0, 1000.0) == pytest.approx(61 / 60)
    assert recent.rate_per_s(99.0, 99.0) == pytest.approx(61 / 60)
    seconds = recent.seconds(99.5)
    assert [each.answers for each in seconds] == [1] * 60
    assert seconds[-1].p50_s == 0.099
    recent.run(1.0, "m", 0.1, 0.2)
    assert recent.runs() == {"m": (1, [0.1], [0.2])}
    assert [percentile([1, 2, 3, 4], each) for each in (0, 50, 51, 99, 100)] == [1, 2, 3, 4, 4]
