"""The requests at a worker: who may speak of one, when one is taken, what becomes of those whose session is away.

A worker never decides: it follows the route of each request and says what failed. A request whose session lost its
connection lingers: nothing of it runs or is sent, but what is here stays for the next attempt. Shared work is in
`relay.py`, peers in `worker_peers.py`, events in `worker_machine.py`.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flagsplit.errors import InternalError, ProtocolError
from flagsplit.runtime.engine import DEADLINE, OUT_OF_RANGE
from flagsplit.runtime.events import Instruction, Ran, Send, Withdraw
from flagsplit.runtime.relay import Flight, FlightKey, Relay
from flagsplit.runtime.worker_bundles import Bundles
from flagsplit.runtime.worker_ends import Ends
from flagsplit.runtime.worker_gauges import LinkGauges
from flagsplit.runtime.worker_options import WorkerOptions
from flagsplit.runtime.worker_peers import Peers
from flagsplit.runtime.worker_shares import Shares
from flagsplit.transport.channel import inbound_name
from flagsplit.transport.messages import Cancel, Chunk, Done, Failed, Have, HopTiming, Open, encode
from flagsplit.transport.squeeze_policy import LinkSqueezer, SqueezePolicy
from flagsplit.transport.tensors import TransferLimits

_REASON_CHARS = 900


@dataclass(frozen=True)
class _Away:
    """Since when a request's session is away, and whether all work on it rests: another peer may still wait for it."""

    since: float
    parked: bool


class WorkerFlights(Relay):
    """The requests of a worker; `WorkerMachine` hands events in."""

    def __init__(self, peers: Peers, bundles: Bundles, options: WorkerOptions, limits: TransferLimits) -> None:
        super().__init__(peers.tier, {digest: one.segments for digest, one in bundles.served.items()}, limits)
        self.peers, self.bundles, self.options = peers, bundles, options
        self.shares = Shares(options)
        self.gauges = LinkGauges()
        self.squeezing: SqueezePolicy | None = None
        self.counts: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self._away: dict[FlightKey, _Away] = {}
        self._owners: dict[str, str] = {}
        self._ends = Ends()

    @staticmethod
    def _has_neighbor(flight: Flight, peer: str) -> bool:
        return peer in flight.neighbors.values()

    def own(self, sid: str) -> None:
        """A session that is connected while requests of it are here has them to itself until the last is over."""
        session = self.peers.inbound.get(inbound_name(sid))
        if session is not None and session.key:
            self._owners.setdefault(sid, session.key)

    def may_speak_for(self, sid: str, peer: str) -> bool:
        """Whether a peer that has a session's name has the key of whoever opened what is here of it."""
        return self._owners.get(sid, "") in ("", self.peers.key_of(peer))

    def client_of(self, sid: str) -> str:
        """On whose account a session's requests are: all sessions of one public key are one client."""
        session = self.peers.inbound.get(inbound_name(sid))
        return self._owners.get(sid) or (session.key if session is not None else "") or sid

    def account_of(self, opened: Open) -> str:
        """On whose account a request is."""
        return self.client_of(opened.sid)

    def take_up(self, flight: Flight, hop: int) -> Iterator[Instruction]:
        """As for any tier, unless the deadline passed or nobody waits."""
        away = self._away.get(flight.key)
        if away is not None and away.parked:
            return
        if self.now >= flight.deadline:
            yield from self.give_up_late(flight)
            return
        yield from super().take_up(flight, hop)

    def on_ran(self, event: Ran) -> Iterator[Instruction]:
        """A segment ran: pass on what it made."""
        run = self._runs.get(event.token)
        found = self.finish_run(event)
        flight = self.flights.get(run.key) if run is not None else None
        if found is not None:
            yield from self._go_on(*found, event)
        if flight is not None and flight.key in self.flights:
            self.shares.update(flight)

    def _go_on(self, flight: Flight, hop: int, event: Ran) -> Iterator[Instruction]:
        if self.now >= flight.deadline:
            yield from self.give_up_late(flight)
            return
        if event.error == DEADLINE:
            yield from self.give_up_late(flight)
            return
        if event.error:
            code = "range" if event.error.startswith(OUT_OF_RANGE) else "compute"
            yield from self.fail(flight, self.tier, code, event.error, retryable=code == "range")
            return
        segment = flight.route[hop].segment
        timing = HopTiming(self.tier, segment, event.wait_us, event.run_us, flight.bytes_in, 0, event.batch)
        try:
            yield from self.pass_on(flight, hop, timing)
        except ProtocolError as error:
            yield from self.fail(flight, self.tier, "protocol", str(error), retryable=False)

    def on_have(self, peer: str, message: Have) -> Iterator[Instruction]:
        """The next of a hop says how much it has."""
        flight = self.flights.get((message.sid, message.rid))
        waiting = flight.departures.get(message.hop) if flight is not None else None
        if flight is None or waiting is None or flight.key in self._away:
            return
        if flight.neighbors.get(waiting[0].route[message.hop].tier) == peer:
            yield from self.depart(message)

    def send_on(self, flight: Flight, hop: int, messages: Sequence[Open | Chunk]) -> Iterator[Instruction]:
        """Back to whom it came from, or on to a tier beyond."""
        tier = flight.route[hop].tier
        peer = flight.neighbors.get(tier)
        if peer is None:
            peer = flight.neighbors[tier] = self.peers.way(flight.sid, flight.bundle, tier)
        for message in messages:
            if isinstance(message, Open):
                _check_length(message)
        yield from self.peers.post(peer, flight.bundle, messages, self.now)

    def understands(self, flight: Flight, hop: int, feature: str) -> bool:
        """Whether the peer of a hop named a feature."""
        tier = flight.route[hop].tier
        try:
            peer = flight.neighbors.get(tier) or self.peers.way(flight.sid, flight.bundle, tier)
        except ProtocolError:
            return False
        return self.peers.understands(peer, flight.bundle, feature)

    def squeezer(self, flight: Flight, hop: int) -> LinkSqueezer | None:
        """Squeezes what goes over a link so slow that it pays."""
        peer = flight.neighbors.get(flight.route[hop].tier)
        rate = None if peer is None else self.gauges.rate_to(peer, self.now)
        if self.squeezing is None or peer is None or rate is None:
            return None
        return self.squeezing.on_link(peer, rate, self.peers.features_of(peer))

    def pass_back(self, peer: str, message: Failed) -> Iterator[Instruction]:
        """Another tier could not: the session decides, so hand it on towards the session."""
        flight = self.flights.get((message.sid, message.rid))
        if flight is not None and flight.attempt == message.attempt and self._has_neighbor(flight, peer):
            yield from self._tell_session(flight, message)

    def forget(self, peer: str, message: Cancel | Done) -> Iterator[Instruction]:
        """A request is over, or an attempt is. Its data may still be on the way, because control overtakes it."""
        key = (message.sid, message.rid)
        flight = self.flights.get(key)
        came_by_it = flight is not None and self._has_neighbor(flight, peer)
        is_session = inbound_name(message.sid) == peer and self.may_speak_for(message.sid, peer)
        if not is_session and not (peer in self.peers.inbound and came_by_it):
            return
        if flight is not None and isinstance(message, Cancel) and message.attempt < flight.attempt:
            return
        self._ends.remember(key, message.attempt if isinstance(message, Cancel) else None)
        if flight is not None:
            self.counts["done"] += isinstance(message, Done)
            yield from self.drop(flight)

    def leave_behind(self, peer: str, *, for_good: bool) -> Iterator[Instruction]:
        """A session or a worker before this one is gone; what only it wanted lingers, or goes with it for good."""
        for flight in list(self.flights.values()):
            own = inbound_name(flight.sid) == peer
            if not own and not self._has_neighbor(flight, peer):
                continue
            others = (inbound_name(flight.sid), *flight.neighbors.values())
            attended = any(name in self.peers.inbound for name in others)
            if not own and attended:
                continue
            if for_good or self.options.linger_s <= 0 or self.bundles.draining:
                yield from self.drop(flight)
            else:
                yield from self._send_away(flight, parked=not attended)

    def _send_away(self, flight: Flight, *, parked: bool) -> Iterator[Instruction]:
        self._away.pop(flight.key, None)
        self._away[flight.key] = _Away(self.now, parked)
        if parked:
            yield from self.skip_runs(flight)
            yield from self._withdraw(flight)
            flight.set_arrivals_aside()
            flight.departures.clear()
            self.shares.update(flight)

    def session_is_back(self, peer: str) -> None:
        """What others waited for meanwhile goes on as if nothing had been; what rested waits for the next attempt."""
        for key, away in list(self._away.items()):
            if not away.parked and inbound_name(key[0]) == peer:
                del self._away[key]

    def end_lingering(self, *, all_of_them: bool = False) -> Iterator[Instruction]:
        """Forget requests whose session stayed away."""
        for key, away in list(self._away.items()):
            if all_of_them or self.now - away.since >= self.options.linger_s:
                yield from self.drop(self.flights[key])

    def drop(self, flight: Flight) -> Iterator[Instruction]:
        """Forget a request and what is queued for it."""
        del self.flights[flight.key]
        self._away.pop(flight.key, None)
        self.shares.remove(flight)
        if not self.shares.has_any(flight.sid):
            self._owners.pop(flight.sid, None)
        yield from self.skip_runs(flight)
        yield from self._withdraw(flight)

    def _withdraw(self, flight: Flight) -> Iterator[Instruction]:
        for peer in dict.fromkeys(flight.neighbors.values()):
            yield Withdraw(peer, flight.sid, flight.rid)
            if peer in self.peers.beyond:
                self.peers.beyond[peer].withdraw(flight.sid, flight.rid)

    def give_up_late(self, flight: Flight) -> Iterator[Instruction]:
        """The deadline of a request passed: it is over, and its tensors are freed."""
        self._ends.remember(flight.key, flight.attempt)
        yield from self.fail(flight, self.tier, "deadline", f"the deadline passed at {self.tier}", retryable=False)
        yield from self.drop(flight)

    def fail(self, flight: Flight, tier: str, code: str, reason: str, *, retryable: bool) -> Iterator[Instruction]:
        """Say that an attempt failed; values stay for the next attempt."""
        flight.set_arrivals_aside()
        self.failures[code] += 1
        message = Failed(flight.sid, flight.rid, flight.attempt, tier, code, reason[:_REASON_CHARS], retryable)
        yield from self._tell_session(flight, message)

    def _failed(self, peer: str, about: Open | Chunk, code: str, reason: str, *, retryable: bool) -> Send:
        self.failures[code] += 1
        text = reason[:_REASON_CHARS]
        return Send(peer, Failed(about.sid, about.rid, about.attempt, self.tier, code, text, retryable))

    def _tell_session(self, flight: Flight, message: Failed) -> Iterator[Instruction]:
        """To the session itself if it is connected here, else back the way the request came, if that is there."""
        ways = (inbound_name(flight.sid), *flight.neighbors.values())
        back = next((peer for peer in ways if peer in self.peers.inbound), None)
        if back is not None:
            yield Send(back, message)


def _check_length(opened: Open) -> None:
    """Whether an announcement fits into a message: it grows by a timing at each hop.

    Raises:
        ProtocolError: it does not.
    """
    names = sum(len(hop.carry) for hop in opened.route) + 2 * len(opened.tensors) + len(opened.outputs)
    if names < 64:
        return  # at 256 bytes a name and a little around it, far from the limit
    try:
        encode(opened)
    except InternalError as error:
        raise ProtocolError(f"request {opened.rid} cannot be passed on: {error}") from None
