"""Watches a session and writes the spans of each request when it ends (`request_spans.py`)."""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from flagsplit.runtime.events import Abandon, Deliver, Event, Fail, Instruction, Send, Submit
from flagsplit.runtime.telemetry.request_spans import RequestSpans
from flagsplit.runtime.telemetry.settings import About
from flagsplit.runtime.telemetry.tracing import Span, context_of
from flagsplit.transport.channel import Received
from flagsplit.transport.messages import Chunk, Open

_MOST_REQUESTS = 4096


class SessionSpans:
    """Makes spans of what a session does.

    Args:
        about: the session.
        write: takes the spans of a request that ended.
    """

    def __init__(self, about: About, write: Callable[[Sequence[Span]], None]) -> None:
        self._about = about
        self._write = write
        self._offset_ns = time.time_ns() - time.monotonic_ns()
        self._requests: OrderedDict[int, RequestSpans] = OrderedDict()

    def event(self, event: Event, now: float) -> None:
        """See what was asked and what came."""
        match event:
            case Submit(rid):
                self._begin(rid, event.traceparent, now)
            case Received(_, Open() as opened) if self._is_known(opened):
                self._requests[opened.rid].arrives(opened, now)
            case Received(_, Chunk() as chunk) if self._is_known(chunk):
                self._requests[chunk.rid].still_arrives(chunk.attempt, chunk.hop, now)
            case Abandon(rid) if rid in self._requests:
                self._write(self._requests.pop(rid).failed("cancelled", now))

    def instruction(self, instruction: Instruction, now: float) -> None:
        """See what was sent and how it ended."""
        match instruction:
            case Send(_, Open() as opened) if self._is_known(opened):
                self._requests[opened.rid].sent(opened, now)
            case Deliver(rid, _, report) if rid in self._requests:
                self._write(self._requests.pop(rid).answered(report, now))
            case Fail(rid, error) if rid in self._requests:
                self._write(self._requests.pop(rid).failed(str(error), now))

    def turn(self, now: float) -> None:
        """Nothing to see."""

    def _begin(self, rid: int, traceparent: str, now: float) -> None:
        about = self._about
        context = context_of(traceparent, about.instance, rid)
        if context.sampled:
            self._requests[rid] = RequestSpans(context, about.tier, about.instance, rid, now, self._offset_ns)
            if len(self._requests) > _MOST_REQUESTS:
                self._requests.popitem(last=False)

    def _is_known(self, message: Open | Chunk) -> bool:
        return message.sid == self._about.instance and message.rid in self._requests
