"""Which streams step next, and what becomes of what the step gave. Pure: time comes in as an argument.

Every stream that has a slot steps at every step: one that generates, by a token; one whose prompt (or, after it was
evicted or moved here, whose earlier tokens) is not in the cache yet, by as much as the step has room for. New ones join
at the next step; which, is in `flagsplit.runtime.generation.seats`. What runs the steps is in
`flagsplit.runtime.generation.engine`.
"""

import math
from collections.abc import Sequence

import numpy as np

from flagsplit.runtime.generation.admission import SchedulerSettings, WaitEstimate, fault_of
from flagsplit.runtime.generation.beams import BeamSearch
from flagsplit.runtime.generation.events import Code, Event, Generate, Reason, Refused, Timings, Tokens
from flagsplit.runtime.generation.sampling import Floats, choose
from flagsplit.runtime.generation.seats import Seats
from flagsplit.runtime.generation.step import Counts, Step, Work
from flagsplit.runtime.generation.stream import State, Stream, begin
from flagsplit.targets.generation.step_model import StepModel

_MAX_FAILURES = 3
"""A stream may be in so many steps that failed and start over."""
_AWAY = "this decoder is going away; ask another"


class Scheduler:
    """The streams of one step model.

    Args:
        model: is asked what it has room for, and changed by nothing here; its limit is the budget of the settings.
        settings: limits.
    """

    def __init__(self, model: StepModel, settings: SchedulerSettings | None = None) -> None:
        self.counts = Counts()
        self._facts = model.facts
        self._settings = settings or SchedulerSettings()
        self._slots = model.slots
        self._seats = Seats(model, self._settings)
        self._estimate = WaitEstimate()
        self._numbers = 0
        self._draining = False

    def in_state(self, state: State) -> list[Stream]:
        """The streams in a state, in the order of asking."""
        return self._seats.in_state(state)

    def submit(self, request: Generate, now: float) -> list[Event]:
        """A stream is wanted.

        Returns:
            Why it is refused, or that it ended at once; nothing if it was taken.
        """
        if self._draining:
            return [self._refuse(request, "drain", _AWAY)]
        here = self._seats.find(request.stream_id)
        if here is not None and here.state is not State.PARKED:
            return [self._refuse(request, "bad-input", f"a stream named {request.stream_id!r:.60} is here already")]
        fault = fault_of(self._facts, request, self._slots)
        if fault is not None:
            return [self._refuse(request, "bad-input", fault)]
        if request.position:
            return self._continue(here, request, now)
        if here is not None:
            self._seats.remove(here)
        return self._queue(request, now)

    def cancel(self, stream_id: str) -> list[Event]:
        """A stream is not wanted any more; one that is unknown ended before."""
        stream = self._seats.find(stream_id)
        if stream is None:
            return []
        if stream.state is State.PARKED:
            self._seats.remove(stream)
            return []
        return [self._end(stream, (), "cancelled")]

    def expire(self, now: float) -> list[Event]:
        """End the streams whose time is over."""
        found = list[Event]()
        for stream in [each for each in self._seats if each.deadline < now or each.state is State.LOST]:
            if stream.state is State.LOST:
                found.append(self._drop(stream, "no-state", "its cache made room for others; send all rows again"))
            elif stream.state is State.PARKED:
                self._seats.remove(stream)
            elif stream.told:
                found.append(self._end(stream, (), "deadline"))
            else:
                found.append(self._drop(stream, "deadline", "its deadline passed before its first token"))
        return found

    def drain(self) -> list[Event]:
        """Take no new streams from now on; those that wait are handed back, the others go on."""
        self._draining = True
        for stream in self.in_state(State.PARKED):
            self._seats.remove(stream)
        return [self._drop(stream, "drain", _AWAY) for stream in self.in_state(State.WAITING)]

    def refuse_all(self, code: Code, reason: str) -> list[Event]:
        """Hand all streams back."""
        parked = set(self.in_state(State.PARKED))
        found: list[Event] = [self._drop(stream, code, reason) for stream in list(self._seats) if stream not in parked]
        for stream in parked:
            self._seats.remove(stream)
        return found

    def next_deadline(self) -> float:
        """When the first stream is late."""
        return min((stream.deadline for stream in self._seats), default=math.inf)

    def expected_wait_s(self, client: str = "") -> float:
        """How long a new stream of a client would wait for a slot, as far as earlier ones tell."""
        ahead, running = self._seats.queue_before(client)
        return 0.0 if ahead < 0 else self._estimate.wait_s(ahead, running)

    def plan(self, now: float) -> Step | None:
        """What to do next; None if there is nothing. Then comes `finish` or `fail`."""
        self.counts.evictions += self._seats.make_room(now)
        self.counts.evictions += self._seats.admit(now)
        works, changes = self._works(), self._seats.take_changes()
        return Step(changes, works) if works or changes else None

    def finish(self, step: Step, logits: Floats, now: float, took_s: float) -> list[Event]:
        """A step was done.

        Args:
            step: what `plan` gave, maybe without some streams.
            logits: float32 [slots of the step, vocabulary]; changed.
            now: time in seconds.
            took_s: of the step.
        """
        self.counts.batches[len(step.works)] += 1
        plain, searches, at = list[tuple[Stream, int]](), list[tuple[Stream, Floats]](), 0
        for work in step.works:
            if self._seats.find(work.stream.id) is work.stream:
                self._account(work)
                work.stream.listen(logits[at], self._facts.no_speech_token)
                if work.is_last and work.stream.beams == 1:
                    plain.append((work.stream, at))
                elif work.is_last:
                    searches.append((work.stream, logits[at : at + len(work.slots)]))
            at += len(work.slots)
        timings = (took_s, len(step.works))
        found = self._choose(plain, logits, now, timings)
        for stream, rows in searches:
            found += self._search(stream, rows, now, timings)
        return found

    def fail(self, step: Step, reason: str, now: float) -> list[Event]:
        """A step was not done. Its streams start over, each in a step of its own; those at fault are given up.

        At fault is one that was alone, or that has been in too many steps that failed.
        """
        self.counts.failures += 1
        streams = [work.stream for work in step.works if self._seats.find(work.stream.id) is work.stream]
        for stream in self.in_state(State.RUNNING):
            if stream not in streams and step.changed & set(stream.slots):
                self._seats.evict(stream, now)  # It did not step, and may lack what it was to get before.
        found = list[Event]()
        for stream in streams:
            stream.failures += 1
            if len(streams) == 1 or stream.failures > _MAX_FAILURES:
                found.append(self._drop(stream, "broken", f"the step failed: {reason}; ask another decoder"))
            else:
                stream.alone = True
                self._seats.evict(stream, now)
        return found

    def give_up(self, stream: Stream, code: Code, reason: str) -> list[Event]:
        """A stream could not be opened."""
        return [self._drop(stream, code, reason)]

    def _queue(self, request: Generate, now: float) -> list[Event]:
        stream = begin(self._facts, request, self._numbers, now)
        self._numbers += 1
        if stream.generated >= stream.limit:
            self.counts.ended["length"] += 1
            return [Tokens(stream.id, stream.told, (), True, "length")]
        if (fault := self._too_large(stream)) is not None:
            return [self._refuse(request, "too-large", fault)]
        busy = self._busy(stream, now)
        if busy is not None:
            return [busy]
        self._seats.add(stream, now)
        return []

    def _continue(self, here: Stream | None, request: Generate, now: float) -> list[Event]:
        """The next rows of a stream that is split between its layers."""
        if here is None or here.held != request.position:
            held = 0 if here is None else here.held
            if here is not None:
                self._seats.remove(here)
            return [self._refuse(request, "no-state", f"{held} of {request.position} rows are here; send all again")]
        new = begin(self._facts, request, here.number, now)
        if new.generated >= new.limit:
            self._seats.remove(here)
            return [Tokens(new.id, new.told, (), True, "length")]
        new.slots, new.held, new.most_held, new.began = here.slots, here.held, here.most_held, now
        new.frames, new.room = here.frames, here.room
        if (fault := self._too_large(new)) is not None:
            self._seats.remove(here)
            return [self._refuse(request, "too-large", fault)]
        self._seats.replace(here, new)
        return []

    def _too_large(self, stream: Stream) -> str | None:
        need, budget = self._seats.most_bytes(stream), self._settings.kv_bytes
        if need <= budget:
            return None
        return (
            f"it may need {need} bytes of cache, and the service has {budget}; ask for fewer tokens or give shorter "
            "input, or give the service more (--kv-mb)"
        )

    def _busy(self, stream: Stream, now: float) -> Refused | None:
        """Why there is no room to wait, if there is none."""
        settings, client = self._settings, stream.client
        clients = [each.client for each in self._seats if each.state is State.WAITING]
        wait_s, of_client = self.expected_wait_s(client), clients.count(client)
        if len(clients) >= settings.max_waiting:
            why = f"{len(clients)} streams wait already"
        elif of_client >= settings.max_waiting_of_client:
            why = f"{of_client} streams of this client wait already"
        elif wait_s > settings.max_wait_s or now + wait_s > stream.deadline:
            why = f"a stream would wait for {wait_s:.1f} s"
        else:
            return None
        again_s = max(wait_s, 0.1)
        return self._refuse(stream.request, "busy", f"{why}; try again in {again_s:.1f} s", again_s)

    def _works(self) -> list[Work]:
        """All streams that generate, and as much of prompts as there is room for."""
        running = self.in_state(State.RUNNING)
        alone = next((stream for stream in running if stream.alone), None)
        if alone is not None:
            running = [alone]
        found = [self._work(stream, 1) for stream in running if stream.pending == 1]
        steps, used = self._settings.step_tokens, sum(len(work.slots) for work in found)
        room = max(steps - used, steps // 4, 1)
        for stream in self._seats.in_turn([stream for stream in running if stream.pending > 1]):
            if room > 0:
                found.append(self._work(stream, room))
                room -= len(found[-1].tokens[0])
        return found

    def _work(self, stream: Stream, most: int) -> Work:
        slots, tokens = stream.next_work(most)
        return Work(stream, slots, tokens, len(tokens[0]) == stream.pending)

    def _account(self, work: Work) -> None:
        """Tokens went into the cache of a stream; what it had there before is not charged again."""
        stream, count = work.stream, len(work.tokens[0])
        stream.alone = False
        stream.held += count
        self._seats.charge(stream, len(work.slots) * max(0, stream.held - stream.most_held))
        stream.most_held = max(stream.most_held, stream.held)
        self.counts.prefilled += count - work.is_last

    def _choose(
        self, plain: Sequence[tuple[Stream, int]], logits: Floats, now: float, timings: tuple[float, int]
    ) -> list[Event]:
        if not plain:
            return []
        streams = [stream for stream, _ in plain]
        rows = logits if len(plain) == len(logits) else logits[[at for _, at in plain]]
        chosen = choose(rows, [each.rule for each in streams], [each.made for each in streams])
        taken = zip(streams, chosen, rows, strict=True)
        return [self._take(stream, token, row, now, timings) for stream, token, row in taken]

    def _take(self, stream: Stream, token: int, logits: Floats, now: float, timings: tuple[float, int]) -> Event:
        """The next token of a stream that does not search, out of logits [vocabulary]."""
        if token < 0:
            return self._drop(stream, "broken", "the logits are no finite numbers; ask another decoder")
        self._first(stream, now)
        logprobs = stream.log_probabilities(logits, token)
        if token in stream.rule.stops:
            self._estimate.served(now - stream.began)
            return self._end(stream, (), "stop", timings, logprobs)
        stream.tokens.append(token)
        if stream.generated >= stream.limit:
            self._estimate.served(now - stream.began)
            return self._end(stream, (token,), "length", timings, logprobs)
        event = self._put_out(stream, (token,), None, timings, logprobs)
        if stream.request.rows is not None:
            self._seats.park(stream, now)
        return event

    def _search(self, stream: Stream, logits: Floats, now: float, timings: tuple[float, int]) -> list[Event]:
        """The next tokens of the candidates of a stream."""
        if not np.isfinite(logits.max(axis=1)).all():
            return [self._drop(stream, "broken", "the logits are no finite numbers; ask another decoder")]
        if stream.search is None:
            stream.search = BeamSearch(stream.rule, stream.limit - stream.generated, tuple(stream.made))
        parents = stream.search.advance(logits)
        if parents:
            self._seats.reorder(stream, parents)
            return []
        self._first(stream, now)
        best, reason = stream.search.winner
        stream.tokens += best.tokens
        self._estimate.served(now - stream.began)
        logprobs = best.logprobs if stream.rule.options.logprobs else ()
        return [self._end(stream, best.tokens, reason, timings, logprobs)]

    def _first(self, stream: Stream, now: float) -> None:
        if math.isnan(stream.first):
            stream.first = now
            self.counts.first_s.append(now - stream.asked)

    def _put_out(
        self,
        stream: Stream,
        tokens: Sequence[int],
        reason: Reason | None,
        timings: tuple[float, int],
        logprobs: tuple[float, ...],
    ) -> Tokens:
        waited, first = (
            0 if math.isnan(at) else round((at - stream.asked) * 1e6) for at in (stream.began, stream.first)
        )
        no_speech = 0.0 if stream.told else stream.no_speech
        offset, took = stream.told, Timings(waited, first, round(timings[0] * 1e6), timings[1])
        stream.told += len(tokens)
        self.counts.tokens += len(tokens)
        done = reason is not None or stream.request.rows is not None
        return Tokens(stream.id, offset, tuple(tokens), done, reason or "", took, logprobs, no_speech)

    def _end(
        self,
        stream: Stream,
        tokens: Sequence[int],
        reason: Reason,
        timings: tuple[float, int] = (0.0, 0),
        logprobs: tuple[float, ...] = (),
    ) -> Tokens:
        event = self._put_out(stream, tokens, reason, timings, logprobs)
        self.counts.ended[reason] += 1
        self._seats.remove(stream)
        return event

    def _drop(self, stream: Stream, code: Code, reason: str) -> Refused:
        self._seats.remove(stream)
        return self._refuse(stream.request, code, reason)

    def _refuse(self, request: Generate, code: Code, reason: str, retry_after_s: float = 0.0) -> Refused:
        self.counts.ended[code] += 1
        return Refused(request.stream_id, code, reason, retry_after_s)
