"""The requests of a session: their attempts, what goes wrong with them, and their answers.

A request is retained until its answer is here. When a tier of its route goes, when a tier says that it failed, or when
an attempt takes too long, the best plan that is left takes over in a new attempt, from whatever this tier still holds.
Only the answer of the newest attempt counts, so every request is answered once.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

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
from flagsplit.runtime.engine import DEADLINE, OUT_OF_RANGE
from flagsplit.runtime.events import (
    Decided,
    Deliver,
    Fail,
    Instruction,
    Note,
    Ran,
    Released,
    Send,
    Submit,
    Withdraw,
)
from flagsplit.runtime.relay import Flight, Relay
from flagsplit.runtime.report import make_report
from flagsplit.runtime.session_epochs import Epochs
from flagsplit.runtime.session_facts import SessionFacts, SessionOptions
from flagsplit.runtime.session_guide import SessionGuide
from flagsplit.runtime.session_requests import Request
from flagsplit.runtime.session_routes import Rifts, way_into
from flagsplit.runtime.session_ways import Ways
from flagsplit.runtime.session_workers import Workers
from flagsplit.runtime.telemetry.tracing import outgoing_traceparent
from flagsplit.transport.messages import (
    Cancel,
    Chunk,
    Done,
    Failed,
    HopTiming,
    Open,
    PeerAddress,
)
from flagsplit.transport.squeeze_policy import LinkSqueezer, SqueezePolicy
from flagsplit.transport.tensors import TransferLimits


class SessionAttempts(Relay):
    """All requests of one session.

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
        self._instance = instance
        self._options = options or SessionOptions()
        self._workers = Workers(workers, instance, self._options.liveness)
        self._epochs = Epochs(facts)
        self._requests: dict[int, Request] = {}
        self._queue: deque[Submit] = deque()
        self._squeezing = squeezing
        self._rifts = Rifts(self._options.shun_s)
        self._guide = SessionGuide(facts)
        self._ways = Ways(self.tier, self._guide, self._rifts)

    def _fill_window(self) -> Iterator[Instruction]:
        while self._queue and len(self._requests) < self._options.window:
            submit = self._queue.popleft()
            if self.now >= submit.deadline:
                yield Fail(submit.rid, UnavailableError("the deadline passed before the request's turn came"))
                continue
            epoch = self._epochs.current
            flight = Flight(self._instance, submit.rid, 0, "", (), submit.deadline, epoch.facts.bundle, epoch.number)
            flight.traceparent = outgoing_traceparent(submit.traceparent, self._instance, submit.rid)
            flight.values.update(submit.inputs)
            request = Request(flight, epoch, submit.plan, self.now)
            epoch.requests += 1
            self._requests[submit.rid] = request
            self.flights[flight.key] = flight
            yield from self._attempt(request)

    def _attempt(self, request: Request) -> Iterator[Instruction]:
        """Begin the next attempt with the best plan for the tiers that are there."""
        flight, heartbeat_s = request.flight, self._options.liveness.heartbeat_s
        if flight.attempt >= self._options.max_attempts:
            reason = f"{flight.attempt} attempts failed, the last because of {request.last_reason or 'a time-out'}"
            yield from self._give_up(request, UnavailableError(reason))
            return
        yield from self._withdraw(request)
        try:
            alive = self._workers.alive(request)
            way, decision = self._ways.find(request, alive, self._epochs.current, self.now)
        except UnavailableError as error:
            if request.compute_error:
                yield from self._give_up(request, InputError(request.compute_error))
                return
            request.last_reason = request.last_reason or str(error)
            yield from self._cancel(request)
            flight.restart(flight.attempt, "", ())
            request.on_its_way = frozenset()
            request.avoid.clear()
            request.expires = self.now + request.wait_s(self.now, heartbeat_s, request.waits, heartbeat_s)
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
        request.begin(self.now, way.patience, self._longest_s(request), len(self._requests))
        yield from self._guarded(request, self.take_up(flight, 0))

    def _longest_s(self, request: Request) -> float:
        """How long the attempt may take where nothing better is known."""
        options, times = self._options, request.flight.attempt - 1
        return request.wait_s(self.now, options.attempt_s, times, options.liveness.heartbeat_s)

    def _withdraw(self, request: Request) -> Iterator[Instruction]:
        """What is still queued of an earlier attempt would only hold up the next."""
        for tier in sorted(request.asked):
            if self._workers[tier].connected:  # else nothing is queued any more
                yield Withdraw(tier, request.flight.sid, request.flight.rid)

    def _cancel(self, request: Request) -> Iterator[Instruction]:
        """Let the workers forget a request: who waits must not hold what others wait for."""
        cancel = Cancel(request.flight.sid, request.flight.rid, request.flight.attempt)
        yield from (Send(tier, cancel) for tier in sorted(request.asked))

    def _guarded(self, request: Request, instructions: Iterator[Instruction]) -> Iterator[Instruction]:
        """Our own plan must never break the protocol; if it does, the request fails and the session lives."""
        try:
            yield from instructions
        except ProtocolError as error:
            text = f"plan {request.flight.plan!r} cannot be followed: {error}; please report this with the bundle"
            yield from self._give_up(request, InternalError(text))

    def _expire(self, request: Request) -> Iterator[Instruction]:
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
            request.waited, request.expires = True, min(self.now + self._longest_s(request), request.rescue)
            return
        if in_need:
            request.cause = "deadline" if self.now >= request.rescue else "tier slower"
            request.last_reason = f"no answer in time from {', '.join(sorted(others))}"
            request.avoid |= others
        yield from self._attempt(request)

    def _still_best(self, request: Request) -> bool:
        try:
            alive = self._workers.alive(request)
            plan, _ = self._ways.choose(request, alive, self._epochs.current, self.now)
            return plan == request.flight.plan
        except UnavailableError:
            return False

    def _too_late(self, request: Request) -> UnavailableError:
        peers = self._workers.peers.items()
        states = [f"{tier} {'up' if peer.serves else f'down ({peer.reason})'}" for tier, peer in peers]
        why = f"; last: {request.last_reason}" if request.last_reason else ""
        return UnavailableError(f"no answer within the deadline; {', '.join(states) or 'no workers'}{why}")

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

    def _take_in(self, request: Request, tier: str, message: Open | Chunk) -> Iterator[Instruction]:
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

    def _go_exact(self, request: Request, reason: str) -> Iterator[Instruction]:
        """A codec cannot carry a value: go on by plans that lose nothing."""
        request.exact, request.cause, request.last_reason = True, "codec out of range", reason
        yield Note(f"request {request.flight.rid}, attempt {request.flight.attempt}: {reason}")
        yield from self._attempt(request)

    def _on_compute_error(self, request: Request, hop: int, error: str) -> Iterator[Instruction]:
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

    def _waiting_for(self, message: Open | Chunk | Failed) -> Request | None:
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
        if rift is not None and self._workers.usable(message.tier, request):
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
        return feature in self._workers[flight.route[hop].tier].features

    def squeezer(self, flight: Flight, hop: int) -> LinkSqueezer | None:
        """Squeezes what goes to a worker whose link is so slow that it pays."""
        tier = flight.route[hop].tier
        rate = self._guide.rate_to(tier, self.now)
        if self._squeezing is None or rate is None:
            return None
        return self._squeezing.on_link(tier, rate, self._workers[tier].features)

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
        if any(self._workers[hop.tier].slowdown > 1 for hop in flight.route if hop.tier != self.tier):
            report = replace(report, basis="emulated")
        yield Deliver(flight.rid, {name: flight.values[made] for name, made in answers.items()}, report)
        yield from self._release()
        yield from self._fill_window()

    def _give_up(self, request: Request, error: FlagsplitError) -> Iterator[Instruction]:
        flight = request.flight
        self._forget(flight)
        yield from self.skip_runs(flight)
        yield from self._withdraw(request)
        yield from self._cancel(request)
        yield Fail(flight.rid, error)
        yield from self._release()
        yield from self._fill_window()

    def _forget(self, flight: Flight) -> Request:
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

    def _release(self) -> Iterator[Instruction]:
        """Older epochs without requests are over."""
        yield from self._part_with(self._epochs.release())

    def _part_with(self, bundles: Sequence[str]) -> Iterator[Instruction]:
        for bundle in bundles:
            del self.segments[bundle]
            yield Released(bundle)
