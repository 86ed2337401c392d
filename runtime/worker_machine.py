"""The worker as a pure state machine: who is connected, which requests are here, what to answer.

Inbound peers are sessions and the workers before this one; outbound peers are the tiers beyond it, at the addresses
that sessions name or the operator fixed. A worker never decides: it follows the route of each request and says what
failed. Shared work is in `flagsplit.runtime.relay`.
"""

import math
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from flagsplit.errors import InternalError, ProtocolError
from flagsplit.runtime.events import (
    Connect,
    Disconnect,
    Event,
    Instruction,
    Leave,
    Note,
    Ran,
    Send,
    Tick,
    Withdraw,
)
from flagsplit.runtime.itinerary import PlannedStep
from flagsplit.runtime.liveness import Liveness, LivenessOptions
from flagsplit.runtime.relay import Flight, FlightKey, Relay
from flagsplit.transport.channel import Acked, Down, Received, Up, Violated, inbound_name
from flagsplit.transport.messages import (
    VERSION,
    Bye,
    Cancel,
    Chunk,
    Done,
    Drain,
    Failed,
    Hello,
    HopTiming,
    Message,
    Open,
    PeerAddress,
    Ping,
    Pong,
    Reject,
    Welcome,
)
from flagsplit.transport.tensors import TransferLimits

_REMEMBERED_ENDS = 4096


@dataclass(frozen=True)
class WorkerOptions:
    """Limits and times of a worker.

    Attributes:
        max_held_bytes: tensors held for all requests together; beyond it a request is refused as busy.
        max_flights: requests held at once.
        orphan_s: how long a request outlives its deadline before it is forgotten.
        reach_s: how long requests wait for a tier beyond that is not connected yet.
        liveness: heartbeats to the tiers beyond, and patience with silent sessions.
    """

    max_held_bytes: int = 2 << 30
    max_flights: int = 4096
    orphan_s: float = 10.0
    reach_s: float = 3.0
    liveness: LivenessOptions = field(default_factory=LivenessOptions)


@dataclass
class _Beyond:
    """A tier that this worker passes requests on to."""

    tier: str
    address: PeerAddress
    welcomed: bool = False
    waiting: list[Open | Chunk] = field(default_factory=list)
    waiting_since: float = 0.0

    def withdraw(self, flight: Flight) -> None:
        """Drop what waits on behalf of a request."""
        self.waiting = [message for message in self.waiting if (message.sid, message.rid) != flight.key]


@dataclass
class _Inbound:
    """Somebody who connected to this worker and was welcomed."""

    last_heard: float
    silence_s: float
    beyond: dict[str, str] = field(default_factory=dict)


class WorkerMachine(Relay):
    """One tier of a bundle.

    Args:
        tier: name of the tier.
        tiers: names of all tiers, in the order of the line.
        segments: what this tier can run, by segment id.
        bundle: digest of the bundle.
        instance: names this start of the process.
        fixed: addresses of tiers beyond that the operator set; they win over what sessions say.
    """

    def __init__(
        self,
        tier: str,
        tiers: tuple[str, ...],
        segments: Mapping[str, PlannedStep],
        bundle: str,
        instance: str,
        fixed: Mapping[str, PeerAddress] | None = None,
        options: WorkerOptions | None = None,
        limits: TransferLimits | None = None,
    ) -> None:
        super().__init__(tier, {bundle: segments}, limits or TransferLimits())
        self._tiers = tiers
        self._bundle = bundle
        self._instance = instance
        self._fixed = dict(fixed or {})
        self._options = options or WorkerOptions()
        self._inbound: dict[str, _Inbound] = {}
        self._beyond: dict[str, _Beyond] = {}
        self._liveness = Liveness(self._options.liveness)
        self._ended: dict[FlightKey, float] = {}
        self._draining = False

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """Take an event at a time in seconds; answer with what to do, in order."""
        self.now = now
        return list(self._handle(event))

    def next_tick(self) -> float:
        """When the machine wants a `Tick` at the latest."""
        return self._liveness.next_tick()

    def is_idle(self) -> bool:
        """Whether no request is here."""
        return not self.flights

    def _handle(self, event: Event) -> Iterator[Instruction]:
        match event:
            case Up(peer):
                yield from self._on_up(peer)
            case Down(peer, reason) | Violated(peer, reason):
                yield from self._on_down(peer, reason)
            case Received(peer, message):
                self._liveness.heard(peer, self.now)
                if peer in self._inbound:
                    self._inbound[peer].last_heard = self.now
                yield from self._on_message(peer, message)
            case Ran():
                yield from self._on_ran(event)
            case Tick():
                yield from self._on_tick()
            case Leave():
                yield from self._on_leave()
            case Acked():
                pass
            case _:
                raise InternalError(f"a worker cannot handle {event}")

    def _on_up(self, peer: str) -> Iterator[Instruction]:
        if peer in self._beyond:
            heartbeat_ms = int(self._options.liveness.heartbeat_s * 1000)
            yield Send(peer, Hello(VERSION, VERSION, self._instance, "worker", self._bundle, heartbeat_ms))

    def _on_down(self, peer: str, reason: str) -> Iterator[Instruction]:
        self._liveness.forget(peer)
        if peer in self._beyond:
            yield from self._lose_beyond(peer, reason)
        elif peer in self._inbound:
            yield Note(f"{peer} left: {reason}")
            yield from self._forget_inbound(peer)

    def _forget_inbound(self, peer: str) -> Iterator[Instruction]:
        """A session or a worker before this one is gone, and with it whatever only it wanted."""
        inbound = self._inbound.pop(peer)
        for flight in list(self.flights.values()):
            session = inbound_name(flight.sid)
            orphaned = session not in self._inbound and self._inbound.keys().isdisjoint(flight.neighbors.values())
            if session == peer or orphaned:
                yield from self._drop(flight)
        yield from self._leave_unused(inbound.beyond.values())

    def _leave_unused(self, names: Iterable[str]) -> Iterator[Instruction]:
        """Disconnect from tiers beyond that no session names any more."""
        named = {name for inbound in self._inbound.values() for name in inbound.beyond.values()}
        for name in set(names) - named:
            self._liveness.forget(name)
            del self._beyond[name]
            yield Disconnect(name)

    def _drop(self, flight: Flight) -> Iterator[Instruction]:
        """Forget a request and what is queued for it."""
        del self.flights[flight.key]
        yield from self.skip_runs(flight)
        for peer in set(flight.neighbors.values()):
            yield Withdraw(peer, flight.sid, flight.rid)
            if peer in self._beyond:
                self._beyond[peer].withdraw(flight)

    def _lose_beyond(self, peer: str, reason: str) -> Iterator[Instruction]:
        """Tell the sessions of all requests that went on to a peer that it is gone."""
        beyond = self._beyond[peer]
        beyond.welcomed = False
        beyond.waiting.clear()
        text = f"{beyond.tier} is not reachable from {self.tier}: {reason}"
        for flight in list(self.flights.values()):
            if flight.neighbors.get(beyond.tier) == peer:
                yield from self._fail(flight, beyond.tier, "unreachable", text, retryable=True)

    def _fail(self, flight: Flight, tier: str, code: str, reason: str, *, retryable: bool) -> Iterator[Instruction]:
        """Say that an attempt failed; values stay for the next attempt."""
        flight.set_arrivals_aside()
        message = Failed(flight.sid, flight.rid, flight.attempt, tier, code, reason[:900], retryable)
        yield from self._tell_session(flight, message)

    def _tell_session(self, flight: Flight, message: Failed) -> Iterator[Instruction]:
        """To the session itself if it is connected here, else back the way the request came."""
        session = inbound_name(flight.sid)
        back = session if session in self._inbound else next(iter(flight.neighbors.values()), None)
        if back is not None:
            yield Send(back, message)

    def send_on(self, flight: Flight, hop: int, messages: Sequence[Open | Chunk]) -> Iterator[Instruction]:
        """Back to whom it came from, or on to a tier beyond; one that is not connected yet gets it when it is."""
        tier = flight.route[hop].tier
        peer = flight.neighbors.get(tier) or self._way_to(flight, tier)
        beyond = self._beyond.get(peer)
        if beyond is not None and not beyond.welcomed:
            if not beyond.waiting:
                beyond.waiting_since = self.now
            beyond.waiting.extend(messages)
        else:
            yield from (Send(peer, message) for message in messages)

    def _way_to(self, flight: Flight, tier: str) -> str:
        """The peer for a tier beyond, as the flight's session or the operator named it."""
        session = self._inbound.get(inbound_name(flight.sid))
        known = session.beyond if session is not None else {}
        name = known.get(tier) or (_peer_name(tier, self._fixed[tier]) if tier in self._fixed else None)
        if name is None or name not in self._beyond:
            raise ProtocolError(f"tier {self.tier} was not told where {tier!r} is")
        flight.neighbors[tier] = name
        return name

    def _on_message(self, peer: str, message: Message) -> Iterator[Instruction]:
        match message:
            case Hello():
                yield from self._on_hello(peer, message)
            case Welcome():
                yield from self._on_welcome(peer, message)
            case Reject():
                yield from self._on_down(peer, message.reason)
                yield Note(f"{peer} refused us: {message.reason}")
            case Ping():
                waiting = min(self.waiting_runs, 1 << 31)
                yield Send(peer, Pong(message.seq, message.sent_us, waiting))
            case Bye() | Drain():
                yield from self._on_down(peer, message.reason or "it left")
            case Failed():
                yield from self._pass_back(message)
            case Cancel() | Done():
                yield from self._forget(message)
            case Open() | Chunk():
                if peer in self._inbound or peer in self._beyond:
                    yield from self._on_tensors(peer, message)
            case _:
                pass

    def _on_hello(self, peer: str, hello: Hello) -> Iterator[Instruction]:
        if hello.version_min[0] > VERSION[0] or hello.version_max[0] < VERSION[0]:
            reason = f"this worker speaks protocol {VERSION[0]}, you {hello.version_min[0]} to {hello.version_max[0]}"
            yield Send(peer, Reject("version", f"{reason}; upgrade the older side"))
        elif hello.bundle != self._bundle:
            reason = f"this worker serves bundle {self._bundle[:12]} as tier {self.tier}, you have {hello.bundle[:12]}"
            yield Send(peer, Reject("bundle", f"{reason}; use the same bundle file on both sides"))
        elif self._draining:
            yield Send(peer, Reject("draining", "this worker is shutting down; try another"))
        else:
            silence_s = self._options.liveness.missed * max(hello.heartbeat_ms / 1000, 1.0)
            inbound = self._inbound.setdefault(peer, _Inbound(self.now, silence_s))
            limits = self.limits
            yield Send(
                peer,
                Welcome(
                    VERSION, self._instance, 0, self._bundle, self.tier, limits.max_tensor_bytes, limits.max_chunk_bytes
                ),
            )
            before, inbound.beyond = inbound.beyond, {}
            for tier, address in hello.peers.items():
                if tier in self._tiers and self._tiers.index(tier) > self._tiers.index(self.tier):
                    address = self._fixed.get(tier, address)
                    inbound.beyond[tier] = _peer_name(tier, address)
                    yield from self._reach(tier, address)
            yield from self._leave_unused(before.values())

    def _reach(self, tier: str, address: PeerAddress) -> Iterator[Instruction]:
        name = _peer_name(tier, address)
        if name not in self._beyond:
            self._beyond[name] = _Beyond(tier, address)
            yield Connect(name, address.address, address.server_key)

    def _on_welcome(self, peer: str, message: Welcome) -> Iterator[Instruction]:
        beyond = self._beyond.get(peer)
        if beyond is not None and message.tier != beyond.tier:
            yield from self._on_down(peer, f"{beyond.address.address} serves tier {message.tier}")
        elif beyond is not None:
            beyond.welcomed = True
            self._liveness.watch(peer, self.now)
            waiting, beyond.waiting = beyond.waiting, []
            yield from (Send(peer, message) for message in waiting)

    def _pass_back(self, message: Failed) -> Iterator[Instruction]:
        """A tier beyond could not: the session decides, so hand it on towards the session."""
        flight = self.flights.get((message.sid, message.rid))
        if flight is not None and flight.attempt == message.attempt:
            yield from self._tell_session(flight, message)

    def _forget(self, message: Cancel | Done) -> Iterator[Instruction]:
        """A request is over, or an attempt is. Its data may still be on the way, because control overtakes it."""
        key = (message.sid, message.rid)
        flight = self.flights.get(key)
        if flight is not None and isinstance(message, Cancel) and message.attempt < flight.attempt:
            return
        self._ended[key] = message.attempt if isinstance(message, Cancel) else math.inf
        if len(self._ended) > _REMEMBERED_ENDS:
            del self._ended[next(iter(self._ended))]
        if flight is not None:
            yield from self._drop(flight)

    def _on_tensors(self, peer: str, message: Open | Chunk) -> Iterator[Instruction]:
        try:
            if isinstance(message, Open):
                self.check_open(message, self._bundle)
                flight = yield from self._flight_for(peer, message)
                ready = flight if flight is not None and self.accept_open(flight, message, peer) else None
            else:
                ready = self.accept_chunk(message)
            if ready is not None:
                yield from self.arrive(ready, message.hop)
        except ProtocolError as error:
            yield Send(
                peer, Failed(message.sid, message.rid, message.attempt, self.tier, "protocol", str(error)[:900], False)
            )

    def _flight_for(self, peer: str, opened: Open) -> Generator[Instruction, None, Flight | None]:
        flight = self.flights.get((opened.sid, opened.rid))
        deadline = self.now + opened.deadline_ms / 1000
        if flight is None and opened.attempt <= self._ended.get((opened.sid, opened.rid), -1):
            return None
        if flight is not None and opened.attempt < flight.attempt:
            return None
        if flight is not None and opened.attempt > flight.attempt:
            flight.restart(opened.attempt, opened.plan, opened.route)
        if flight is not None and (opened.hop in flight.reached or opened.hop in flight.arrivals):
            return None
        if self._is_full(opened, is_new=flight is None):
            reason = f"tier {self.tier} holds {len(self.flights)} requests, its limit on requests or bytes"
            yield Send(peer, Failed(opened.sid, opened.rid, opened.attempt, self.tier, "busy", reason, retryable=True))
            return None
        if flight is None:
            flight = Flight(opened.sid, opened.rid, opened.attempt, opened.plan, opened.route, deadline, self._bundle)
            self.flights[flight.key] = flight
        flight.deadline = deadline
        return flight

    def _is_full(self, opened: Open, *, is_new: bool) -> bool:
        coming = sum(header.size_bytes for header in opened.tensors)
        held = sum(flight.held_bytes for flight in self.flights.values())
        too_many = is_new and len(self.flights) >= self._options.max_flights
        return too_many or held + coming > self._options.max_held_bytes

    def _on_ran(self, event: Ran) -> Iterator[Instruction]:
        found = self.finish_run(event)
        if found is None:
            return
        flight, hop = found
        if event.error:
            yield from self._fail(flight, self.tier, "compute", event.error, retryable=False)
            return
        timing = HopTiming(self.tier, flight.route[hop].segment, event.wait_us, event.run_us, flight.bytes_in, 0)
        try:
            yield from self.pass_on(flight, hop, timing)
        except ProtocolError as error:
            yield from self._fail(flight, self.tier, "protocol", str(error), retryable=False)

    def _on_tick(self) -> Iterator[Instruction]:
        due, silent = self._liveness.tick(self.now)
        for peer in due:
            yield Send(peer, Ping(0, int(self.now * 1e6)))
        for peer in silent:
            yield from self._on_down(peer, "it went silent")
            yield from self._reconnect(peer)
        for peer, beyond in self._beyond.items():
            if beyond.waiting and self.now - beyond.waiting_since > self._options.reach_s:
                yield from self._lose_beyond(peer, f"no answer within {self._options.reach_s:g} s")
        for peer, inbound in list(self._inbound.items()):
            if self.now - inbound.last_heard > inbound.silence_s:
                yield from self._on_down(peer, "it went silent")
                yield Disconnect(peer)
        for flight in list(self.flights.values()):
            if self.now > flight.deadline + self._options.orphan_s:
                yield from self._drop(flight)

    def _reconnect(self, peer: str) -> Iterator[Instruction]:
        beyond = self._beyond.get(peer)
        if beyond is not None:
            yield Disconnect(peer)
            yield Connect(peer, beyond.address.address, beyond.address.server_key)

    def _on_leave(self) -> Iterator[Instruction]:
        self._draining = True
        for peer in (*self._inbound, *(peer for peer, beyond in self._beyond.items() if beyond.welcomed)):
            yield Send(peer, Bye(f"tier {self.tier} shuts down"))


def _peer_name(tier: str, address: PeerAddress) -> str:
    return f"{tier}@{address.address}"
