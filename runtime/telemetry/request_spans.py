"""The spans of one request of a session: the request, its attempts, the hops of each, what waited, ran, crossed links.

All are on the session's clock. Runs of the session's tier end when their results are sent on; hops of other tiers are
placed by their timings (`placement.py`), and say so in the attribute `flagsplit.placed`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flagsplit.runtime.report import Report
from flagsplit.runtime.telemetry.placement import place
from flagsplit.runtime.telemetry.tracing import (
    CLIENT,
    INTERNAL,
    Kind,
    Span,
    TraceContext,
    Value,
    child_span_id,
    hop_span_id,
    request_span_id,
)
from flagsplit.transport.messages import HopTiming, Open


@dataclass
class _Attempt:
    """What is known of an attempt. `covered` hops have spans; `sent` and `arrived` say when, by hop."""

    number: int
    plan: str
    span_id: str
    started_s: float
    own_us: int = 0
    covered: int = 0
    sent: dict[int, float] = field(default_factory=dict)
    arrived: dict[int, tuple[Open, float]] = field(default_factory=dict)


class RequestSpans:
    """Collects spans until the request ends.

    Args:
        context: where the request stands in its trace.
        tier: the session's tier.
        sid, rid: the session's id and the request's number.
        submitted_s: when it was asked.
        offset_ns: from the session's clock to Unix time.
    """

    def __init__(
        self, context: TraceContext, tier: str, sid: str, rid: int, submitted_s: float, offset_ns: int
    ) -> None:
        self._context, self._tier, self._sid, self._rid = context, tier, sid, rid
        self._submitted_s, self._offset_ns = submitted_s, offset_ns
        self._root = request_span_id(context.trace_id, sid, rid)
        self._attempt: _Attempt | None = None
        self._spans: list[Span] = []

    def sent(self, opened: Open, now: float) -> None:
        """Tensors were sent away: what this tier ran before has ended."""
        attempt = self._attempt_of(opened.attempt, opened.plan, now)
        self._settle(attempt)
        self._own(attempt, opened.trace[attempt.covered : opened.hop], now)
        attempt.covered = opened.hop
        attempt.sent[opened.hop] = now

    def arrives(self, opened: Open, now: float) -> None:
        """Tensors come back."""
        if self._attempt is not None and self._attempt.number == opened.attempt:
            self._attempt.arrived.setdefault(opened.hop, (opened, now))

    def still_arrives(self, attempt: int, hop: int, now: float) -> None:
        """A piece of them came."""
        found = self._attempt
        if found is not None and found.number == attempt and hop in found.arrived:
            found.arrived[hop] = (found.arrived[hop][0], now)

    def answered(self, report: Report, now: float) -> list[Span]:
        """The request has its answer; all its spans."""
        attempt = self._attempt_of(report.attempts, report.plan, now)
        self._settle(attempt)
        for tier in report.tiers:
            rest_us = int(tier.run_ms * 1e3) - attempt.own_us
            if tier.tier == self._tier and tier.segments and rest_us > 0:
                self._own(attempt, [HopTiming(tier.tier, tier.segments[-1], 0, rest_us, 0, 0)], now)
        return self._end(
            now,
            {"flagsplit.plan": report.plan, "flagsplit.attempts": report.attempts, "flagsplit.basis": report.basis},
        )

    def failed(self, error: str, now: float) -> list[Span]:
        """The request has no answer; all its spans."""
        return self._end(now, {}, error)

    def _attempt_of(self, number: int, plan: str, now: float) -> _Attempt:
        attempt = self._attempt
        if attempt is None or attempt.number != number:
            self._end_attempt(now, "another attempt took over")
            span_id = child_span_id(self._root, "attempt", number)
            began_s = now if attempt is not None else self._submitted_s
            attempt = self._attempt = _Attempt(number, plan, span_id, began_s)
        return attempt

    def _settle(self, attempt: _Attempt) -> None:
        """Place the hops whose tensors came back."""
        for back, (opened, complete_s) in sorted(attempt.arrived.items()):
            gone = max((hop for hop in attempt.sent if hop < back), default=None)
            if gone is not None and gone >= attempt.covered:
                self._remote(attempt, gone, opened.trace[gone:back], complete_s)
                attempt.covered = back
        attempt.arrived.clear()

    def _remote(self, attempt: _Attempt, first: int, hops: Sequence[HopTiming], complete_s: float) -> None:
        placed = place(attempt.sent[first], complete_s, hops)
        for index, hop in enumerate(hops):
            wait, run = placed[3 * index + 1 : 3 * index + 3]
            span_id = self._hop_id(attempt, first + index)
            facts = {**hop_facts(hop), "flagsplit.placed": "by the hop's timing"}
            self._add(hop_name(hop), span_id, attempt.span_id, wait.start_s, run.end_s, facts, CLIENT)
            for part in (wait, run):
                if part.end_s > part.start_s:
                    part_id, where = child_span_id(span_id, part.what), {"flagsplit.tier": hop.tier}
                    self._add(part.what, part_id, span_id, part.start_s, part.end_s, where)
        names = [self._tier, *(hop.tier for hop in hops), self._tier]
        for part in placed[::3]:
            link = f"{names[part.hop]} → {names[part.hop + 1]}"
            part_id = child_span_id(attempt.span_id, "link", first + part.hop)
            facts = {"flagsplit.link": link, "flagsplit.placed": "by bytes"}
            self._add(link, part_id, attempt.span_id, part.start_s, part.end_s, facts)

    def _own(self, attempt: _Attempt, hops: Sequence[HopTiming], now: float) -> None:
        """Runs of this tier, the last of which ended just now."""
        end_s = now
        for number, hop in reversed(list(enumerate(hops, start=attempt.covered))):
            start_s = max(end_s - hop.run_us / 1e6, self._submitted_s)
            # A run that an earlier attempt asked for belongs to both.
            over = attempt.span_id if start_s >= attempt.started_s else self._root
            self._add(hop_name(hop), self._hop_id(attempt, number), over, start_s, end_s, hop_facts(hop))
            attempt.own_us += hop.run_us
            end_s = start_s

    def _hop_id(self, attempt: _Attempt, hop: int) -> str:
        return hop_span_id(self._context.trace_id, self._sid, self._rid, attempt.number, hop)

    def _end_attempt(self, now: float, error: str) -> None:
        attempt = self._attempt
        if attempt is not None:
            facts: dict[str, Value] = {"flagsplit.attempt": attempt.number, "flagsplit.plan": attempt.plan}
            name = f"attempt {attempt.number}"
            self._add(name, attempt.span_id, self._root, attempt.started_s, now, facts, error=error)

    def _end(self, now: float, facts: Mapping[str, Value], error: str = "") -> list[Span]:
        self._end_attempt(now, error)
        facts = {"flagsplit.rid": self._rid, **facts}
        self._add("request", self._root, self._context.parent_id, self._submitted_s, now, facts, error=error)
        return self._spans[::-1]

    def _add(
        self,
        name: str,
        span_id: str,
        parent_id: str,
        start_s: float,
        end_s: float,
        facts: Mapping[str, Value],
        kind: Kind = INTERNAL,
        error: str = "",
    ) -> None:
        start_ns, end_ns = (int(at_s * 1e9) + self._offset_ns for at_s in (start_s, end_s))
        facts = {"flagsplit.tier": self._tier, **facts}
        self._spans.append(Span(name, self._context.trace_id, span_id, parent_id, start_ns, end_ns, kind, facts, error))


def hop_name(hop: HopTiming) -> str:
    """A hop's tier and what it did there."""
    return f"{hop.tier} {hop.segment or 'relay'}"


def hop_facts(hop: HopTiming) -> dict[str, Value]:
    """A hop's timing as attributes: microseconds, bytes, requests that ran together."""
    return {
        "flagsplit.tier": hop.tier,
        "flagsplit.segment": hop.segment,
        "flagsplit.wait_us": hop.wait_us,
        "flagsplit.run_us": hop.run_us,
        "flagsplit.bytes_in": hop.bytes_in,
        "flagsplit.bytes_out": hop.bytes_out,
        "flagsplit.batch": hop.batch,
    }
