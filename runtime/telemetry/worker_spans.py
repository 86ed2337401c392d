"""Watches a worker and writes a span for each hop that it serves, on its own clock.

A hop begins with its announcement and ends when its results are sent on. Its parent is the session's span of the same
hop, whose id follows from the request (`tracing.py`); under it are the time in which tensors arrived, the wait and the
run. The session's own placement of the same hop is an estimate, so the two need not agree to the microsecond, and hosts
whose clocks differ show it.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flagsplit.runtime.events import Event, Instruction, Send
from flagsplit.runtime.telemetry.request_spans import hop_facts
from flagsplit.runtime.telemetry.settings import About
from flagsplit.runtime.telemetry.tracing import (
    INTERNAL,
    SERVER,
    Kind,
    Span,
    Value,
    child_span_id,
    context_of,
    hop_span_id,
)
from flagsplit.transport.channel import Received
from flagsplit.transport.messages import Chunk, Failed, Open

_MOST_HOPS = 8192
_Key = tuple[str, int, int, int]


@dataclass
class _Hop:
    opened: Open
    began_s: float
    arrived_s: float


class WorkerSpans:
    """Makes spans of what a worker does.

    Args:
        about: the worker.
        write: takes the spans of a hop that ended.
    """

    def __init__(self, about: About, write: Callable[[Sequence[Span]], None]) -> None:
        self._about = about
        self._write = write
        self._offset_ns = time.time_ns() - time.monotonic_ns()
        self._hops: OrderedDict[_Key, _Hop] = OrderedDict()

    def event(self, event: Event, now: float) -> None:
        """See tensors arrive."""
        match event:
            case Received(_, Open() as opened):
                self._hops.setdefault((opened.sid, opened.rid, opened.attempt, opened.hop), _Hop(opened, now, now))
                if len(self._hops) > _MOST_HOPS:
                    self._hops.popitem(last=False)
            case Received(_, Chunk() as chunk):
                hop = self._hops.get((chunk.sid, chunk.rid, chunk.attempt, chunk.hop))
                if hop is not None:
                    hop.arrived_s = now

    def instruction(self, instruction: Instruction, now: float) -> None:
        """See results leave."""
        match instruction:
            case Send(_, Open() as opened):
                hop = self._hops.pop((opened.sid, opened.rid, opened.attempt, opened.hop - 1), None)
                if hop is not None:
                    self._served(hop, opened, now)
            case Send(_, Failed() as failed) if failed.tier == self._about.tier:
                for key in [key for key in self._hops if key[:3] == (failed.sid, failed.rid, failed.attempt)]:
                    self._finish(self._hops.pop(key), now, {}, f"{failed.code}: {failed.reason}")

    def turn(self, now: float) -> None:
        """Nothing to see."""

    def _served(self, hop: _Hop, onward: Open, now: float) -> None:
        timing = onward.trace[-1]
        ran_s = max(now - timing.run_us / 1e6, hop.began_s)
        waited_s = max(ran_s - timing.wait_us / 1e6, hop.began_s)
        parts = {"receive": (hop.began_s, hop.arrived_s)}
        if timing.segment:
            parts |= {"wait": (waited_s, ran_s), "run": (ran_s, now)}
        self._finish(hop, now, hop_facts(timing), "", parts)

    def _finish(
        self,
        hop: _Hop,
        now: float,
        facts: dict[str, Value],
        error: str,
        parts: dict[str, tuple[float, float]] | None = None,
    ) -> None:
        opened = hop.opened
        context = context_of(opened.traceparent, opened.sid, opened.rid)
        if not context.sampled:
            return
        parent = hop_span_id(context.trace_id, opened.sid, opened.rid, opened.attempt, opened.hop)
        span_id = child_span_id(parent, "served")
        name = f"serve {opened.route[opened.hop].segment or 'relay'}"
        facts = {
            "flagsplit.rid": opened.rid,
            "flagsplit.attempt": opened.attempt,
            "flagsplit.plan": opened.plan,
            **facts,
        }
        self._write(
            [
                self._span(name, context.trace_id, span_id, parent, (hop.began_s, now), facts, error),
                *(
                    self._span(what, context.trace_id, child_span_id(span_id, what), span_id, when, {}, "")
                    for what, when in (parts or {}).items()
                    if when[1] > when[0]
                ),
            ]
        )

    def _span(
        self,
        name: str,
        trace_id: str,
        span_id: str,
        parent_id: str,
        when: tuple[float, float],
        facts: dict[str, Value],
        error: str,
    ) -> Span:
        start_ns, end_ns = (int(at_s * 1e9) + self._offset_ns for at_s in when)
        kind: Kind = SERVER if name.startswith("serve") else INTERNAL
        facts = {"flagsplit.tier": self._about.tier, **facts}
        return Span(name, trace_id, span_id, parent_id, start_ns, end_ns, kind, facts, error)
