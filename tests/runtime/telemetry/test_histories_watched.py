"""Random histories with everything that watches in place: counts agree with what happened, traces are whole."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from tests.runtime.test_histories import History

from flagsplit.runtime.events import Deliver, Event, Fail, Instruction
from flagsplit.runtime.telemetry.log_events import LogEvents
from flagsplit.runtime.telemetry.observer import Observer
from flagsplit.runtime.telemetry.recent import Recent
from flagsplit.runtime.telemetry.seen import Seen
from flagsplit.runtime.telemetry.session_metrics import SessionMetrics
from flagsplit.runtime.telemetry.session_spans import SessionSpans
from flagsplit.runtime.telemetry.settings import About
from flagsplit.runtime.telemetry.tracing import Span
from flagsplit.runtime.telemetry.worker_metrics import WorkerMetrics
from flagsplit.runtime.telemetry.worker_spans import WorkerSpans

pytestmark = pytest.mark.slow


def watch(machine: Any, observers: Sequence[Observer]) -> None:
    """Show a machine's events and instructions to observers, as a shell does."""
    real = machine.handle

    def handle(event: Event, now: float) -> list[Instruction]:
        for each in observers:
            each.event(event, now)
        found: list[Instruction] = real(event, now)
        for instruction in found:
            for each in observers:
                each.instruction(instruction, now)
        for each in observers:
            each.turn(now)
        return found

    machine.handle = handle


def total(registry: CollectorRegistry, name: str, **labels: str) -> float:
    """The sum of a metric's samples with these labels."""
    return sum(
        sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


class Watched:
    """A history with observers on the session and on the first start of every worker."""

    def __init__(self, seed: int) -> None:
        self.history = history = History(seed, alone=False)
        self.tiers = ("phone", *history.workers)
        self.spans: list[list[Span]] = []
        self.worker_spans: list[list[Span]] = []
        session = history.cluster.session
        about = About("session", "phone", self.tiers, (), "d" * 64, session.instance)
        self.metrics = SessionMetrics("phone", self.tiers, (), Recent())
        self.seen = Seen(self.tiers, self.metrics.peers)
        spans = SessionSpans(about, lambda found: self.spans.append(list(found)))
        watch(session.machine, [self.metrics, self.seen, spans, LogEvents(about, self.metrics.peers)])
        self.workers = {}
        for tier in history.workers:
            about = About("worker", tier, self.tiers, (), "d" * 64, "0" * 32)
            metrics = self.workers[tier] = WorkerMetrics(tier, self.tiers, (), Recent())
            made = WorkerSpans(about, lambda found: self.worker_spans.append(list(found)))
            watch(history.cluster.worker(tier), [metrics, made, LogEvents(about, metrics.peers)])


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_the_figures_are_right(seed: int) -> None:
    watched = Watched(seed)
    history = watched.history
    history.play(heals=True)
    history.check()
    answers, registry = history.cluster.answers, watched.metrics.registry
    delivered = {rid: each for rid, each in answers.items() if isinstance(each, Deliver)}
    given_up = [rid for rid, each in answers.items() if isinstance(each, Fail) and rid not in history.abandoned]
    count = "flagsplit_requests_total"
    assert total(registry, count, outcome="answered") == len(delivered)
    assert total(registry, count, outcome="failed") == len(given_up)
    assert total(registry, count, outcome="cancelled") == len(history.abandoned)
    plans = Counter(each.report.plan for each in delivered.values())
    assert {plan: total(registry, "flagsplit_answers_total", plan=plan) for plan in plans} == plans
    assert total(registry, "flagsplit_request_attempts_sum") == sum(d.report.attempts for d in delivered.values())
    assert total(registry, "flagsplit_request_seconds_count") == len(delivered)
    states = {peer.tier: peer.state for peer in watched.seen.peers()}
    assert states == {tier: change.state for tier, change in history.cluster.tiers.items()}


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_traces_are_whole(seed: int) -> None:
    watched = Watched(seed)
    watched.history.play(heals=True)
    roots = [spans[0] for spans in watched.spans]
    assert len(roots) == len(watched.history.asked)
    assert len({root.trace_id for root in roots}) == len(roots)
    for spans in watched.spans:
        check_tree(spans)
        answer = watched.history.cluster.answers.get(int(spans[0].attributes["flagsplit.rid"]))
        assert (spans[0].error == "") == isinstance(answer, Deliver)
        if isinstance(answer, Deliver):
            attempts = [span for span in spans if span.name.startswith("attempt")]
            assert not attempts[0].error
            assert attempts[0].attributes["flagsplit.plan"] == answer.report.plan
    known = {span.span_id for spans in watched.spans for span in spans}
    traces = {root.trace_id for root in roots}
    for spans in watched.worker_spans:
        assert spans[0].trace_id in traces
        check_tree(spans)
    assert any(spans[0].parent_id in known for spans in watched.worker_spans) or not watched.worker_spans


def check_tree(spans: Sequence[Span]) -> None:
    """One root, one trace, different ids, every other span within its parent."""
    root, by_id = spans[0], {span.span_id: span for span in spans}
    assert len(by_id) == len(spans)
    for span in spans:
        assert span.trace_id == root.trace_id
        assert (len(span.trace_id), len(span.span_id)) == (32, 16)
        assert span.start_ns <= span.end_ns
    for span in spans[1:]:
        parent = by_id[span.parent_id]
        slack_ns = 1000  # times are floats of seconds until they are written
        assert parent.start_ns - slack_ns <= span.start_ns
        assert span.end_ns <= parent.end_ns + slack_ns
