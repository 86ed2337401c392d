"""When a worker takes a request: who may speak of it, which attempt counts, whether there is room.

What comes in for one that was taken is put together here; what becomes of it then is in `worker_flights.py`.
"""

from collections.abc import Generator, Iterator

from flagsplit.errors import ProtocolError
from flagsplit.runtime.events import Instruction, Send
from flagsplit.runtime.relay import Flight
from flagsplit.runtime.worker_flights import WorkerFlights
from flagsplit.runtime.worker_shares import ENTRY_BYTES
from flagsplit.transport.channel import inbound_name
from flagsplit.transport.messages import Chunk, Open


class WorkerAdmission(WorkerFlights):
    """Takes tensors in; `WorkerMachine` hands the messages on."""

    def on_tensors(self, peer: str, message: Open | Chunk) -> Iterator[Instruction]:
        """Tensors of a hop are announced, or come in."""
        key = (message.sid, message.rid)
        ready = None
        try:
            if isinstance(message, Open):
                ready = yield from self._on_open(peer, message)
            elif self._is_sender(peer, message):
                ready = self.accept_chunk(message)
            if ready is not None:
                yield from self.arrive(ready, message.hop)
        except ProtocolError as error:
            yield self._failed(peer, message, "protocol", str(error), retryable=False)
            flight = self.flights.get(key)
            if flight is not None and not (flight.values or flight.partial or flight.arrivals):
                yield from self.drop(flight)
        if key in self.flights and (ready is not None or isinstance(message, Open)):
            self.shares.update(self.flights[key])

    def _on_open(self, peer: str, opened: Open) -> Generator[Instruction, None, Flight | None]:
        if not self._may_ask(peer, opened):
            yield self._failed(peer, opened, "protocol", "this request is not yours to speak of", retryable=False)
            return None
        bundle = opened.bundle or self._bundle_meant(peer, opened)
        if bundle not in self.segments:
            reason = f"bundle {bundle[:12] or '(none)'} is not served by tier {self.tier}"
            yield self._failed(peer, opened, "bundle", reason, retryable=True)
            return None
        self.check_open(opened, bundle)
        flight = yield from self._flight_for(peer, opened, bundle)
        if flight is None:
            return None
        if self.accept_open(flight, opened, peer):
            return flight
        if opened.resume:
            self.counts["resumed"] += 1
            yield Send(peer, self.have(flight, opened.hop))
        return None

    def _may_ask(self, peer: str, opened: Open) -> bool:
        """A session may ask for itself, a worker for anybody; a tier beyond goes on with what was sent to it."""
        inbound = self.peers.inbound.get(peer)
        if inbound is not None:
            return inbound.role == "worker" or inbound_name(opened.sid) == peer
        flight = self.flights.get((opened.sid, opened.rid))
        # About a request that is over there is nothing to say; `_flight_for` ignores it.
        return flight is None or (opened.attempt <= flight.attempt and self._has_neighbor(flight, peer))

    def _bundle_meant(self, peer: str, opened: Open) -> str:
        inbound = self.peers.inbound.get(peer)
        flight = self.flights.get((opened.sid, opened.rid))
        return inbound.bundle if inbound is not None else flight.bundle if flight is not None else ""

    def _is_sender(self, peer: str, chunk: Chunk) -> bool:
        """Whether a chunk comes from whoever announced it."""
        flight = self.flights.get((chunk.sid, chunk.rid))
        announced = flight.arrivals.get(chunk.hop) if flight is not None else None
        return (
            flight is not None
            and announced is not None
            and flight.neighbors.get(announced[0].route[chunk.hop - 1].tier) == peer
        )

    def _flight_for(self, peer: str, opened: Open, bundle: str) -> Generator[Instruction, None, Flight | None]:
        """The request that an announcement is about, made or begun anew where it is time for that."""
        key = (opened.sid, opened.rid)
        flight = self.flights.get(key)
        if flight is None and (peer in self.peers.beyond or self._ends.is_over(key, opened.attempt)):
            return None
        if flight is not None and flight.bundle != bundle:
            if opened.attempt <= flight.attempt:
                raise ProtocolError(f"request {opened.rid} changed its bundle within attempt {flight.attempt}")
            yield from self.drop(flight)
            flight = None
        if flight is not None and not (yield from self._is_wanted(flight, opened)):
            return None
        if opened.deadline_ms == 0:
            yield from self._refuse_late(peer, opened, flight)
            return None
        if flight is None and not self.bundles.takes_new(bundle):
            reason = self.bundles.draining or f"bundle {bundle[:12]} is being retired at tier {self.tier}"
            yield self._failed(peer, opened, "draining", reason, retryable=True)
            return None
        reason = yield from self._find_room(flight, opened)
        if reason:
            yield self._failed(peer, opened, "busy", f"tier {self.tier} is full: {reason}", retryable=True)
            return None
        deadline = self.now + opened.deadline_ms / 1000
        if flight is None:
            self.counts["opened"] += 1
            flight = self.flights[key] = Flight(
                *(opened.sid, opened.rid, opened.attempt, opened.plan, opened.route, deadline, bundle),
                client=self.account_of(opened),
            )
        self.own(opened.sid)
        flight.deadline, flight.epoch, flight.traceparent = deadline, opened.epoch, opened.traceparent
        return flight

    def _is_wanted(self, flight: Flight, opened: Open) -> Generator[Instruction, None, bool]:
        """Whether an announcement is of the newest attempt and new; a later one begins anew."""
        if opened.attempt > flight.attempt:
            if self._away.pop(flight.key, None) is not None:
                self.counts["returned"] += 1
            flight.restart(opened.attempt, opened.plan, opened.route)
            self.shares.update(flight)
            yield from ()
        return opened.attempt == flight.attempt and opened.hop not in (flight.reached | flight.arrivals.keys())

    def _refuse_late(self, peer: str, opened: Open, flight: Flight | None) -> Iterator[Instruction]:
        yield self._failed(peer, opened, "deadline", "the deadline passed on the way", retryable=False)
        if flight is not None:
            yield from self.drop(flight)

    def _find_room(self, flight: Flight | None, opened: Open) -> Generator[Instruction, None, str]:
        """Why a request cannot be taken, or "". Those whose session is away make room first, the oldest first; then,
        for what is within a client's share, those of clients that have more than theirs."""
        kept = self._kept(flight, opened) if flight is not None and opened.resume else {}
        coming = sum(header.size_bytes + ENTRY_BYTES for header in opened.tensors if header.name not in kept)
        is_new = flight is None
        while self.shares.is_full(coming, is_new=is_new):
            oldest = next((key for key in self._away if flight is None or key != flight.key), None)
            if oldest is None:
                break
            yield from self.drop(self.flights[oldest])
        sessions = (one.instance for one in self.peers.inbound.values() if one.role == "session" and one.ways)
        connected = {self.client_of(sid) for sid in sessions}
        client = self.account_of(opened) if flight is None else flight.client
        while (key := self.shares.debtor(client, coming, is_new=is_new, connected=connected)) is not None:
            yield from self._give_way(self.flights[key])
        return self.shares.refusal(client, coming, is_new=is_new, connected=connected)

    def _give_way(self, flight: Flight) -> Iterator[Instruction]:
        """End what its client holds beyond its share."""
        self._ends.remember(flight.key, flight.attempt)
        reason = f"tier {self.tier} is full: others need their share, of which this client has more than one"
        yield from self.fail(flight, self.tier, "busy", reason, retryable=True)
        yield from self.drop(flight)
