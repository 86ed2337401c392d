"""Token streams as Prometheus metrics, beside those of any worker: what clients waited for, and how the engine does.

Histograms grow with messages; the rest is read from the engine when a page is asked for. Names are listed in
`docs/operations.md`.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from flagsplit.runtime.events import Event, Instruction, Send
from flagsplit.runtime.generation.stats import EngineStats
from flagsplit.runtime.telemetry.labels import BoundedLabel
from flagsplit.transport.channel import Received
from flagsplit.transport.messages import Cancel, Done, Failed, Open, Tokens

_FIRST_S: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_STEP_S: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_COUNTS: Final = (1, 2, 4, 8, 16, 32, 64, 128)
_MOST_OPEN: Final = 8192


class StreamMetrics(Collector):
    """Observes a service's machine, and reads its engine.

    Args:
        registry: where the metrics go.
        read: gives the engine's figures; called on the thread that asks for a page.
    """

    def __init__(self, registry: CollectorRegistry, read: Callable[[], EngineStats]) -> None:
        self._read = read
        self._code = BoundedLabel()
        self._begun: OrderedDict[tuple[str, int], float] = OrderedDict()

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"flagsplit_{name}", text, registry=registry, buckets=buckets)

        self._first_s = histogram("stream_first_token_seconds", "From the asking to the first token.", _FIRST_S)
        self._step_s = histogram("stream_step_seconds", "Time of the step that made a token.", _STEP_S)
        self._batch = histogram("stream_batch", "How many streams were in the step that made a token.", _COUNTS)
        self._resumed = Counter("flagsplit_streams_resumed", "Attempts that went on with tokens.", registry=registry)
        self._refused = Counter(
            "flagsplit_stream_refusals", "Attempts that were answered Failed.", ["code"], registry=registry
        )
        registry.register(self)

    def event(self, event: Event, now: float) -> None:
        """Count an event."""
        match event:
            case Received(_, Open(sid, rid, attempt) as opened) if opened.generation:
                self._begun.setdefault((sid, rid), now)
                self._resumed.inc(attempt > 1 and '"from"' not in opened.generation)
                if len(self._begun) > _MOST_OPEN:
                    self._begun.popitem(last=False)
            case Received(_, Done(sid, rid) | Cancel(sid, rid)):
                self._begun.pop((sid, rid), None)

    def instruction(self, instruction: Instruction, now: float) -> None:
        """Count an instruction."""
        match instruction:
            case Send(_, Tokens() as said) if said.tokens:
                since = self._begun.pop((said.sid, said.rid), None)
                if since is not None and not said.offset:
                    self._first_s.observe(now - since)
                self._step_s.observe(said.run_us / 1e6)
                self._batch.observe(said.batch)
            case Send(_, Failed(code=code)):
                self._refused.labels(self._code(code)).inc()

    def turn(self, now: float) -> None:
        """Nothing to count."""

    def describe(self) -> Iterator[Metric]:
        """Nothing: the names are found by collecting."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """What the engine says now."""
        stats = self._read()
        streams = GaugeMetricFamily("flagsplit_streams", "Streams at the engine.", labels=["state"])
        for state, count in stats.streams.items():
            streams.add_metric([state], count)
        yield streams
        ended = CounterMetricFamily("flagsplit_streams_ended", "Streams that ended, by reason or code.", labels=["how"])
        for how, count in stats.ended.items():
            ended.add_metric([how], count)
        yield ended
        yield CounterMetricFamily("flagsplit_tokens", "Tokens given out.", value=stats.tokens)
        yield CounterMetricFamily("flagsplit_tokens_prefilled", "Tokens put into caches.", value=stats.prefilled)
        yield CounterMetricFamily("flagsplit_evictions", "Streams that lost their slots.", value=stats.evictions)
        yield CounterMetricFamily("flagsplit_step_failures", "Steps that were not done.", value=stats.failures)
        yield GaugeMetricFamily("flagsplit_slots", "Streams that can make tokens at once.", value=stats.slots)
        yield GaugeMetricFamily("flagsplit_kv_bytes", "What the arrays of caches take.", value=stats.kv_bytes)
        yield GaugeMetricFamily("flagsplit_kv_budget_bytes", "What they may take.", value=stats.kv_budget_bytes)
        yield GaugeMetricFamily("flagsplit_tokens_per_second", "Of the last ten seconds.", value=stats.tokens_per_s)


def engine_snapshot(stats: EngineStats) -> dict[str, Any]:
    """What `/stats` says of the engine."""
    steps = sum(stats.batches.values())
    return {
        "streams": dict(stats.streams),
        "slots": stats.slots,
        "kv_bytes": stats.kv_bytes,
        "kv_budget_bytes": stats.kv_budget_bytes,
        "tokens": stats.tokens,
        "tokens_per_s": stats.tokens_per_s,
        "evictions": stats.evictions,
        "failures": stats.failures,
        "ended": dict(stats.ended),
        "batch_mean": sum(size * count for size, count in stats.batches.items()) / steps if steps else math.nan,
        "first_ms": {"p50": stats.first_ms_p50, "p95": stats.first_ms_p95},
    }
