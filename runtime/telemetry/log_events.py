"""What happens to peers and requests, as log records with fields: tier, peer, rid, attempt, plan, trace_id, numbers.

Peers that come and go are information, failures and violations are warnings. Requests that go well are for debugging:
at a thousand a second a line each would be the worker's main work.
"""

import logging
from collections import OrderedDict
from typing import Any

from flagsplit.runtime.events import Deliver, Event, Fail, Instruction, Leave, Ran, Run, Send, Submit, TierChanged
from flagsplit.runtime.telemetry.logs import event_extra
from flagsplit.runtime.telemetry.peers import PeerTiers
from flagsplit.runtime.telemetry.settings import About
from flagsplit.runtime.telemetry.tracing import context_of
from flagsplit.transport.channel import Down, Received, Up, Violated
from flagsplit.transport.messages import Drain, Failed, Hello, Open, Reject, Welcome

_log = logging.getLogger(__name__)
_MOST_REMEMBERED = 4096


class LogEvents:
    """Logs what an operator wants to know.

    Args:
        about: who is watched.
        peers: which tier a peer is of.
    """

    def __init__(self, about: About, peers: PeerTiers) -> None:
        self._about = about
        self._peers = peers
        self._segments: dict[int, str] = {}
        self._traceparents: OrderedDict[tuple[str, int], str] = OrderedDict()

    def event(self, event: Event, now: float) -> None:  # noqa: ARG002 - records have a time of their own
        """Log an event."""
        match event:
            case Up(peer) if not peer.startswith("in:"):
                self._say(logging.INFO, "peer_up", f"connected to {peer}", peer=peer)
            case Down(peer, reason):
                self._say(logging.INFO, "peer_down", f"{peer} is gone: {reason}", peer=peer, reason=reason)
            case Violated(peer, reason):
                text = f"{peer} broke the protocol: {reason}"
                self._say(logging.WARNING, "violation", text, peer=peer, reason=reason)
            case Received(peer, Hello() as hello):
                text = f"a {hello.role} says hello"
                self._say(logging.INFO, "hello", text, peer=peer, role=hello.role, bundle=hello.bundle)
            case Submit(rid):
                self._learn(self._about.instance, rid, event.traceparent)
            case Received(peer, Open() as opened):
                self._learn(opened.sid, opened.rid, opened.traceparent)
                self._opened("received", peer, opened)
            case Ran(token) if event.error and event.error != "skipped":
                segment = self._segments.get(token, "")
                text = f"segment {segment} failed: {event.error}"
                self._say(logging.WARNING, "run_failed", text, segment=segment, reason=event.error)
            case Leave():
                self._say(logging.INFO, "leave", "saying goodbye to all")
        if isinstance(event, Ran):
            segment = self._segments.pop(event.token, "")
            numbers = {"wait_us": event.wait_us, "run_us": event.run_us}
            self._say(logging.DEBUG, "ran", f"ran {segment}", segment=segment, **numbers)

    def instruction(self, instruction: Instruction, now: float) -> None:  # noqa: ARG002 - as above
        """Log an instruction."""
        match instruction:
            case Run(token, segment):
                self._segments[token] = segment
            case Send(peer, Welcome()):
                self._say(logging.INFO, "welcome", f"{peer} is welcome", peer=peer)
            case Send(peer, Reject(code, reason)):
                self._say(logging.WARNING, "rejected", f"refused {peer}: {reason}", peer=peer, code=code, reason=reason)
            case Send(peer, Failed() as failed):
                self._failed(peer, failed)
            case Send(peer, Open() as opened):
                self._opened("sent", peer, opened)
            case Send(_, Drain(reason)):
                self._say(logging.INFO, "drain", f"taking nothing new: {reason}", reason=reason)
            case TierChanged(tier, state, reason):
                level = logging.INFO if state == "up" else logging.WARNING
                self._say(level, f"tier_{state}", f"tier {tier} is {state}", peer=tier, reason=reason)
            case Deliver(rid, _, report):
                self._request(logging.DEBUG, "answered", rid, plan=report.plan, latency_ms=report.latency_ms)
            case Fail(rid, error):
                self._request(logging.WARNING, "failed", rid, reason=str(error))

    def turn(self, now: float) -> None:
        """Nothing to say."""

    def _failed(self, peer: str, failed: Failed) -> None:
        self._say(
            logging.WARNING,
            "attempt_failed",
            f"request {failed.rid} failed at {failed.tier}: {failed.reason}",
            peer=peer,
            rid=failed.rid,
            attempt=failed.attempt,
            code=failed.code,
            reason=failed.reason,
            trace_id=self._trace_id(failed.sid, failed.rid),
        )

    def _opened(self, what: str, peer: str, opened: Open) -> None:
        if _log.isEnabledFor(logging.DEBUG):
            self._say(
                logging.DEBUG,
                f"tensors_{what}",
                f"request {opened.rid}, hop {opened.hop}: tensors {what}",
                peer=peer,
                peer_tier=self._peers.tier_of(peer),
                rid=opened.rid,
                attempt=opened.attempt,
                plan=opened.plan,
                trace_id=self._trace_id(opened.sid, opened.rid),
                bytes=sum(header.size_bytes for header in opened.tensors),
            )

    def _request(self, level: int, event: str, rid: int, **fields: Any) -> None:
        if _log.isEnabledFor(level):
            trace_id = self._trace_id(self._about.instance, rid)
            self._say(level, event, f"request {rid} {event}", rid=rid, trace_id=trace_id, **fields)

    def _learn(self, sid: str, rid: int, traceparent: str) -> None:
        """Remember whose trace a request is in; those without a caller's need no memory."""
        if traceparent:
            self._traceparents[sid, rid] = traceparent
            if len(self._traceparents) > _MOST_REMEMBERED:
                self._traceparents.popitem(last=False)

    def _trace_id(self, sid: str, rid: int) -> str:
        return context_of(self._traceparents.get((sid, rid), ""), sid, rid).trace_id

    def _say(self, level: int, event: str, text: str, **fields: Any) -> None:
        _log.log(level, "%s", text, extra=event_extra(event, {"tier": self._about.tier, **fields}))
