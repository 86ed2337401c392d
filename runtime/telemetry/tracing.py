"""Traces of requests: the W3C context that names them, spans, and the ids that both ends of a link agree on.

A trace id is the caller's if it gave a traceparent, else it follows from the session's id and the request's number.
Span ids follow from the trace id and what the span is of. So a worker's own spans fit under the session's without a
word about spans on the wire, and machines need no chance to make them. `session_spans.py` and `worker_spans.py` make
spans out of events, `otlp.py` and `chrome.py` write them.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from flagsplit.errors import InputError

INTERNAL: Final = 1
SERVER: Final = 2
CLIENT: Final = 3
Kind = Literal[1, 2, 3]
Value = str | int | float | bool

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True)
class TraceContext:
    """A place in a trace.

    Attributes:
        trace_id: 32 hex digits.
        parent_id: 16 hex digits, the span that the next one is under; "" if that is the first.
        sampled: whether it is to be recorded.
    """

    trace_id: str
    parent_id: str = ""
    sampled: bool = True


@dataclass(frozen=True)
class Span:
    """Something that lasted.

    Attributes:
        name: what it was.
        trace_id, span_id, parent_id: 32, 16 and 16 hex digits; the last may be "".
        start_ns, end_ns: nanoseconds since 1970.
        kind: as OTLP numbers them.
        attributes: more about it.
        error: what went wrong, "" if nothing did.
    """

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    kind: Kind = INTERNAL
    attributes: Mapping[str, Value] = field(default_factory=dict)
    error: str = ""


def parse_traceparent(text: str) -> TraceContext:
    """The context that a caller handed over.

    Raises:
        InputError: it is no traceparent as W3C Trace Context (https://www.w3.org/TR/trace-context/) has it.
    """
    match = _TRACEPARENT.fullmatch(text)
    wrong = match is None or match[1] == "ff" or not int(match[2], 16) or not int(match[3], 16)
    if match is None or wrong or (match[1] == "00" and match[5]):
        raise InputError(f"expected a traceparent such as 00-{'a' * 32}-{'b' * 16}-01, came {text[:80]!r}")
    return TraceContext(match[2], match[3], bool(int(match[4], 16) & 1))


def context_of(traceparent: str, sid: str, rid: int) -> TraceContext:
    """The context of a request: the caller's, or a new one if it gave none that can be read."""
    try:
        return parse_traceparent(traceparent)
    except InputError:
        return TraceContext(_hex(32, "trace", sid, rid))


def request_span_id(trace_id: str, sid: str, rid: int) -> str:
    """Id of the span of a whole request."""
    return _hex(16, trace_id, sid, rid)


def hop_span_id(trace_id: str, sid: str, rid: int, attempt: int, hop: int) -> str:
    """Id of the session's span of a hop; the worker's own spans are under it."""
    return _hex(16, trace_id, sid, rid, attempt, hop)


def child_span_id(parent_id: str, *what: str | int) -> str:
    """Id of a span under another."""
    return _hex(16, parent_id, *what)


def outgoing_traceparent(traceparent: str, sid: str, rid: int) -> str:
    """What Open says to the workers: the trace of the caller, or a new one, and the span of the request.

    Args:
        traceparent: what the application gave, or "".
        sid, rid: the session's id and the request's number.
    """
    context = context_of(traceparent, sid, rid)
    return f"00-{context.trace_id}-{request_span_id(context.trace_id, sid, rid)}-{int(context.sampled):02x}"


def _hex(digits: int, *parts: str | int) -> str:
    """Derived hex digits, never all zero, which W3C forbids."""
    text = hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()[:digits]
    return text if int(text, 16) else "1" * digits
