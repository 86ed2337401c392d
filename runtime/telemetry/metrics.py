"""What a worker and a session have in common as Prometheus metrics, and how requests of each are counted.

Each has a registry of its own, so several can live in one process. Counters and histograms grow with events and
instructions; gauges are read from the newest stats when somebody asks (`gauges.py`). Names, labels and meaning are
listed in `docs/operations.md`.
"""

from collections.abc import Collection
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.process_collector import ProcessCollector

from flagsplit.runtime.events import Disconnect, Event, Instruction, Ran, Run, Send
from flagsplit.runtime.telemetry.labels import BoundedLabel
from flagsplit.runtime.telemetry.peers import PeerTiers
from flagsplit.runtime.telemetry.recent import Recent
from flagsplit.transport.channel import Received, Violated
from flagsplit.transport.messages import Chunk, Message, Open

_SECONDS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)
_MAX_SEGMENTS = 64


class MachineMetrics:
    """What every tier counts.

    Args:
        tier: the tier watched.
        tiers: names of all tiers, the session's first.
        segments: ids of the segments of this tier.
        recent: gets what `/stats` shows of the last minute.

    Attributes:
        registry: where all of it can be read.
        batched_runs: runs seen in messages that went out, where requests that ran together count as one.
    """

    def __init__(self, tier: str, tiers: Collection[str], segments: Collection[str], recent: Recent) -> None:
        self.registry = CollectorRegistry()
        self.tier = tier
        self.recent = recent
        self.peers = PeerTiers(tiers)
        self._segment = BoundedLabel(segments, _MAX_SEGMENTS)
        self._code = BoundedLabel()
        self._running: dict[int, str] = {}
        self.batched_runs = 0.0
        make = self._counter
        self.requests = make("requests", "Requests that ended here, by outcome and code.", "outcome", "code")
        self.requests.labels("answered", "")  # a rate needs the zero that it starts from
        self.failures = make("attempt_failures", "Attempts that a tier said it failed at.", "tier", "code")
        self.payload_bytes = make("payload_bytes", "Payload as it crossed the link.", "direction", "tier")
        self.squeezed_bytes = make("squeezed_bytes", "Compressed payloads, and what they are raw.", "direction", "form")
        self.messages = make("messages", "Messages of the wire protocol.", "direction", "type")
        self.violations = make("violations", "Connections cut because the peer broke the protocol.")
        self.runs = make("segment_runs", "Runs of segments.", "segment", "outcome")
        self.run_s = self._histogram("segment_run_seconds", "Time in the engine.", _SECONDS, "segment")
        self.wait_s = self._histogram("segment_wait_seconds", "Time until a run began.", _SECONDS, "segment")
        self.batch = self._histogram("batch_requests", "How many requests ran together, seen by each.", _COUNTS)
        # Looking a child up by its labels takes longer than counting; there are few, so each is looked up once.
        self._messages, self._payload = cache(self.messages.labels), cache(self.payload_bytes.labels)
        self._run_s, self._wait_s = cache(self.run_s.labels), cache(self.wait_s.labels)
        self._runs = cache(self.runs.labels)
        self.process = ProcessCollector(registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"flagsplit_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"flagsplit_{name}", text, labels, registry=self.registry, buckets=buckets)

    def event(self, event: Event, now: float) -> None:
        """Count an event."""
        self.peers.learn(event)
        match event:
            case Received(peer, message):
                self._message("in", peer, message)
            case Ran():
                self._ran(event, now)
            case Violated():
                self.violations.inc()

    def instruction(self, instruction: Instruction, now: float) -> None:  # noqa: ARG002 - for those that add to it
        """Count an instruction."""
        match instruction:
            case Send(peer, message):
                self._message("out", peer, message)
            case Run(token, segment):
                self._running[token] = segment
            case Disconnect(peer):
                self.peers.forget(peer)

    def turn(self, now: float) -> None:
        """Nothing to count."""

    def request(self, outcome: str, code: str = "") -> None:
        """Count a request that ended."""
        self.requests.labels(outcome, self._code(code)).inc()

    def failure(self, tier: str, code: str) -> None:
        """Count an attempt that a tier failed at."""
        self.failures.labels(self.peers.tier_of(tier), self._code(code)).inc()

    def _ran(self, event: Ran, now: float) -> None:
        segment = self._running.pop(event.token, "")
        label = self._segment(segment)
        if event.error:
            self._runs(label, "skipped" if event.error == "skipped" else "failed").inc()
            return
        self._runs(label, "done").inc()
        self._run_s(label).observe(event.run_us / 1e6)
        self._wait_s(label).observe(event.wait_us / 1e6)
        self.recent.run(now, segment, event.wait_us / 1e6, event.run_us / 1e6)

    def _message(self, direction: str, peer: str, message: Message) -> None:
        self._messages(direction, message.TYPE).inc()
        if isinstance(message, Chunk | Open) and message.payload:
            size_bytes = len(message.payload)
            self._payload(direction, self.peers.tier_of(peer)).inc(size_bytes)
            if isinstance(message, Chunk) and message.squeeze:
                self.squeezed_bytes.labels(direction, "wire").inc(size_bytes)
                self.squeezed_bytes.labels(direction, "raw").inc(message.raw_bytes)
        if isinstance(message, Open) and direction == "out" and message.trace:
            last = message.trace[-1]
            if last.tier == self.tier and last.segment:
                self.batch.observe(last.batch)
                self.batched_runs += 1 / last.batch
