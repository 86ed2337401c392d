"""The session as a pure state machine: what each event and message means, and when what is due.

Requests and their attempts are in `session_attempts.py`, on top of `relay.py`. Beside them stand the workers
(`session_workers.py`), epochs (`session_epochs.py`), the ways that attempts go (`session_ways.py`) and what is believed
of the world (`session_guide.py`). Another bundle or policy begins a new epoch: requests that began in an older one end
in it. Sockets, clocks and threads are `session.py`'s.
"""

from collections import deque
from collections.abc import Iterator

from flagsplit.errors import (
    InternalError,
    UnavailableError,
)
from flagsplit.runtime.events import (
    Abandon,
    Adopt,
    Adopted,
    Disconnect,
    Event,
    Fail,
    Instruction,
    Leave,
    Note,
    Ran,
    Send,
    Submit,
    Superseded,
    Tick,
    TierChanged,
)
from flagsplit.runtime.session_attempts import SessionAttempts
from flagsplit.runtime.session_facts import SessionFacts as SessionFacts
from flagsplit.runtime.session_facts import SessionOptions as SessionOptions
from flagsplit.runtime.session_figures import session_figures
from flagsplit.runtime.telemetry.stats import SessionStats
from flagsplit.transport.channel import Acked, Down, Received, Up, Violated
from flagsplit.transport.messages import (
    PROBE,
    Bye,
    Chunk,
    Drain,
    Failed,
    Have,
    Message,
    Open,
    Ping,
    Pong,
    Probe,
    Reject,
    Welcome,
)


class SessionMachine(SessionAttempts):
    """One session: its own tier, the workers, and all requests."""

    def start(self) -> list[Instruction]:
        """Connect to all workers."""
        return [self._workers.connect(tier) for tier in self._workers.peers]

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """Take an event at a time in seconds; answer with what to do, in order."""
        self.now = now
        self._ways.forget()
        return list(self._handle(event))

    def next_tick(self) -> float:
        """When the machine wants a `Tick` at the latest."""
        times = [self._workers.next_tick()]
        times += [min(request.expires, request.flight.deadline) for request in self._requests.values()]
        times += [submit.deadline for submit in self._queue]
        times += [self._epochs.adopt_by] if self._epochs.coming else []
        return min(times)

    def _handle(self, event: Event) -> Iterator[Instruction]:
        match event:
            case Submit():
                self._queue.append(event)
                yield from self._fill_window()
            case Ran():
                yield from self._on_ran(event)
            case Received(tier, message):
                self._workers.liveness.heard(tier, self.now)
                yield from self._on_message(tier, message)
            case Up(tier):
                self._workers[tier].connected = True
                self._guide.came(tier, self.now)
                for bundle in self._epochs.bundles:
                    yield self._workers.greet(tier, bundle)
            case Down(tier, reason) | Violated(tier, reason):
                yield from self._lose(tier, reason)
            case Tick():
                yield from self._on_tick()
            case Abandon(rid):
                yield from self._abandon(rid)
            case Adopt(facts):
                yield from self._adopt(facts)
            case Leave():
                yield from self._workers.farewell()
            case Acked(tier):
                self._workers.liveness.heard(tier, self.now)
                self._guide.acked(event, self.now)
            case _:
                raise InternalError(f"a session cannot handle {event}")

    def _on_message(self, tier: str, message: Message) -> Iterator[Instruction]:
        match message:
            case Welcome():
                yield from self._welcomed(tier, message)
            case Reject(code="draining"):
                yield from self._lose(tier, message.reason)
            case Reject():
                yield from self._rejected(tier, message)
            case Bye():
                yield from self._lose(tier, message.reason or "it left")
            case Drain():
                yield from self._on_drain(tier, message)
            case Failed():
                yield from self._on_failed(tier, message)
            case Open() | Chunk():
                yield from self._on_tensors(tier, message)
            case Have():
                yield from self.depart(message)
            case Pong(queue=queue, held_bytes=held_bytes):
                self._workers[tier].queue, self._workers[tier].held_bytes = queue, held_bytes
                self._guide.ponged(tier, message, self.now)
            case _:
                pass

    def _welcomed(self, tier: str, message: Welcome) -> Iterator[Instruction]:
        peer = self._workers[tier]
        if message.tier != tier or message.bundle not in self._epochs.bundles:
            serves = f"tier {message.tier} of bundle {message.bundle[:12]}"
            wanted = f"tier {tier} of {self._epochs.current.facts.bundle[:12]}"
            reason = f"the worker at {peer.address.address} serves {serves}, not {wanted}"
            yield Disconnect(tier)
            yield from self._lose(tier, reason, "refused")
            return
        peer.welcomed(message)
        self._workers.liveness.watch(tier, self.now)
        if message.bundle == self._epochs.current.facts.bundle:
            yield TierChanged(tier, "up")
        yield from self._adopt_if_ready()
        for request in list(self._requests.values()):
            if request.waits_for_tier:
                yield from self._attempt(request)

    def _rejected(self, tier: str, message: Reject) -> Iterator[Instruction]:
        peer = self._workers[tier]
        bundle = peer.asked.popleft() if peer.asked else ""
        if peer.serves or any(other != bundle for other in peer.asked):
            yield Note(f"{tier} does not serve {bundle[:12]}: {message.reason}")
            yield from self._adopt_if_ready()
        else:
            yield Disconnect(tier)
            is_busy = message.code == "busy"
            reason = f"it has no room now: {message.reason}" if is_busy else message.reason
            yield from self._lose(tier, reason, "down" if is_busy else "refused")
        if message.code == "busy" and bundle:
            self._workers.had_no_room(tier, self.now)

    def _on_drain(self, tier: str, message: Drain) -> Iterator[Instruction]:
        """It takes nothing new; what is there already it finishes."""
        self._workers[tier].draining.add(message.bundle)
        if message.bundle in ("", self._epochs.current.facts.bundle):
            yield TierChanged(tier, "draining", message.reason)
        if message.bundle and message.successor:
            yield Superseded(tier, message.bundle, message.successor)

    def _lose(self, tier: str, reason: str, state: str = "down") -> Iterator[Instruction]:
        yield from self._workers.lose(tier, reason, state)
        yield from self._adopt_if_ready()
        for request in list(self._requests.values()):
            if tier in request.on_its_way:
                request.last_reason = f"{tier}: {reason}"
                yield from self._attempt(request)

    def _adopt(self, facts: SessionFacts) -> Iterator[Instruction]:
        """Prepare another epoch; one that was being prepared already will never be."""
        yield from self._part_with(self._epochs.prepare(facts, self.now + self._options.adopt_s))
        self.segments[facts.bundle] = self.segments.get(facts.bundle, {}) | facts.own_segments()
        yield from self._workers.ask_for(facts.bundle)
        yield from self._adopt_if_ready()

    def _adopt_if_ready(self) -> Iterator[Instruction]:
        """The new epoch begins when every worker that is there has said whether it serves the bundle."""
        coming = self._epochs.coming
        if coming is None:
            return
        bundle = coming.facts.bundle
        peers = self._workers.peers
        if self.now < self._epochs.adopt_by and any(bundle in peer.asked for peer in peers.values()):
            return
        self._epochs.begin(coming)
        self._guide.adopt(coming.facts)
        without = tuple(tier for tier, peer in peers.items() if not peer.takes(bundle))
        yield Adopted(coming.number, bundle, without)
        yield from self._release()
        for request in list(self._requests.values()):
            if request.waits_for_tier and request.flight.attempt == 0:
                request.enter(coming)
                yield from self._attempt(request)

    def _on_tick(self) -> Iterator[Instruction]:
        due, silent = self._workers.liveness.tick(self.now)
        for tier in due:
            self._guide.pinged(tier, self.now)
            yield Send(tier, Ping(0, int(self.now * 1e6)))
        for tier in silent:
            yield from self._lose(tier, "it went silent")
            yield from self._workers.reconnect(tier)
        yield from self._workers.ask_again(self._epochs.bundles, self.now)
        yield from self._adopt_if_ready()
        if not silent:  # requests that lost a tier go first
            yield from self._probe()
        for request in list(self._requests.values()):
            if request.flight.key not in self.flights:
                continue
            if self.now >= request.flight.deadline:
                yield from self._give_up(request, self._too_late(request))
            elif self.now >= request.expires:
                yield from self._expire(request)
        late = [submit for submit in self._queue if self.now >= submit.deadline]
        self._queue = deque(submit for submit in self._queue if self.now < submit.deadline)
        for submit in late:
            yield Fail(submit.rid, UnavailableError("the deadline passed while other requests ran"))

    def _probe(self) -> Iterator[Instruction]:
        """Measure links that are idle and may have recovered."""
        for probe in self._guide.probes(self.now, self._workers.line(self._epochs.current.facts)):
            if PROBE in self._workers[probe.target].features:
                self._guide.sent(probe.target, probe.size_bytes, self.now)
                yield Send(probe.target, Probe(0, probe.reply_bytes, payload=bytes(probe.size_bytes)))

    def figures(self) -> SessionStats:
        """What there is now, for whoever watches."""
        return session_figures(
            self._guide,
            self._epochs.current,
            self._workers,
            self.now,
            queue=self.waiting_runs,
            waiting=len(self._queue),
            held_bytes=[flight.held_bytes for flight in self.flights.values()],
        )
