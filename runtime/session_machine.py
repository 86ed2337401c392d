"""The session as a pure state machine: which tiers are there, which plan each request takes, what to do when one fails.

A request is retained until its answer is here. When a tier of its route goes, when a tier says that it failed, or when
an attempt takes too long, the best plan that is left takes over in a new attempt, from whatever this tier still holds.
Only the answer of the newest attempt counts, so every request is answered once.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from flagsplit.errors import (
    FlagsplitError,
    InputError,
    InternalError,
    PeerError,
    PolicyError,
    ProtocolError,
    UnavailableError,
)
from flagsplit.runtime.events import (
    Abandon,
    Connect,
    Deliver,
    Disconnect,
    Event,
    Fail,
    Instruction,
    Leave,
    Note,
    Ran,
    Send,
    Submit,
    Tick,
    TierChanged,
    Withdraw,
)
from flagsplit.runtime.itinerary import PlannedStep, itinerary
from flagsplit.runtime.liveness import Liveness, LivenessOptions
from flagsplit.runtime.relay import Flight, Relay
from flagsplit.runtime.report import make_report
from flagsplit.splitter.pool import Pool
from flagsplit.splitter.state import State
from flagsplit.transport.channel import Acked, Down, Received, Up, Violated
from flagsplit.transport.messages import (
    MAX_HOPS,
    VERSION,
    Bye,
    Cancel,
    Chunk,
    Done,
    Drain,
    Failed,
    Hello,
    Hop,
    HopTiming,
    Message,
    Open,
    PeerAddress,
    Ping,
    Reject,
    Welcome,
    encode,
)
from flagsplit.transport.tensors import TransferLimits


@dataclass(frozen=True)
class SessionOptions:
    """Limits and times of a session.

    Attributes:
        window: requests on their way at once; more wait their turn.
        attempt_s: seconds after which an attempt counts as lost, doubled with each further attempt.
        max_attempts: attempts before a request fails.
        liveness: heartbeats to the workers.
    """

    window: int = 8
    attempt_s: float = 15.0
    max_attempts: int = 16
    liveness: LivenessOptions = field(default_factory=LivenessOptions)


@dataclass(frozen=True)
class SessionFacts:
    """What a session knows of its bundle.

    Attributes:
        bundle: its digest.
        tiers: names of the tiers; the session is the first.
        pool: the plans.
        steps: the segments of each plan.
        nominal: the state that the plans were made for.
        inputs: names of the graph inputs.
        outputs: names of the graph outputs.
        answers: by plan, the names under which it makes them, where those are others.
    """

    bundle: str
    tiers: tuple[str, ...]
    pool: Pool
    steps: Mapping[str, tuple[PlannedStep, ...]]
    nominal: State
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    answers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def answers_of(self, plan: str) -> dict[str, str]:
        """For each graph output, the value that is it under a plan."""
        renamed = self.answers.get(plan, {})
        return {output: renamed.get(output, output) for output in self.outputs}


@dataclass
class _Peer:
    address: PeerAddress
    up: bool = False
    reason: str = "not connected yet"


@dataclass
class _Request:
    """What only the session knows of a request."""

    flight: Flight
    wanted: str
    submitted: float
    expires: float = 0.0
    avoid: set[str] = field(default_factory=set)
    asked: set[str] = field(default_factory=set)
    last_reason: str = ""
    compute_error: str = ""
    waits: int = 0

    @property
    def waits_for_tier(self) -> bool:
        return not self.flight.route


class SessionMachine(Relay):
    """One session: its own tier, the workers, and all requests.

    Args:
        facts: of the bundle.
        workers: address of each worker, by tier name.
        instance: names this start of the process; workers know the session by it.
        options: limits and times.
        limits: on tensors that come back.
    """

    def __init__(
        self,
        facts: SessionFacts,
        workers: Mapping[str, PeerAddress],
        instance: str,
        options: SessionOptions | None = None,
        limits: TransferLimits | None = None,
    ) -> None:
        own = {step.segment: step for steps in facts.steps.values() for step in steps if step.tier == 0}
        super().__init__(facts.tiers[0], own, limits or TransferLimits())
        self._facts = facts
        self._peers = {tier: _Peer(address) for tier, address in workers.items()}
        self._instance = instance
        self._options = options or SessionOptions()
        self._liveness = Liveness(self._options.liveness)
        self._requests: dict[int, _Request] = {}
        self._queue: deque[Submit] = deque()
        self._routes: dict[tuple[str, tuple[int, ...]], tuple[Hop, ...]] = {}

    def start(self) -> list[Instruction]:
        """Connect to all workers."""
        return [Connect(tier, peer.address.address, peer.address.server_key) for tier, peer in self._peers.items()]

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """Take an event at a time in seconds; answer with what to do, in order."""
        self.now = now
        return list(self._handle(event))

    def next_tick(self) -> float:
        """When the machine wants a `Tick` at the latest."""
        times = [self._liveness.next_tick()]
        times += [min(request.expires, request.flight.deadline) for request in self._requests.values()]
        times += [submit.deadline for submit in self._queue]
        return min(times)

    def _handle(self, event: Event) -> Iterator[Instruction]:
        match event:
            case Submit():
                self._queue.append(event)
                yield from self._fill_window()
            case Ran():
                yield from self._on_ran(event)
            case Received(tier, message):
                self._liveness.heard(tier, self.now)
                yield from self._on_message(tier, message)
            case Up(tier):
                yield from self._greet(tier)
            case Down(tier, reason) | Violated(tier, reason):
                yield from self._lose(tier, reason)
            case Tick():
                yield from self._on_tick()
            case Abandon(rid):
                yield from self._abandon(rid)
            case Leave():
                yield from (Send(tier, Bye("the session ends")) for tier, peer in self._peers.items() if peer.up)
            case Acked():
                pass
            case _:
                raise InternalError(f"a session cannot handle {event}")

    def _greet(self, tier: str) -> Iterator[Instruction]:
        heartbeat_ms = int(self._options.liveness.heartbeat_s * 1000)
        others = {name: peer.address for name, peer in self._peers.items() if name != tier}
        yield Send(tier, Hello(VERSION, VERSION, self._instance, "session", self._facts.bundle, heartbeat_ms, others))

    def _on_message(self, tier: str, message: Message) -> Iterator[Instruction]:
        match message:
            case Welcome():
                yield from self._welcomed(tier, message)
            case Reject(code="draining"):
                yield from self._lose(tier, message.reason)
            case Reject():
                yield Disconnect(tier)
                yield from self._lose(tier, message.reason, "refused")
            case Bye() | Drain():
                yield from self._lose(tier, message.reason or "it left")
            case Failed():
                yield from self._on_failed(message)
            case Open() | Chunk():
                yield from self._on_tensors(tier, message)
            case _:
                pass

    def _welcomed(self, tier: str, message: Welcome) -> Iterator[Instruction]:
        if (message.tier, message.bundle) != (tier, self._facts.bundle):
            yield Disconnect(tier)
            address = self._peers[tier].address.address
            serves = f"tier {message.tier} of bundle {message.bundle[:12]}"
            wanted = f"tier {tier} of {self._facts.bundle[:12]}"
            yield from self._lose(tier, f"the worker at {address} serves {serves}, not {wanted}", "refused")
            return
        self._peers[tier].up = True
        self._liveness.watch(tier, self.now)
        yield TierChanged(tier, "up")
        for request in list(self._requests.values()):
            if request.waits_for_tier:
                yield from self._attempt(request)

    def _lose(self, tier: str, reason: str, state: str = "down") -> Iterator[Instruction]:
        peer = self._peers[tier]
        self._liveness.forget(tier)
        if peer.up or peer.reason != reason:
            yield TierChanged(tier, state, reason)
        peer.up, peer.reason = False, reason
        for request in list(self._requests.values()):
            if any(hop.tier == tier for hop in request.flight.route):
                request.last_reason = f"{tier}: {reason}"
                yield from self._attempt(request)

    def _fill_window(self) -> Iterator[Instruction]:
        while self._queue and len(self._requests) < self._options.window:
            submit = self._queue.popleft()
            if self.now >= submit.deadline:
                yield Fail(submit.rid, UnavailableError("the deadline passed before the request's turn came"))
                continue
            flight = Flight(self._instance, submit.rid, 0, "", (), submit.deadline, dict(submit.inputs))
            request = _Request(flight, submit.plan, self.now)
            self._requests[submit.rid] = request
            self.flights[flight.key] = flight
            yield from self._attempt(request)

    def _attempt(self, request: _Request) -> Iterator[Instruction]:
        """Begin the next attempt with the best plan for the tiers that are there."""
        flight = request.flight
        if flight.attempt >= self._options.max_attempts:
            reason = f"{flight.attempt} attempts failed, the last because of {request.last_reason or 'a time-out'}"
            yield from self._give_up(request, UnavailableError(reason))
            return
        yield from self._withdraw(request)
        try:
            plan = self._choose(request)
            route = self._route(plan, request)
        except UnavailableError as error:
            if request.compute_error:
                yield from self._give_up(request, InputError(request.compute_error))
                return
            request.last_reason = request.last_reason or str(error)
            yield from self._cancel(request)
            flight.restart(flight.attempt, "", ())
            request.avoid.clear()
            request.expires = self.now + self._patience_s(flight, self._options.liveness.heartbeat_s, request.waits)
            request.waits += 1
            return
        except PolicyError as error:
            yield from self._give_up(request, error)
            return
        request.asked.update(hop.tier for hop in route[1:] if hop.tier != self.tier)
        flight.restart(flight.attempt + 1, plan, route)
        request.expires = self.now + self._patience_s(flight, self._options.attempt_s, flight.attempt - 1)
        yield from self._guarded(request, self.take_up(flight, 0))

    def _patience_s(self, flight: Flight, first_s: float, times: int) -> float:
        """How long to wait: twice as long each time, but never all the time that is left."""
        left_s = max((flight.deadline - self.now) / 2, self._options.liveness.heartbeat_s)
        return min(first_s * 2.0 ** min(times, 32), left_s)

    def _route(self, plan: str, request: _Request) -> tuple[Hop, ...]:
        """The hops of a plan past the tiers that are not there, and those that the plan goes round.

        Raises:
            PolicyError: it is beyond the limits of the protocol.
        """
        passed = self._facts.pool.plan(plan).route or range(len(self._facts.tiers))
        alive = tuple(i for i in passed if i == 0 or self._usable(self._facts.tiers[i], request))
        known = self._routes.get((plan, alive))
        if known is not None:
            return known
        answers = tuple(self._facts.answers_of(plan).values())
        hops = itinerary(self._facts.steps[plan], self._facts.inputs, answers, alive)
        route = tuple(Hop(self._facts.tiers[hop.tier], hop.segment, hop.carry) for hop in hops)
        if len(route) > MAX_HOPS:
            raise PolicyError(
                f"plan {plan!r} goes from tier to tier {len(route) - 1} times, at most {MAX_HOPS - 1} can be sent; "
                "choose another, or build with fewer changes of the tier"
            )
        try:
            encode(Open(self._instance, 0, 0, 0, plan, 0, route, (), 0))
        except InternalError as error:
            raise PolicyError(f"plan {plan!r} cannot be sent: {error}; choose another") from None
        self._routes[plan, alive] = route
        return route

    def _withdraw(self, request: _Request) -> Iterator[Instruction]:
        """What is still queued of an earlier attempt would only hold up the next."""
        yield from (Withdraw(tier, request.flight.sid, request.flight.rid) for tier in sorted(request.asked))

    def _choose(self, request: _Request) -> str:
        alive = tuple(i == 0 or self._usable(tier, request) for i, tier in enumerate(self._facts.tiers))
        if request.wanted:
            used = self._facts.pool.plan(request.wanted).used_tiers
            if all(alive[tier] for tier in used):
                return request.wanted
        return self._facts.pool.choose(replace(self._facts.nominal, alive=alive)).plan.name

    def _usable(self, tier: str, request: _Request) -> bool:
        return tier in self._peers and self._peers[tier].up and tier not in request.avoid

    def _cancel(self, request: _Request) -> Iterator[Instruction]:
        """Let the workers forget a request: who waits must not hold what others wait for."""
        cancel = Cancel(request.flight.sid, request.flight.rid, request.flight.attempt)
        yield from (Send(tier, cancel) for tier in sorted(request.asked))

    def _guarded(self, request: _Request, instructions: Iterator[Instruction]) -> Iterator[Instruction]:
        """Our own plan must never break the protocol; if it does, the request fails and the session lives."""
        try:
            yield from instructions
        except ProtocolError as error:
            text = f"plan {request.flight.plan!r} cannot be followed: {error}; please report this with the bundle"
            yield from self._give_up(request, InternalError(text))

    def _on_tensors(self, tier: str, message: Open | Chunk) -> Iterator[Instruction]:
        request = self._waiting_for(message)
        if request is None:
            return
        try:
            if isinstance(message, Open):
                self.check_open(message)
                ready = request.flight if self.accept_open(request.flight, message, tier) else None
            else:
                ready = self.accept_chunk(message)
            if ready is not None:
                yield from self.arrive(ready, message.hop)
        except ProtocolError as error:
            request.avoid.add(tier)
            request.last_reason = f"{tier}: {error}"
            yield Note(f"request {message.rid}: {tier} broke the protocol: {error}")
            yield from self._attempt(request)

    def _on_ran(self, event: Ran) -> Iterator[Instruction]:
        found = self.finish_run(event)
        if found is None:
            return
        flight, hop = found
        request = self._requests[flight.rid]
        if event.error:
            yield from self._give_up(request, InputError(event.error))
            return
        timing = HopTiming(self.tier, flight.route[hop].segment, event.wait_us, event.run_us, flight.bytes_in, 0)
        yield from self._guarded(request, self.pass_on(flight, hop, timing))

    def _waiting_for(self, message: Open | Chunk | Failed) -> _Request | None:
        """The request whose attempt of now a message is about."""
        request = self._requests.get(message.rid)
        if message.sid != self._instance or request is None or request.waits_for_tier:
            return None
        return request if message.attempt == request.flight.attempt else None

    def _on_failed(self, message: Failed) -> Iterator[Instruction]:
        request = self._waiting_for(message)
        if request is None:
            return
        request.avoid.add(message.tier)
        request.last_reason = f"{message.tier}: {message.reason}"
        if message.code == "compute":
            request.compute_error = request.compute_error or request.last_reason
        yield Note(f"request {message.rid}, attempt {message.attempt}: {request.last_reason}")
        yield from self._attempt(request)

    def send_on(self, flight: Flight, hop: int, messages: Sequence[Open | Chunk]) -> Iterator[Instruction]:
        """To the worker of a tier: peers are called by their tiers here."""
        for message in messages:
            yield Send(flight.route[hop].tier, message)

    def landed(self, flight: Flight) -> Iterator[Instruction]:
        """The answer is here."""
        request = self._requests.pop(flight.rid)
        del self.flights[flight.key]
        report = make_report(flight.plan, flight.attempt, self.now - request.submitted, flight.route, flight.trace)
        yield from self.skip_runs(flight)
        yield from self._withdraw(request)
        yield from (Send(tier, Done(flight.sid, flight.rid)) for tier in sorted(request.asked))
        answers = self._facts.answers_of(flight.plan)
        yield Deliver(flight.rid, {name: flight.values[made] for name, made in answers.items()}, report)
        yield from self._fill_window()

    def _give_up(self, request: _Request, error: FlagsplitError) -> Iterator[Instruction]:
        flight = request.flight
        del self._requests[flight.rid]
        del self.flights[flight.key]
        yield from self.skip_runs(flight)
        yield from self._withdraw(request)
        yield from self._cancel(request)
        yield Fail(flight.rid, error)
        yield from self._fill_window()

    def _abandon(self, rid: int) -> Iterator[Instruction]:
        request = self._requests.get(rid)
        if request is not None:
            yield from self._give_up(request, PeerError("abandoned"))
        else:
            self._queue = deque(submit for submit in self._queue if submit.rid != rid)

    def _on_tick(self) -> Iterator[Instruction]:
        due, silent = self._liveness.tick(self.now)
        for tier in due:
            yield Send(tier, Ping(0, int(self.now * 1e6)))
        for tier in silent:
            yield from self._lose(tier, "it went silent")
            yield Disconnect(tier)
            yield Connect(tier, self._peers[tier].address.address, self._peers[tier].address.server_key)
        for request in list(self._requests.values()):
            if self.now >= request.flight.deadline:
                yield from self._give_up(request, self._too_late(request))
            elif self.now >= request.expires:
                yield from self._expire(request)
        late = [submit for submit in self._queue if self.now >= submit.deadline]
        self._queue = deque(submit for submit in self._queue if self.now < submit.deadline)
        for submit in late:
            yield Fail(submit.rid, UnavailableError("the deadline passed while other requests ran"))

    def _expire(self, request: _Request) -> Iterator[Instruction]:
        """An attempt took too long. Who is slow is unknown: go on without the others, or if alone, with them again."""
        others = {hop.tier for hop in request.flight.route if hop.tier != self.tier}
        if others:
            request.last_reason = f"no answer in time from {', '.join(sorted(others))}"
            request.avoid |= others
        else:
            request.avoid.clear()
            if not request.waits_for_tier and self._choose(request) == request.flight.plan:
                request.expires = self.now + self._options.attempt_s
                return
        yield from self._attempt(request)

    def _too_late(self, request: _Request) -> UnavailableError:
        states = [f"{tier} {'up' if peer.up else f'down ({peer.reason})'}" for tier, peer in self._peers.items()]
        why = f"; last: {request.last_reason}" if request.last_reason else ""
        return UnavailableError(f"no answer within the deadline; {', '.join(states) or 'no workers'}{why}")
