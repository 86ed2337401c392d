"""The thread that generates: it runs a step model as the scheduler says, and hands out tokens as they come.

What is asked for goes into an inbox, and is looked at between two steps; all events come from this one thread, those of
a stream in order. Which stream steps when is in `flagsplit.runtime.generation.scheduler`.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from flagsplit.errors import InputError, InternalError
from flagsplit.runtime.generation.admission import SchedulerSettings
from flagsplit.runtime.generation.events import Event, Generate, Refused, Tokens
from flagsplit.runtime.generation.sampling import Floats
from flagsplit.runtime.generation.scheduler import Scheduler
from flagsplit.runtime.generation.stats import RECENT_S, EngineStats, stats_of
from flagsplit.runtime.generation.step import Close, Copy, Open, Step, make_change
from flagsplit.runtime.generation.stream import State, Stream
from flagsplit.targets.generation.step_model import StepModel

_MAX_INBOX = 4096
"""Requests that may wait for the end of a step."""
_MAX_FAILURES = 4
"""So many failures in a row are the model's fault, not that of a stream."""
_PATIENCE_S = 1.0
_log = logging.getLogger(__name__)


class GenerationEngine:
    """Continuous batching over one step model.

    Args:
        model: used, and closed at the end, by this engine's thread alone.
        emit: gets all events, on the engine's thread (refusals of what cannot even be looked at: on the caller's); it
            must return soon and raise nothing.
        settings: limits of the scheduler.
        clock: what deadlines are on.
    """

    def __init__(
        self,
        model: StepModel,
        emit: Callable[[Event], None],
        settings: SchedulerSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._emit = emit
        self._settings = settings or SchedulerSettings()
        self._clock = clock
        self._scheduler = Scheduler(model, self._settings)
        self._kv_bytes = 0
        model.limit(self._settings.kv_bytes)
        self._changed = threading.Condition()
        self._inbox: deque[Generate | str] = deque()
        self._stopping = False
        self._drain_by = math.inf
        self._draining = False
        self._failures = 0
        self._given: deque[tuple[float, int]] = deque()
        self._thread = threading.Thread(target=self._work, name="flagsplit-generation", daemon=True)

    def start(self) -> None:
        """Begin to take streams."""
        self._thread.start()

    def submit(self, request: Generate) -> None:
        """A stream is wanted; events tell what becomes of it. From any thread."""
        with self._changed:
            if not self._stopping and len(self._inbox) < _MAX_INBOX:
                self._inbox.append(request)
                self._changed.notify_all()
                return
            stopping = self._stopping
        if stopping:
            self._tell([Refused(request.stream_id, "drain", "this decoder has stopped; ask another")])
        else:
            self._tell([Refused(request.stream_id, "busy", f"{_MAX_INBOX} requests wait already", 1.0)])

    def cancel(self, stream_id: str) -> None:
        """A stream is not wanted any more; it ends with reason "cancelled", unless it has ended. From any thread."""
        with self._changed:
            self._inbox.append(stream_id)
            self._changed.notify_all()

    def drain(self, grace_s: float = math.inf) -> None:
        """Take no new streams, hand back those that wait, and after a while those that run. From any thread."""
        with self._changed:
            self._draining = True
            self._drain_by = min(self._drain_by, self._clock() + grace_s)
            self._changed.notify_all()

    def wait_idle(self, timeout_s: float) -> bool:
        """Whether no stream is left, within so many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._inbox and not any(self._busy()), timeout_s)

    def stop(self) -> None:
        """End after the step under way; streams that are left are handed back. A second call does nothing."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def expected_wait_s(self, client: str = "") -> float:
        """How long a new stream of a client would wait, as far as earlier ones tell. From any thread."""
        with self._changed:
            return self._scheduler.expected_wait_s(client)

    def stats(self) -> EngineStats:
        """How it goes, for metrics. From any thread."""
        with self._changed:
            kv = self._kv_bytes, self._settings.kv_bytes
            return stats_of(self._scheduler, self._model.slots, kv, self._given, self._clock(), self._broken)

    @property
    def _broken(self) -> bool:
        return self._failures >= _MAX_FAILURES

    def _busy(self) -> list[Stream]:
        states = (State.WAITING, State.RUNNING)
        return [stream for state in states for stream in self._scheduler.in_state(state)]

    def _work(self) -> None:
        try:
            self._loop()
        except BaseException:  # noqa: BLE001 - a bug here must not leave streams without an answer
            _log.exception("the generation engine stops: a bug, please report it")
            with self._changed:
                self._stopping = True
                events = self._scheduler.refuse_all("broken", "this decoder has a bug and stops; ask another")
                events += [
                    Refused(each.stream_id, "broken", "this decoder has stopped; ask another")
                    for each in self._inbox
                    if isinstance(each, Generate)
                ]
                self._inbox.clear()
            self._tell(events)
        try:
            self._model.close()
        except Exception:  # noqa: BLE001 - the thread ends in any case
            _log.exception("the step model could not be closed")

    def _loop(self) -> None:
        while True:
            with self._changed:
                events = self._look()
                step = self._scheduler.plan(self._clock())
                if step is None and not events:
                    if self._stopping:
                        break
                    self._changed.notify_all()
                    self._changed.wait(self._pause_s())
            self._tell(events)
            if step is not None:
                self._tell(self._run(step))

    def _look(self) -> list[Event]:
        """What was asked for since the last step, and what is late."""
        found, now = list[Event](), self._clock()
        while self._inbox:
            asked = self._inbox.popleft()
            found += self._scheduler.cancel(asked) if isinstance(asked, str) else self._scheduler.submit(asked, now)
        found += self._scheduler.expire(now)
        if self._draining:
            found += self._scheduler.drain()
        if self._stopping or now > self._drain_by:
            found += self._scheduler.refuse_all("drain", "this decoder is going away; ask another")
        return found

    def _pause_s(self) -> float:
        until = min(self._scheduler.next_deadline(), self._drain_by) - self._clock()
        return min(max(until, 0.001), _PATIENCE_S)

    def _run(self, step: Step) -> list[Event]:
        """Do a step. Whatever the model raises, it ends as events."""
        events, began = list[Event](), self._clock()
        try:
            step = self._change(step, events)
            logits = self._logits(step) if step.works else None
        except Exception as error:  # noqa: BLE001 - whatever a model raises, its streams are told
            _log.exception("a step of %d streams failed", len(step.works))
            with self._changed:
                return events + self._failed(step, _short(error))
        with self._changed:
            self._kv_bytes = self._model.kv_bytes
            if logits is None:
                return events
            self._failures = 0
            now = self._clock()
            events += self._scheduler.finish(step, logits, now, now - began)
            self._count(events, now)
            return events

    def _change(self, step: Step, events: list[Event]) -> Step:
        """Make the changes of a step; streams that cannot be opened are given up, and it goes on without them.

        Slots are freed even if another change fails, which is then raised: nobody would free them later.
        """
        bad, slots, failed = set[Stream](), set[int](), list[Exception]()
        for change in step.changes:
            if isinstance(change, Close):
                slots.discard(change.slot)
            elif failed or (isinstance(change, Copy) and change.source in slots):
                continue
            try:
                make_change(change, self._model)
            except Exception as error:  # noqa: BLE001 - as above
                if not isinstance(change, Open):
                    failed.append(error)
                    continue
                bad.add(change.stream)
                slots.add(change.slot)
                events += self._could_not_open(change.stream, error)
        if failed:
            raise failed[0]
        return step.without(bad) if bad else step

    def _could_not_open(self, stream: Stream, error: Exception) -> list[Event]:
        with self._changed:
            if isinstance(error, InputError):
                return self._scheduler.give_up(stream, "bad-input", _short(error))
            _log.error("a stream could not be opened", exc_info=error)
            self._failures += 1
            return self._scheduler.give_up(stream, "broken", f"it could not be opened: {_short(error)}")

    def _logits(self, step: Step) -> Floats:
        logits = np.asarray(self._model.step(step.slots, step.tokens))
        expected = (len(step.slots), self._model.facts.vocabulary)
        if logits.dtype != np.float32 or logits.shape != expected:
            raise InternalError(f"expected logits float32 {list(expected)}, came {logits.dtype} {list(logits.shape)}")
        return logits

    def _failed(self, step: Step, reason: str) -> list[Event]:
        self._failures += 1
        if self._broken:
            return self._scheduler.refuse_all("broken", f"this decoder fails: {reason}; ask another")
        return self._scheduler.fail(step, reason, self._clock())

    def _count(self, events: Sequence[Event], now: float) -> None:
        given = sum(len(event.tokens) for event in events if isinstance(event, Tokens))
        self._given.append((now, given))
        while self._given[0][0] < now - RECENT_S:
            self._given.popleft()

    def _tell(self, events: Sequence[Event]) -> None:
        for event in events:
            try:
                self._emit(event)
            except BaseException:  # noqa: BLE001 - also SystemExit: the other streams go on
                _log.exception("the receiver of events failed at %r", event)


def _short(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
