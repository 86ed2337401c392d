"""The client of token streams as a pure state machine: where each stream is made, and where it goes on.

A stream is sent to one replica at a time, with all that is needed to make it: its tensors and the tokens it has. When
that replica dies, falls silent, has no room, drains or is stuck, the next attempt goes elsewhere with the tokens that
were given to the application meanwhile; to this process's own loop where no replica takes it. A token is known by its
number in the stream, so each is given once. Sockets and threads are `client.py`'s.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from flagsplit.errors import ConfigError, FlagsplitError, InputError, InternalError, ProtocolError, UnavailableError
from flagsplit.runtime.events import Event, Instruction, Leave, Send, Tick, Withdraw
from flagsplit.runtime.generation.client_replicas import ClientFacts, Replica, Replicas
from flagsplit.runtime.generation.client_streams import (
    LOCAL,
    ClientOptions,
    Departure,
    LiveStream,
    choose,
    depart,
    error_of,
)
from flagsplit.runtime.generation.stream_events import (
    Ask,
    GiveTokens,
    Made,
    MakeRows,
    Over,
    Place,
    RowsMade,
    RunLocal,
    Stop,
    StopLocal,
)
from flagsplit.transport.channel import Acked, Down, Received, Up, Violated
from flagsplit.transport.messages import (
    Bye,
    Cancel,
    Done,
    Drain,
    Failed,
    Have,
    Message,
    PeerAddress,
    Pong,
    Reject,
    Tokens,
    Welcome,
)
from flagsplit.transport.tensors import chunks_of


class ClientMachine:
    """All streams of one process.

    Args:
        facts: what is asked for.
        replicas: addresses; each is the name of its peer, too.
        instance: names this start of the process.
        options: times and limits.
        has_local: whether this process has a loop of its own to go on with.
    """

    def __init__(
        self,
        facts: ClientFacts,
        replicas: Sequence[PeerAddress],
        instance: str,
        options: ClientOptions | None = None,
        *,
        has_local: bool = False,
    ) -> None:
        self.facts, self.options = facts, options or ClientOptions()
        self.streams: dict[int, LiveStream] = {}
        self.replicas = Replicas(facts, replicas, instance, self.options.liveness)
        self.moves: Counter[str] = Counter()
        self.now = 0.0
        self._instance = instance
        self._has_local = has_local
        self._departures: dict[int, Departure] = {}

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
                stream = self.streams[rid] = LiveStream(rid, request, self.now)
                if stream.has_rows:
                    yield from self._make_rows(stream)
                yield from self._place(stream)
            case Stop(rid) if rid in self.streams:
                yield from self._end(self.streams[rid], "cancelled")
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
                    yield from self._place_waiting()
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
            case Pong(queue=queue):
                self.replicas[peer].peer.queue = queue
            case Bye(reason):
                yield from self._lose(peer, reason or "it left")
            case _:
                pass

    def _refused(self, name: str, reason: str) -> Iterator[Instruction]:
        yield from self.replicas.refused(name, reason, self.now)
        yield from self._move_from(name, reason)

    def _lose(self, name: str, reason: str) -> Iterator[Instruction]:
        """A replica is gone."""
        if name in self.replicas:
            self.replicas.lost(name, reason)
            yield from self._move_from(name, reason)

    def _move_from(self, name: str, reason: str) -> Iterator[Instruction]:
        """The streams of a replica go on elsewhere."""
        lost = [stream for stream in self.streams.values() if stream.at == name]
        for stream in lost:
            self.moves["lost"] += 1
            self._leave_place(stream, f"{name} is gone: {reason}")
        for stream in lost:
            yield from self._place(stream)

    def _leave_place(self, stream: LiveStream, error: str) -> None:
        """A stream has no place any more; counts as a failure until the next token."""
        if stream.at is not None and stream.at != LOCAL:
            self.replicas[stream.at].streams -= 1
        stream.at, stream.since, stream.last_error = None, self.now, error
        stream.failures += 1
        self._departures.pop(stream.rid, None)

    def _place_waiting(self) -> Iterator[Instruction]:
        for stream in [each for each in self.streams.values() if each.at is None]:
            yield from self._place(stream)

    def _place(self, stream: LiveStream) -> Iterator[Instruction]:
        """Find a place for a stream that has none; without one it waits."""
        if stream.failures > self.options.max_failures:
            text = f"the stream failed {stream.failures} times without a token, the last time: {stream.last_error}"
            yield from self._end(stream, "", UnavailableError(text))
            return
        if stream.waits_for_rows:
            return
        if self._has_to_wait_its_turn(stream):
            stream.look_at = self.now + self.options.pause_s
            return
        fit = [each for each in self.replicas.fit() if stream.passed.get(each.name, -math.inf) <= self.now]
        chosen = choose(stream, fit, self.options.choice)
        if chosen is not None:
            yield from self._send(stream, chosen)
        elif self._may_run_here(stream):
            yield from self._run_here(stream)
        else:
            times = [until for name, until in stream.passed.items() if until > self.now and name in self.replicas]
            if self._has_local:
                times.append(max(stream.since + self.options.local_after_s, self.now + self.options.pause_s))
            stream.look_at = min(times, default=math.inf)

    def _has_to_wait_its_turn(self, stream: LiveStream) -> bool:
        """Of streams that may be what brings replicas down, one is tried at a time: a token clears it."""
        others = (each for each in self.streams.values() if each is not stream and each.at is not None)
        return stream.is_suspect and any(each.is_suspect for each in others)

    def _may_run_here(self, stream: LiveStream) -> bool:
        """At once if all replicas that are there refused the stream, else after a while."""
        if not self._has_local or stream.has_rows:
            return False
        return bool(self.replicas.fit()) or self.now >= stream.since + self.options.local_after_s

    def _run_here(self, stream: LiveStream) -> Iterator[Instruction]:
        yield from self._leave_others(stream, LOCAL)
        stream.attempt += 1
        stream.at, stream.since, stream.look_at, stream.was_placed = LOCAL, self.now, math.inf, True
        self.moves["local"] += 1
        yield RunLocal(stream.rid, stream.attempt, stream.request, tuple(stream.made))

    def _send(self, stream: LiveStream, chosen: Replica) -> Iterator[Instruction]:
        """Let a replica go on with a stream."""
        name = chosen.name
        yield from self._leave_others(stream, name)
        stream.attempt += 1
        stream.was_placed = True
        try:
            tiers = (self.facts.own, self.facts.tier)
            departure = depart(stream, chosen, self._instance, self.facts.bundle, tiers, self.now)
        except (ConfigError, ProtocolError) as error:
            yield from self._end(stream, "", InputError(str(error)))
            return
        if stream.at != name:
            chosen.streams += 1
        stream.at, stream.since, stream.look_at = name, self.now, self.now + self.options.stall_s
        stream.states[name], stream.rows_told = chosen.instance, stream.row_count
        yield Send(name, departure.opened)
        if departure.opened.resume:
            self._departures[stream.rid] = departure
        else:
            yield from (Send(name, chunk) for chunk in chunks_of(departure.opened, departure.buffers))

    def _on_have(self, peer: str, message: Have) -> Iterator[Instruction]:
        stream, waiting = self.streams.get(message.rid), self._departures.get(message.rid)
        if stream is None or waiting is None or (stream.at, stream.attempt) != (peer, message.attempt):
            return
        del self._departures[message.rid]
        chunks = chunks_of(waiting.opened, waiting.buffers, offsets=message.offsets)
        yield from (Send(peer, chunk) for chunk in chunks)

    def _leave_others(self, stream: LiveStream, name: str) -> Iterator[Instruction]:
        """Replicas that may have something of a stream which goes on elsewhere can forget it."""
        for other in [each for each in stream.states if each != name]:
            yield from self._forget_at(stream, other)
            del stream.states[other]

    def _forget_at(self, stream: LiveStream, name: str) -> Iterator[Instruction]:
        if self.replicas.is_connected(name):
            yield Withdraw(name, self._instance, stream.rid)
            yield Send(name, Cancel(self._instance, stream.rid, stream.attempt))

    def _on_tokens(self, peer: str, message: Tokens) -> Iterator[Instruction]:
        stream = self.streams.get(message.rid)
        if stream is None or (stream.at, stream.attempt) != (peer, message.attempt):
            return
        if message.offset > len(stream.made):
            self.moves["gap"] += 1
            stream.failures += 1
            yield from self._send(stream, self.replicas[peer])
            return
        place = Place(self.facts.tier, peer)
        yield from self._take(stream, message.offset, message.tokens, place)
        if message.last:
            yield from self._end(stream, message.reason or "stop")
        elif stream.has_rows and stream.row_count < len(stream.request.prompt) + len(stream.made):
            yield from self._make_rows(stream)

    def _take(self, stream: LiveStream, offset: int, tokens: tuple[int, ...], place: Place) -> Iterator[Instruction]:
        new = tokens[len(stream.made) - offset :]
        stream.look_at = self.now + self.options.stall_s if stream.at != LOCAL else math.inf
        if new:
            start = len(stream.made)
            stream.made.extend(new)
            stream.failures = 0
            yield GiveTokens(stream.rid, start, new, place)

    def _make_rows(self, stream: LiveStream) -> Iterator[Instruction]:
        position = stream.row_count
        stream.waits_for_rows = True
        yield MakeRows(stream.rid, position, (*stream.request.prompt, *stream.made)[position:])

    def _on_rows(self, event: RowsMade) -> Iterator[Instruction]:
        stream = self.streams.get(event.rid)
        if stream is None or not stream.waits_for_rows or event.position != stream.row_count:
            return
        if event.rows is None:
            yield from self._end(stream, "", InputError(event.error))
            return
        stream.waits_for_rows = False
        stream.rows.append(event.rows)
        if stream.at is None:
            yield from self._place(stream)
        else:
            yield from self._send(stream, self.replicas[stream.at])

    def _on_made(self, event: Made) -> Iterator[Instruction]:
        """This process's own loop made tokens, or broke."""
        stream = self.streams.get(event.rid)
        if stream is None or (stream.at, stream.attempt) != (LOCAL, event.attempt):
            return
        if event.error:
            self._has_local = self._has_local and bool(self.replicas)
            self._leave_place(stream, event.error)
            if not self.replicas.fit():
                yield from self._end(stream, "", InputError(event.error))
            else:
                yield from self._place(stream)
            return
        yield from self._take(stream, event.offset, event.tokens, Place(self.facts.own))
        if event.last:
            yield from self._end(stream, event.reason or "stop")

    def _on_failed(self, peer: str, message: Failed) -> Iterator[Instruction]:
        stream = self.streams.get(message.rid)
        if stream is None or (stream.at, stream.attempt) != (peer, message.attempt):
            return
        self.moves[message.code] += 1
        text = f"{peer}: {message.code}: {message.reason}"
        if message.code == "deadline":
            yield from self._end(stream, "deadline")
            return
        if message.code == "input":
            yield from self._end(stream, "", InputError(message.reason))
            return
        if message.code == "no-state":
            stream.states.pop(peer, None)
            stream.failures += 1
            yield from self._send(stream, self.replicas[peer])
            return
        had = stream.failures
        self._leave_place(stream, text)
        again_s = message.retry_ms / 1e3 or self.options.pause_s * 2.0 ** min(stream.failures, 6)
        stream.passed[peer] = self.now + again_s if message.retryable else math.inf
        if message.code in ("busy", "draining"):
            stream.failures = had  # no fault of the stream's
        if not self._has_local and all(stream.passed.get(name, 0.0) == math.inf for name in self.replicas):
            yield from self._end(stream, "", error_of(message.code, text))
            return
        yield from self._place(stream)

    def _on_tick(self) -> Iterator[Instruction]:
        said, silent = self.replicas.tick(self.now)
        yield from said
        for name in silent:
            yield from self._lose(name, "it went silent")
            yield from self.replicas.redial(name)
        for stream in list(self.streams.values()):
            if self.now >= stream.request.deadline:
                yield from self._run_out(stream)
            elif stream.look_at <= self.now:
                yield from self._look_at(stream)

    def _run_out(self, stream: LiveStream) -> Iterator[Instruction]:
        """The deadline passed. That is an end like others, unless nobody ever began."""
        error = None
        if not stream.was_placed:
            states = "; ".join(f"{name}: {state}" for name, state in self.replicas.states().items()) or "there is none"
            error = UnavailableError(f"no replica took the stream before its deadline ({states})")
        yield from self._end(stream, "deadline", error)

    def _look_at(self, stream: LiveStream) -> Iterator[Instruction]:
        """A stream without a place may find one now; one that is stuck goes elsewhere, if there is an elsewhere."""
        if stream.at is None:
            yield from self._place(stream)
            return
        others = [each for each in self.replicas.fit() if each.name != stream.at]
        if stream.waits_for_rows or not (others or (self._has_local and not stream.has_rows)):
            stream.look_at = self.now + self.options.stall_s
            return
        self.moves["stalled"] += 1
        at = stream.at
        self._leave_place(stream, f"{at} made no token in {self.options.stall_s:g} s")
        stream.passed[at] = self.now + self.options.stall_s
        yield from self._place(stream)

    def _end(self, stream: LiveStream, reason: str, error: FlagsplitError | None = None) -> Iterator[Instruction]:
        """A stream is over; nobody needs to keep anything of it."""
        del self.streams[stream.rid]
        self._departures.pop(stream.rid, None)
        if stream.at == LOCAL:
            yield StopLocal(stream.rid)
        elif stream.at is not None:
            self.replicas[stream.at].streams -= 1
        for name in stream.states:
            if self.replicas.is_connected(name):
                yield Withdraw(name, self._instance, stream.rid)
                yield Send(name, Done(self._instance, stream.rid))
        yield Over(stream.rid, reason, error)

    def _on_leave(self) -> Iterator[Instruction]:
        for stream in list(self.streams.values()):
            yield from self._end(stream, "", UnavailableError("the client was closed before the stream was over"))
        for name in self.replicas:
            if self.replicas.is_connected(name):
                yield Send(name, Bye("the client is closed"))
