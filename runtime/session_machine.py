"""The session as a pure state machine: which tiers are there, which plan each request takes, what to do when one fails.

A request is retained until its answer is here. When a tier of its route goes, when a tier says that it failed, or when
an attempt takes too long, the best plan that is left takes over in a new attempt, from whatever this tier still holds.
Only the answer of the newest attempt counts, so every request is answered once. Another bundle or policy begins a new
epoch: requests that began in an older one end in it.
"""

import math
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
from flagsplit.runtime.answer_check import check_answer
from flagsplit.runtime.decisions import Decision
from flagsplit.runtime.engine import DEADLINE, OUT_OF_RANGE
from flagsplit.runtime.events import (
    Abandon,
    Adopt,
    Adopted,
    Connect,
    Decided,
    Deliver,
    Disconnect,
    Event,
    Fail,
    Instruction,
    Leave,
    Note,
    Ran,
    Released,
    Send,
    Submit,
    Superseded,
    Tick,
    TierChanged,
    Withdraw,
)
from flagsplit.runtime.liveness import Liveness
from flagsplit.runtime.relay import Flight, Relay
from flagsplit.runtime.report import make_report
from flagsplit.runtime.session_facts import SessionFacts as SessionFacts
from flagsplit.runtime.session_facts import SessionOptions as SessionOptions
from flagsplit.runtime.session_guide import Patience, SessionGuide
from flagsplit.runtime.session_peers import WorkerPeer
from flagsplit.runtime.session_routes import Epoch, Rifts, way_into
from flagsplit.runtime.telemetry.stats import LinkStats, PeerStats, PlanStats, SessionStats
from flagsplit.runtime.telemetry.tracing import outgoing_traceparent
from flagsplit.transport.channel import Acked, Down, Received, Up, Violated
from flagsplit.transport.messages import (
    PROBE,
    Bye,
    Cancel,
    Chunk,
    Done,
    Drain,
    Failed,
    Have,
    Hop,
    HopTiming,
    Message,
    Open,
    PeerAddress,
    Ping,
    Pong,
    Probe,
    Reject,
    Welcome,
)
from flagsplit.transport.squeeze_policy import LinkSqueezer, SqueezePolicy
from flagsplit.transport.tensors import TransferLimits


@dataclass
class _Request:
    """What only the session knows of a request."""

    flight: Flight
    epoch: Epoch
    wanted: str
    submitted: float
    expires: float = 0.0
    avoid: set[str] = field(default_factory=set)
    asked: set[str] = field(default_factory=set)
    last_reason: str = ""
    compute_error: str = ""
    waits: int = 0
    exact: bool = False
    cause: str = ""
    rescue: float = math.inf
    waited: bool = False
    on_its_way: frozenset[str] = frozenset()

    @property
    def waits_for_tier(self) -> bool:
        return not self.flight.route


@dataclass(frozen=True)
class _Way:
    """How an attempt goes: its plan and route, the tiers that it asks, and how long it may take."""

    plan: str
    route: tuple[Hop, ...]
    others: frozenset[str]
    patience: Patience


class SessionMachine(Relay):
    """One session: its own tier, the workers, and all requests.

    Args:
        facts: of the bundle.
        workers: address of each worker, by tier name.
        instance: names this start of the process; workers know the session by it.
        options: limits and times.
        limits: on tensors that come back.
        squeezing: says which tensors to squeeze on their way; without one, none.
    """

    def __init__(
        self,
        facts: SessionFacts,
        workers: Mapping[str, PeerAddress],
        instance: str,
        options: SessionOptions | None = None,
        limits: TransferLimits | None = None,
        squeezing: SqueezePolicy | None = None,
    ) -> None:
        super().__init__(facts.tiers[0], {facts.bundle: facts.own_segments()}, limits or TransferLimits())
        self._peers = {tier: WorkerPeer(tier, address) for tier, address in workers.items()}
        self._instance = instance
        self._options = options or SessionOptions()
        self._liveness = Liveness(self._options.liveness)
        self._requests: dict[int, _Request] = {}
        self._queue: deque[Submit] = deque()
        self._squeezing = squeezing
        self._rifts = Rifts(self._options.shun_s)
        self._guide = SessionGuide(facts)
        self._epoch = Epoch(0, facts)
        self._epochs = [self._epoch]
        self._adopt_by = 0.0
        self._ways: dict[tuple[int, tuple[bool, ...]] | None, _Way] = {}

    def start(self) -> list[Instruction]:
        """Connect to all workers."""
        return [Connect(tier, peer.address.address, peer.address.server_key) for tier, peer in self._peers.items()]

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """Take an event at a time in seconds; answer with what to do, in order."""
        self.now = now
        self._ways.clear()
        return list(self._handle(event))

    def next_tick(self) -> float:
        """When the machine wants a `Tick` at the latest."""
        times = [self._liveness.next_tick()]
        times += [min(request.expires, request.flight.deadline) for request in self._requests.values()]
        times += [submit.deadline for submit in self._queue]
        times += [peer.ask_again for peer in self._peers.values()]
        times += [self._adopt_by] if self._coming else []
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
                self._peers[tier].connected = True
                self._guide.came(tier, self.now)
                for bundle in dict.fromkeys(epoch.facts.bundle for epoch in self._epochs):
                    yield self._greeting(tier, bundle)
            case Down(tier, reason) | Violated(tier, reason):
                yield from self._lose(tier, reason)
            case Tick():
                yield from self._on_tick()
            case Abandon(rid):
                yield from self._abandon(rid)
            case Adopt(facts):
                yield from self._adopt(facts)
            case Leave():
                yield from (Send(tier, Bye("the session ends")) for tier, peer in self._peers.items() if peer.serves)
            case Acked(tier):
                self._liveness.heard(tier, self.now)
                self._guide.acked(event, self.now)
            case _:
                raise InternalError(f"a session cannot handle {event}")

    def _greeting(self, tier: str, bundle: str) -> Send:
        others = {name: peer.address for name, peer in self._peers.items() if name != tier}
        return Send(tier, self._peers[tier].hello(bundle, self._instance, others, self._options.liveness))

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
                self._peers[tier].queue, self._peers[tier].held_bytes = queue, held_bytes
                self._guide.ponged(tier, message, self.now)
            case _:
                pass

    def _welcomed(self, tier: str, message: Welcome) -> Iterator[Instruction]:
        peer = self._peers[tier]
        if message.tier != tier or all(epoch.facts.bundle != message.bundle for epoch in self._epochs):
            serves = f"tier {message.tier} of bundle {message.bundle[:12]}"
            wanted = f"tier {tier} of {self._epoch.facts.bundle[:12]}"
            reason = f"the worker at {peer.address.address} serves {serves}, not {wanted}"
            yield Disconnect(tier)
            yield from self._lose(tier, reason, "refused")
            return
        peer.welcomed(message)
        self._liveness.watch(tier, self.now)
        if message.bundle == self._epoch.facts.bundle:
            yield TierChanged(tier, "up")
        yield from self._adopt_if_ready()
        for request in list(self._requests.values()):
            if request.waits_for_tier:
                yield from self._attempt(request)

    def _rejected(self, tier: str, message: Reject) -> Iterator[Instruction]:
        peer = self._peers[tier]
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
            peer.had_no_room(self.now, self._instance)

    def _on_drain(self, tier: str, message: Drain) -> Iterator[Instruction]:
        """It takes nothing new; what is there already it finishes."""
        self._peers[tier].draining.add(message.bundle)
        if message.bundle in ("", self._epoch.facts.bundle):
            yield TierChanged(tier, "draining", message.reason)
        if message.bundle and message.successor:
            yield Superseded(tier, message.bundle, message.successor)

    def _lose(self, tier: str, reason: str, state: str = "down") -> Iterator[Instruction]:
        peer = self._peers[tier]
        self._liveness.forget(tier)
        if peer.serves or peer.reason != reason:
            yield TierChanged(tier, state, reason)
        peer.lost(reason)
        peer.refused = state == "refused"
        yield from self._adopt_if_ready()
        for request in list(self._requests.values()):
            if tier in request.on_its_way:
                request.last_reason = f"{tier}: {reason}"
                yield from self._attempt(request)

    @property
    def _coming(self) -> Epoch | None:
        """The epoch that is being prepared."""
        return self._epochs[-1] if self._epochs[-1] is not self._epoch else None

    def _adopt(self, facts: SessionFacts) -> Iterator[Instruction]:
        """Prepare another epoch; one that was being prepared already will never be."""
        if self._coming is not None:
            yield from self._part_with([self._epochs.pop()])
        self._epochs.append(Epoch(self._epoch.number + 1, facts))
        self._adopt_by = self.now + self._options.adopt_s
        self.segments[facts.bundle] = self.segments.get(facts.bundle, {}) | facts.own_segments()
        for tier, peer in self._peers.items():
            if peer.connected and facts.bundle not in peer.serves and facts.bundle not in peer.asked:
                yield self._greeting(tier, facts.bundle)
            elif peer.refused:
                peer.refused = False
                yield Connect(tier, peer.address.address, peer.address.server_key)
        yield from self._adopt_if_ready()

    def _adopt_if_ready(self) -> Iterator[Instruction]:
        """The new epoch begins when every worker that is there has said whether it serves the bundle."""
        coming = self._coming
        if coming is None:
            return
        bundle = coming.facts.bundle
        if self.now < self._adopt_by and any(bundle in peer.asked for peer in self._peers.values()):
            return
        self._epoch = coming
        self._guide.adopt(coming.facts)
        without = tuple(tier for tier, peer in self._peers.items() if not peer.takes(bundle))
        yield Adopted(coming.number, bundle, without)
        yield from self._release()
        for request in list(self._requests.values()):
            if request.waits_for_tier and request.flight.attempt == 0:
                self._enter(request, coming)
                yield from self._attempt(request)

    def _enter(self, request: _Request, epoch: Epoch) -> None:
        request.epoch.requests -= 1
        epoch.requests += 1
        request.epoch = epoch
        request.flight.bundle, request.flight.epoch = epoch.facts.bundle, epoch.number

    def _release(self) -> Iterator[Instruction]:
        """Older epochs without requests are over."""
        over = [epoch for epoch in self._epochs if epoch.number < self._epoch.number and not epoch.requests]
        self._epochs = [epoch for epoch in self._epochs if epoch not in over]
        yield from self._part_with(over)

    def _part_with(self, over: Sequence[Epoch]) -> Iterator[Instruction]:
        for bundle in dict.fromkeys(epoch.facts.bundle for epoch in over):
            if all(epoch.facts.bundle != bundle for epoch in self._epochs):
                del self.segments[bundle]
                yield Released(bundle)

    def _fill_window(self) -> Iterator[Instruction]:
        while self._queue and len(self._requests) < self._options.window:
            submit = self._queue.popleft()
            if self.now >= submit.deadline:
                yield Fail(submit.rid, UnavailableError("the deadline passed before the request's turn came"))
                continue
            epoch = self._epoch
            flight = Flight(self._instance, submit.rid, 0, "", (), submit.deadline, epoch.facts.bundle, epoch.number)
            flight.traceparent = outgoing_traceparent(submit.traceparent, self._instance, submit.rid)
            flight.values.update(submit.inputs)
            request = _Request(flight, epoch, submit.plan, self.now)
            epoch.requests += 1
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
            alive = self._alive(request)
            way, decision = self._way(request, alive)
        except UnavailableError as error:
            if request.compute_error:
                yield from self._give_up(request, InputError(request.compute_error))
                return
            request.last_reason = request.last_reason or str(error)
            yield from self._cancel(request)
            flight.restart(flight.attempt, "", ())
            request.on_its_way = frozenset()
            request.avoid.clear()
            request.expires = self.now + self._patience_s(flight, self._options.liveness.heartbeat_s, request.waits)
            request.waits += 1
            return
        except PolicyError as error:
            yield from self._give_up(request, error)
            return
        if decision is not None:
            yield Decided(decision)
        request.asked |= way.others
        request.on_its_way = way.others
        flight.restart(flight.attempt + 1, way.plan, way.route)
        request.waited = False
        self._set_patience(request, way.patience)
        yield from self._guarded(request, self.take_up(flight, 0))

    def _set_patience(self, request: _Request, patience: Patience) -> None:
        """How long the attempt may take: as predicted and some more, or until nothing but a rescue can help."""
        flight = request.flight
        longest_s = self._patience_s(flight, self._options.attempt_s, flight.attempt - 1)
        # Those that are under way share tiers and links, so each may take as long as all of them.
        busy_s = patience.stalled_s * max(1, len(self._requests)) * 2.0 ** min(flight.attempt - 1, 32)
        rescue = math.inf if patience.rescue_s is None else flight.deadline - patience.rescue_s
        request.rescue = rescue if rescue > self.now else math.inf
        request.expires = min(self.now + min(busy_s, longest_s), request.rescue)

    def _patience_s(self, flight: Flight, first_s: float, times: int) -> float:
        """How long to wait: twice as long each time, but never all the time that is left."""
        left_s = max((flight.deadline - self.now) / 2, self._options.liveness.heartbeat_s)
        return min(first_s * 2.0 ** min(times, 32), left_s)

    def _way(self, request: _Request, alive: tuple[bool, ...]) -> tuple[_Way, Decision | None]:
        """How an attempt goes; for all requests that have no case of their own, worked out once for an event."""
        is_usual = not request.avoid and not request.exact and not self._can_have_its_way(request, alive)
        key = (request.epoch.number, alive) if is_usual else None
        known = self._ways.get(key)
        if known is not None:
            return known, None
        plan, decision = self._choose(request, alive)
        route = request.epoch.route(plan, alive, self._rifts.now(self.now))
        others = frozenset(hop.tier for hop in route[1:] if hop.tier != self.tier)
        way = _Way(plan, route, others, self._guide.patience(request.epoch.facts, plan, alive, self.now))
        if key is not None:
            self._ways[key] = way
        return way, decision

    def _withdraw(self, request: _Request) -> Iterator[Instruction]:
        """What is still queued of an earlier attempt would only hold up the next."""
        for tier in sorted(request.asked):
            if self._peers[tier].connected:  # else nothing is queued any more
                yield Withdraw(tier, request.flight.sid, request.flight.rid)

    def _choose(self, request: _Request, alive: tuple[bool, ...]) -> tuple[str, Decision | None]:
        """The plan for an attempt: the one asked for, the one that all follow, or the best for this request's case."""
        facts, rid = request.epoch.facts, request.flight.rid
        has_its_way, is_current = self._can_have_its_way(request, alive), request.epoch is self._epoch
        if has_its_way:
            # The guide knows the plans of the current epoch only.
            return request.wanted, self._guide.asked(self.now, alive, request.wanted, rid) if is_current else None
        if not is_current:
            pool = facts.pool
            without = facts.lossy if request.exact else ()
            return pool.choose(replace(facts.nominal, alive=alive), without=without).plan.name, None
        is_usual = not request.avoid and not request.exact
        return self._guide.choose(
            self.now, alive, avoid_lossy=request.exact, rid=None if is_usual else rid, reason=request.cause
        )

    @staticmethod
    def _can_have_its_way(request: _Request, alive: Sequence[bool]) -> bool:
        """Whether the plan that was asked for is there, can run, and can carry its values."""
        facts, wanted = request.epoch.facts, request.wanted
        if wanted not in facts.steps or (request.exact and wanted in facts.lossy):
            return False
        return all(alive[tier] for tier in facts.pool.plan(wanted).used_tiers)

    def _alive(self, request: _Request) -> tuple[bool, ...]:
        return (True, *[self._usable(tier, request) for tier in request.epoch.facts.tiers[1:]])

    def _usable(self, tier: str, request: _Request) -> bool:
        peer = self._peers.get(tier)
        return peer is not None and peer.takes(request.flight.bundle) and tier not in request.avoid

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
            yield from self._take_in(request, tier, message)
        except ProtocolError as error:
            request.avoid.add(tier)
            request.last_reason = f"{tier}: {error}"
            yield Note(f"request {message.rid}: {tier} broke the protocol: {error}")
            yield from self._attempt(request)

    def _take_in(self, request: _Request, tier: str, message: Open | Chunk) -> Iterator[Instruction]:
        flight = request.flight
        if isinstance(message, Chunk):
            is_ready = self.accept_chunk(message) is not None
        else:
            self.check_open(message, flight.bundle)
            facts = request.epoch.facts
            check_answer(facts.declared, facts.answers_of(flight.plan), message.tensors)
            is_ready = self.accept_open(flight, message, tier)
            if message.resume and not is_ready and message.hop in flight.arrivals:
                yield Send(tier, self.have(flight, message.hop))
        if is_ready:
            yield from self.arrive(flight, message.hop)

    def _on_ran(self, event: Ran) -> Iterator[Instruction]:
        found = self.finish_run(event)
        if found is None:
            return
        flight, hop = found
        request = self._requests[flight.rid]
        if event.error == DEADLINE:
            return  # the tick that is due says so
        if event.error.startswith(OUT_OF_RANGE):
            yield from self._go_exact(request, f"{self.tier}: {event.error}")
            return
        if event.error:
            yield from self._on_compute_error(request, hop, event.error)
            return
        segment = flight.route[hop].segment
        timing = HopTiming(self.tier, segment, event.wait_us, event.run_us, flight.bytes_in, 0, event.batch)
        yield from self._guarded(request, self.pass_on(flight, hop, timing))

    def _go_exact(self, request: _Request, reason: str) -> Iterator[Instruction]:
        """A codec cannot carry a value: go on by plans that lose nothing."""
        request.exact, request.cause, request.last_reason = True, "codec out of range", reason
        yield Note(f"request {request.flight.rid}, attempt {request.flight.attempt}: {reason}")
        yield from self._attempt(request)

    def _on_compute_error(self, request: _Request, hop: int, error: str) -> Iterator[Instruction]:
        """The inputs are at fault, or what others made of them: then it is tried again without the others."""
        flight = request.flight
        others = {before.tier for before in flight.route[:hop] if before.tier != self.tier}
        if not others:
            yield from self._give_up(request, InputError(error))
            return
        came = {name for at in sorted(flight.reached) if at for name in flight.route[at - 1].carry}
        for name in came.difference(request.epoch.facts.inputs):
            flight.values.pop(name, None)
        request.avoid |= others
        request.last_reason = request.compute_error = request.compute_error or error
        yield Note(f"request {flight.rid}: what {', '.join(sorted(others))} made cannot be used: {error}")
        yield from self._attempt(request)

    def _waiting_for(self, message: Open | Chunk | Failed) -> _Request | None:
        """The request whose attempt of now a message is about."""
        request = self._requests.get(message.rid)
        if message.sid != self._instance or request is None or request.waits_for_tier:
            return None
        return request if message.attempt == request.flight.attempt else None

    def _on_failed(self, sender: str, message: Failed) -> Iterator[Instruction]:
        request = self._waiting_for(message)
        if request is None:
            return
        if message.tier == self.tier or all(hop.tier != message.tier for hop in request.flight.route):
            message = replace(message, tier=sender)  # nobody to blame but who says so
        if message.code == "range":
            yield from self._go_exact(request, f"{message.tier}: {message.reason}")
            return
        rift = way_into(request.flight.route, message.tier, self.tier) if message.code == "unreachable" else None
        if rift is not None and self._usable(message.tier, request):
            self._rifts.note(rift, self.now)
        else:
            request.avoid.add(message.tier)
        request.last_reason = f"{message.tier}: {message.reason}"
        request.cause = "overload" if message.code == "busy" else "tier down"
        if message.code == "compute":
            request.compute_error = request.compute_error or request.last_reason
        yield Note(f"request {message.rid}, attempt {message.attempt}: {request.last_reason}")
        yield from self._attempt(request)

    def send_on(self, flight: Flight, hop: int, messages: Sequence[Open | Chunk]) -> Iterator[Instruction]:
        """To the worker of a tier: peers are called by their tiers here."""
        tier = flight.route[hop].tier
        self._guide.sent(tier, sum(len(message.payload) for message in messages), self.now)
        yield from (Send(tier, message) for message in messages)

    def understands(self, flight: Flight, hop: int, feature: str) -> bool:
        """Whether the worker of a hop named a feature."""
        return feature in self._peers[flight.route[hop].tier].features

    def squeezer(self, flight: Flight, hop: int) -> LinkSqueezer | None:
        """Squeezes what goes to a worker whose link is so slow that it pays."""
        tier = flight.route[hop].tier
        rate = self._guide.rate_to(tier, self.now)
        if self._squeezing is None or rate is None:
            return None
        return self._squeezing.on_link(tier, rate, self._peers[tier].features)

    def landed(self, flight: Flight) -> Iterator[Instruction]:
        """The answer is here."""
        request = self._forget(flight)
        self._rifts.forget(flight.route)
        latency_s = self.now - request.submitted
        report = make_report(flight.plan, flight.attempt, latency_s, flight.route, flight.trace, flight.epoch)
        yield from self.skip_runs(flight)
        yield from self._withdraw(request)
        yield from (Send(tier, Done(flight.sid, flight.rid)) for tier in sorted(request.asked))
        if flight.attempt == 1:
            self._guide.answered(request.epoch.facts, flight.plan, flight.route, flight.trace, self.now)
        answers = request.epoch.facts.answers_of(flight.plan)
        if any(self._peers[hop.tier].slowdown > 1 for hop in flight.route if hop.tier != self.tier):
            report = replace(report, basis="emulated")
        yield Deliver(flight.rid, {name: flight.values[made] for name, made in answers.items()}, report)
        yield from self._release()
        yield from self._fill_window()

    def _give_up(self, request: _Request, error: FlagsplitError) -> Iterator[Instruction]:
        flight = request.flight
        self._forget(flight)
        yield from self.skip_runs(flight)
        yield from self._withdraw(request)
        yield from self._cancel(request)
        yield Fail(flight.rid, error)
        yield from self._release()
        yield from self._fill_window()

    def _forget(self, flight: Flight) -> _Request:
        request = self._requests.pop(flight.rid)
        del self.flights[flight.key]
        request.epoch.requests -= 1
        return request

    def _abandon(self, rid: int) -> Iterator[Instruction]:
        request = self._requests.get(rid)
        if request is not None:
            yield from self._give_up(request, PeerError("abandoned"))
        else:
            self._queue = deque(submit for submit in self._queue if submit.rid != rid)

    def _on_tick(self) -> Iterator[Instruction]:
        due, silent = self._liveness.tick(self.now)
        for tier in due:
            self._guide.pinged(tier, self.now)
            yield Send(tier, Ping(0, int(self.now * 1e6)))
        for tier in silent:
            yield from self._lose(tier, "it went silent")
            yield Disconnect(tier)
            yield Connect(tier, self._peers[tier].address.address, self._peers[tier].address.server_key)
        yield from self._ask_again()
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

    def _ask_again(self) -> Iterator[Instruction]:
        """Workers that had no room may have some now."""
        for tier, peer in self._peers.items():
            if self.now < peer.ask_again:
                continue
            peer.ask_again = math.inf
            if not peer.connected:
                yield Connect(tier, peer.address.address, peer.address.server_key)
                continue
            known = {*peer.serves, *peer.asked}
            wanted = dict.fromkeys(epoch.facts.bundle for epoch in self._epochs)
            yield from (self._greeting(tier, bundle) for bundle in wanted if bundle not in known)

    def _probe(self) -> Iterator[Instruction]:
        """Measure links that are idle and may have recovered."""
        for probe in self._guide.probes(self.now, self._line()):
            if PROBE in self._peers[probe.target].features:
                self._guide.sent(probe.target, probe.size_bytes, self.now)
                yield Send(probe.target, Probe(0, probe.reply_bytes, payload=bytes(probe.size_bytes)))

    def _expire(self, request: _Request) -> Iterator[Instruction]:
        """An attempt took too long. If another plan is better now, take that; else wait once more, then go on alone."""
        others = {hop.tier for hop in request.flight.route if hop.tier != self.tier}
        if not others:
            request.avoid.clear()
            if not request.waits_for_tier and self._still_best(request):
                request.expires = self.now + self._options.attempt_s
                return
            yield from self._attempt(request)
            return
        in_need = self.now >= request.rescue or request.waited
        if not in_need and self._still_best(request):
            longest_s = self._patience_s(request.flight, self._options.attempt_s, request.flight.attempt - 1)
            request.waited, request.expires = True, min(self.now + longest_s, request.rescue)
            return
        if in_need:
            request.cause = "deadline" if self.now >= request.rescue else "tier slower"
            request.last_reason = f"no answer in time from {', '.join(sorted(others))}"
            request.avoid |= others
        yield from self._attempt(request)

    def figures(self) -> SessionStats:
        """What there is now, for whoever watches."""
        guide, now = self._guide, self.now
        snapshot = guide.snapshot(now, self._line())
        predicted = sorted(snapshot["predicted_s"].items(), key=lambda item: (item[0] != snapshot["plan"], item[1]))
        tiers, links = snapshot["estimates"]["tiers"], snapshot["estimates"]["links"]
        return SessionStats(
            queue=self.waiting_runs,
            waiting=len(self._queue),
            flights=len(self._requests),
            held_bytes=sum(flight.held_bytes for flight in self.flights.values()),
            epoch=self._epoch.number,
            plans=tuple(PlanStats(*each) for each in predicted[:2]),
            peers=tuple(self._peer_stats(peer, tiers.get(tier, {})) for tier, peer in self._peers.items()),
            links=tuple(_link_stats(way, each) for way, each in links.items()),
            slowdown=tiers[self.tier]["slowdown"],
            decisions=tuple(guide.log),
            switches=dict(guide.switches),
        )

    def _peer_stats(self, peer: WorkerPeer, estimate: Mapping[str, float]) -> PeerStats:
        bundle = self._epoch.facts.bundle
        state = "up" if peer.takes(bundle) else "draining" if peer.draining else "down"
        return PeerStats(
            peer.tier,
            state,
            "" if state == "up" else peer.reason,
            queue=peer.queue,
            wait_s=estimate.get("wait_s"),
            held_bytes=peer.held_bytes,
            slowdown=estimate.get("slowdown"),
        )

    def _line(self) -> tuple[bool, ...]:
        """Which tiers take new requests now."""
        bundle = self._epoch.facts.bundle
        taking = {tier for tier, peer in self._peers.items() if peer.takes(bundle)}
        return tuple(i == 0 or tier in taking for i, tier in enumerate(self._epoch.facts.tiers))

    def _still_best(self, request: _Request) -> bool:
        try:
            return self._choose(request, self._alive(request))[0] == request.flight.plan
        except UnavailableError:
            return False

    def _too_late(self, request: _Request) -> UnavailableError:
        states = [f"{tier} {'up' if peer.serves else f'down ({peer.reason})'}" for tier, peer in self._peers.items()]
        why = f"; last: {request.last_reason}" if request.last_reason else ""
        return UnavailableError(f"no answer within the deadline; {', '.join(states) or 'no workers'}{why}")


def _link_stats(way: str, figures: Mapping[str, float]) -> LinkStats:
    source, _, target = way.partition(">")
    return LinkStats(source, target, figures["bytes_per_s"], figures["rtt_s"], figures["loss"])
