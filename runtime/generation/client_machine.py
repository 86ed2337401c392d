"""The client of token streams as a pure state machine: where each stream is made, and where it goes on.

A stream is sent to one replica at a time, with all that is needed to make it: its tensors and the tokens it has. When
that replica dies, falls silent, has no room, drains or is stuck, the next attempt goes elsewhere with the tokens that
were given to the application meanwhile; to this process's own loop where no replica takes it. A token is known by its
number in the stream, so each is given once. Sockets and threads are `client.py`'s.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from flagsplit.errors import InputError, InternalError, UnavailableError
from flagsplit.runtime.events import Event, Instruction, Leave, Note, Send, Tick
from flagsplit.runtime.generation.client_places import StreamPlaces
from flagsplit.runtime.generation.client_streams import (
    LOCAL,
    LiveStream,
    error_of,
)
from flagsplit.runtime.generation.stream_events import (
    NO_SCORES,
    Ask,
    GiveTokens,
    Made,
    Place,
    RowsMade,
    Scores,
    Stop,
)
from flagsplit.transport.channel import Acked, Down, Received, Up, Violated
from flagsplit.transport.messages import (
    Bye,
    Drain,
    Failed,
    Have,
    Message,
    Pong,
    Reject,
    Tokens,
    Welcome,
)
from flagsplit.transport.tensors import chunks_of

_MILLION: Final = 1_000_000
_ENDS: Final = ("stop", "length")
_CODES: Final = ("busy", "draining", "no-state", "input", "compute", "too-large", "protocol", "bundle", "deadline")


class ClientMachine(StreamPlaces):
    """All streams of one process; arguments as for `StreamPlaces`."""

    def start(self) -> list[Instruction]:
        """The first instructions: reach all replicas."""
        return list(self.replicas.connect())

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """Take an event at a time in seconds; answer with what to do, in order."""
        self.now = now
        return list(self._handle(event))

    def next_tick(self) -> float:
        """When the machine wants a `Tick` at the latest."""
        streams = (min(each.request.deadline, each.look_at) for each in self.streams.values())
        return min(self.replicas.next_tick(), min(streams, default=math.inf))

    def _handle(self, event: Event) -> Iterator[Instruction]:
        match event:
            case Ask(rid, request):
                stream = self.streams[rid] = LiveStream(rid, request, self.now, made=list(request.delivered))
                if stream.has_rows:
                    yield from self.make_rows(stream)
                yield from self.place(stream)
            case Stop(rid) if rid in self.streams:
                yield from self.end(self.streams[rid], "cancelled")
            case Made():
                yield from self._on_made(event)
            case RowsMade():
                yield from self._on_rows(event)
            case Up(peer) if peer in self.replicas:
                yield from self.replicas.up(peer)
            case Down(peer, reason) | Violated(peer, reason):
                yield from self._lose(peer, reason)
            case Received(peer, message) if peer in self.replicas:
                self.replicas.liveness.heard(peer, self.now)
                yield from self._on_message(peer, message)
            case Acked(peer):
                self.replicas.liveness.heard(peer, self.now)
            case Tick():
                yield from self._on_tick()
            case Leave():
                yield from self._on_leave()
            case Stop() | Received():
                pass
            case _:
                raise InternalError(f"a client of token streams cannot handle {event}")

    def _on_message(self, peer: str, message: Message) -> Iterator[Instruction]:
        match message:
            case Welcome():
                refusal = self.replicas.refusal(message)
                if refusal:
                    yield from self._refused(peer, refusal)
                else:
                    self.replicas.welcomed(peer, message, self.now)
                    yield Note(f"{peer} takes streams")
                    yield from self.place_waiting()
            case Reject(code, reason):
                yield from self._refused(peer, f"{code}: {reason}" if reason else code)
            case Tokens():
                yield from self._on_tokens(peer, message)
            case Failed():
                yield from self._on_failed(peer, message)
            case Have():
                yield from self._on_have(peer, message)
            case Drain(bundle=bundle):
                self.replicas.drains(peer, bundle)
            case Pong():
                self.replicas.ponged(peer, message)
            case Bye(reason):
                yield from self._lose(peer, reason or "it left")
            case _:
                pass

    def _refused(self, name: str, reason: str) -> Iterator[Instruction]:
        yield from self.replicas.refused(name, reason, self.now)
        yield from self._move_from(name, reason, "refused")

    def _lose(self, name: str, reason: str, kind: str = "lost") -> Iterator[Instruction]:
        """A replica is gone."""
        if name in self.replicas:
            self.replicas.lost(name, reason)
            yield Note(f"{name} takes no streams: {reason}")
            yield from self._move_from(name, reason, kind)

    def _move_from(self, name: str, reason: str, kind: str) -> Iterator[Instruction]:
        """The streams of a replica go on elsewhere."""
        lost = [stream for stream in self.streams.values() if stream.at == name]
        for stream in lost:
            self.moves[kind] += 1
            self.leave_place(stream, f"{name} is gone: {reason}")
        for stream in lost:
            yield from self.place(stream)

    def _on_have(self, peer: str, message: Have) -> Iterator[Instruction]:
        stream, waiting = self.streams.get(message.rid), self._departures.get(message.rid)
        if stream is None or waiting is None or (stream.at, stream.attempt) != (peer, message.attempt):
            return
        del self._departures[message.rid]
        chunks = chunks_of(waiting.opened, waiting.buffers, offsets=message.offsets)
        yield from (Send(peer, chunk) for chunk in chunks)

    def _on_tokens(self, peer: str, message: Tokens) -> Iterator[Instruction]:
        stream = self.streams.get(message.rid)
        if stream is None or (stream.at, stream.attempt) != (peer, message.attempt):
            return
        if message.offset > len(stream.made):
            self._pass_by(stream, peer, 0.0)
            yield from self._leave(stream, "gap", f"{peer} left out tokens")
            return
        if message.offset + len(message.tokens) > stream.request.options.max_tokens:
            stream.passed[peer] = math.inf
            yield from self._leave(stream, "excess", f"{peer} made more tokens than it was asked for")
            return
        place = Place(self.facts.tier, peer)
        scores = Scores(tuple(-cost / _MILLION for cost in message.costs), message.no_speech / _MILLION)
        yield from self._take(stream, message.offset, message.tokens, place, scores)
        if message.last and message.reason in _ENDS:
            yield from self.end(stream, message.reason)
        elif message.last:
            self._pass_by(stream, peer, self.options.pause_s)
            yield from self._leave(stream, "other", f"{peer} ended the stream: {message.reason}")
        elif stream.has_rows and stream.row_count < len(stream.request.prompt) + len(stream.made):
            yield from self.make_rows(stream)

    def _take(
        self, stream: LiveStream, offset: int, tokens: tuple[int, ...], place: Place, scores: Scores
    ) -> Iterator[Instruction]:
        had = len(stream.made) - offset
        new, scores = tokens[had:], replace(scores, logprobs=scores.logprobs[had:])
        stream.look_at = self.now + self.options.stall_s if stream.at != LOCAL else math.inf
        if new:
            start = len(stream.made)
            stream.made.extend(new)
            stream.failures = 0
            yield GiveTokens(stream.rid, start, new, place, scores)
        elif scores != NO_SCORES:
            yield GiveTokens(stream.rid, len(stream.made), (), place, scores)

    def _on_rows(self, event: RowsMade) -> Iterator[Instruction]:
        stream = self.streams.get(event.rid)
        if stream is None or not stream.waits_for_rows or event.position != stream.row_count:
            return
        if event.rows is None:
            yield from self.end(stream, "", InputError(event.error))
            return
        stream.waits_for_rows = False
        stream.rows.append(event.rows)
        if stream.at is None:
            yield from self.place(stream)
        else:
            yield from self.send(stream, self.replicas[stream.at])

    def _on_made(self, event: Made) -> Iterator[Instruction]:
        """This process's own loop made tokens, or broke."""
        stream = self.streams.get(event.rid)
        if stream is None or (stream.at, stream.attempt) != (LOCAL, event.attempt):
            return
        if event.error:
            stream.passed[LOCAL] = math.inf
            self.leave_place(stream, event.error)
            if all(self._is_ruled_out(stream, each.name) for each in self.replicas.fit()):
                yield from self.end(stream, "", InputError(event.error))
            else:
                yield from self.place(stream)
            return
        yield from self._take(stream, event.offset, event.tokens, Place(self.facts.own), event.scores)
        if event.last:
            yield from self.end(stream, event.reason or "stop")

    def _on_failed(self, peer: str, message: Failed) -> Iterator[Instruction]:
        stream = self.streams.get(message.rid)
        if stream is None or (stream.at, stream.attempt) != (peer, message.attempt):
            return
        code = message.code if message.code in _CODES else "other"
        text = f"{peer}: {message.code}: {message.reason}"
        if code == "input":
            yield from self.end(stream, "", InputError(message.reason))
            return
        if code == "no-state":
            stream.states.pop(peer, None)  # it gets everything, or another does
            self._pass_by(stream, peer, 0.0)
        elif message.retryable:
            self._pass_by(stream, peer, message.retry_ms / 1e3 or self.options.pause_s)
        else:
            stream.passed[peer] = math.inf
        if not self.can_run_here(stream) and all(self._is_ruled_out(stream, name) for name in self.replicas):
            yield from self.end(stream, "", error_of(code, text))
            return
        yield from self._leave(stream, code, text, is_failure=code not in ("busy", "draining"))

    @staticmethod
    def _is_ruled_out(stream: LiveStream, peer: str) -> bool:
        """Whether a replica refused a stream for good."""
        return stream.passed.get(peer, 0.0) == math.inf

    def _pass_by(self, stream: LiveStream, peer: str, first_s: float) -> None:
        """Leave a replica alone for a while: the longer, the more often the stream failed since its last token."""
        longer_s = self.options.pause_s * (2.0 ** min(stream.failures, 6) - 1)
        stream.passed[peer] = self.now + max(first_s, longer_s)

    def _leave(self, stream: LiveStream, kind: str, text: str, *, is_failure: bool = True) -> Iterator[Instruction]:
        """A stream goes on elsewhere, or at the same place in another attempt."""
        had = stream.failures
        self.moves[kind] += 1
        self.leave_place(stream, text)
        stream.failures = stream.failures if is_failure else had
        yield from self.place(stream)

    def _on_tick(self) -> Iterator[Instruction]:
        said, silent = self.replicas.tick(self.now)
        yield from said
        for name in silent:
            yield from self._lose(name, "it went silent", "silent")
            yield from self.replicas.redial(name)
        for stream in list(self.streams.values()):
            if self.now >= stream.request.deadline:
                yield from self._run_out(stream)
            elif stream.look_at <= self.now:
                yield from self._look_at(stream)

    def _run_out(self, stream: LiveStream) -> Iterator[Instruction]:
        """The deadline passed. That is an end like others, unless nobody ever began, or all refused."""
        error = None
        if not stream.was_placed or (stream.at is None and not stream.made):
            states = "; ".join(f"{name}: {state}" for name, state in self.replicas.states().items()) or "there is none"
            last = f"; {stream.last_error}" if stream.last_error else ""
            error = UnavailableError(f"no replica took the stream before its deadline ({states}{last})")
        yield from self.end(stream, "deadline", error)

    def _look_at(self, stream: LiveStream) -> Iterator[Instruction]:
        """A stream without a place may find one now; one that is stuck goes elsewhere, if there is an elsewhere."""
        if stream.at is None:
            yield from self.place(stream)
            return
        others = [each for each in self.replicas.fit() if each.name != stream.at]
        if stream.waits_for_rows or not (others or self.can_run_here(stream)):
            stream.look_at = self.now + self.options.stall_s
            return
        stream.passed[stream.at] = self.now + self.options.stall_s
        yield from self._leave(stream, "stalled", f"{stream.at} made no token in {self.options.stall_s:g} s")

    def _on_leave(self) -> Iterator[Instruction]:
        for stream in list(self.streams.values()):
            yield from self.end(stream, "", UnavailableError("the client was closed before the stream was over"))
        for name in self.replicas:
            if self.replicas.is_connected(name):
                yield Send(name, Bye("the client is closed"))
