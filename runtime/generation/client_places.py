"""Where the streams of a client are made: a place is found for each, and left again.

What makes a stream leave its place is decided in `client_machine.py`; what a replica is told is in `client_streams.py`.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from flagsplit.errors import ConfigError, FlagsplitError, InputError, ProtocolError, UnavailableError
from flagsplit.runtime.events import Instruction, Send, Withdraw
from flagsplit.runtime.generation.client_replicas import ClientFacts, Replica, Replicas
from flagsplit.runtime.generation.client_streams import LOCAL, ClientOptions, Departure, LiveStream, choose, depart
from flagsplit.runtime.generation.stream_events import MakeRows, Over, RunLocal, StopLocal
from flagsplit.transport.messages import Cancel, Done, PeerAddress
from flagsplit.transport.tensors import chunks_of


class StreamPlaces:
    """The streams of one process and their places; `ClientMachine` hands events in.

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

    def place_waiting(self) -> Iterator[Instruction]:
        """Find places for those that have none."""
        for stream in [each for each in self.streams.values() if each.at is None]:
            yield from self.place(stream)

    def place(self, stream: LiveStream) -> Iterator[Instruction]:
        """Find a place for a stream that has none; without one it waits."""
        if stream.failures > self.options.max_failures:
            text = f"the stream failed {stream.failures} times without a token, the last time: {stream.last_error}"
            yield from self.end(stream, "", UnavailableError(text))
            return
        if stream.waits_for_rows:
            return
        if self._has_to_wait_its_turn(stream):
            stream.look_at = self.now + self.options.pause_s
            return
        fit = [each for each in self.replicas.fit() if stream.passed.get(each.name, -math.inf) <= self.now]
        chosen = choose(stream, fit, self.options.choice)
        if chosen is not None:
            yield from self.send(stream, chosen)
        elif self._may_run_here(stream):
            yield from self._run_here(stream)
        else:
            times = [until for name, until in stream.passed.items() if until > self.now and name in self.replicas]
            if self.can_run_here(stream):
                times.append(max(stream.since + self.options.local_after_s, self.now + self.options.pause_s))
            stream.look_at = min(times, default=math.inf)

    def _has_to_wait_its_turn(self, stream: LiveStream) -> bool:
        """Of streams that may be what brings replicas down, one is tried at a time: a token clears it."""
        others = (each for each in self.streams.values() if each is not stream and each.at is not None)
        return stream.is_suspect and any(each.is_suspect for each in others)

    def can_run_here(self, stream: LiveStream) -> bool:
        """Whether this process has all that the stream needs, and did not fail at it."""
        return self._has_local and not stream.has_rows and LOCAL not in stream.passed

    def _may_run_here(self, stream: LiveStream) -> bool:
        """At once if all replicas that are there refused the stream, or none was named; else after a while."""
        if not self.can_run_here(stream):
            return False
        is_hopeless = bool(self.replicas.fit()) or not len(self.replicas)
        return is_hopeless or self.now >= stream.since + self.options.local_after_s

    def _run_here(self, stream: LiveStream) -> Iterator[Instruction]:
        yield from self._leave_others(stream, LOCAL)
        stream.attempt += 1
        stream.at, stream.since, stream.look_at, stream.was_placed = LOCAL, self.now, math.inf, True
        self.moves["local"] += 1
        yield RunLocal(stream.rid, stream.attempt, stream.request, tuple(stream.made))

    def send(self, stream: LiveStream, chosen: Replica) -> Iterator[Instruction]:
        """Let a replica go on with a stream."""
        name = chosen.name
        yield from self._leave_others(stream, name)
        stream.attempt += 1
        stream.was_placed = True
        try:
            tiers = (self.facts.own, self.facts.tier)
            departure = depart(stream, chosen, self._instance, self.facts.bundle, tiers, self.now)
        except (ConfigError, ProtocolError) as error:
            yield from self.end(stream, "", InputError(str(error)))
            return
        if stream.at != name:
            chosen.streams += 1
        stream.at, stream.since = name, self.now
        stream.look_at = self.now + self._patience_s(stream) + 2 * min(chosen.wait_s, self.options.stall_s)
        stream.states[name], stream.rows_told = chosen.instance, stream.row_count
        stream.met.add(chosen.instance)
        yield Send(name, departure.opened)
        if departure.opened.resume:
            self._departures[stream.rid] = departure
        else:
            yield from (Send(name, chunk) for chunk in chunks_of(departure.opened, departure.buffers))

    def _patience_s(self, stream: LiveStream) -> float:
        """How long a stream may be without a token; a search gives all of them at its end."""
        if stream.request.options.beams == 1:
            return self.options.stall_s
        return max(self.options.stall_s, min((stream.request.deadline - self.now) / 2, 1e9))

    def leave_place(self, stream: LiveStream, error: str) -> None:
        """A stream has no place any more; counts as a failure until the next token."""
        if stream.at is not None and stream.at != LOCAL:
            self.replicas[stream.at].streams -= 1
        stream.at, stream.since, stream.last_error = None, self.now, error
        stream.failures += 1
        self._departures.pop(stream.rid, None)

    def _leave_others(self, stream: LiveStream, name: str) -> Iterator[Instruction]:
        """Replicas that may have something of a stream which goes on elsewhere can forget it."""
        for other in [each for each in stream.states if each != name]:
            yield from self._forget_at(stream, other)
            del stream.states[other]

    def _forget_at(self, stream: LiveStream, name: str) -> Iterator[Instruction]:
        if self.replicas.is_connected(name):
            yield Withdraw(name, self._instance, stream.rid)
            yield Send(name, Cancel(self._instance, stream.rid, stream.attempt))

    def make_rows(self, stream: LiveStream) -> Iterator[Instruction]:
        """Let this side's layers run on the tokens that they have not seen."""
        position = stream.row_count
        stream.waits_for_rows = True
        yield MakeRows(stream.rid, position, (*stream.request.prompt, *stream.made)[position:])

    def end(self, stream: LiveStream, reason: str, error: FlagsplitError | None = None) -> Iterator[Instruction]:
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
