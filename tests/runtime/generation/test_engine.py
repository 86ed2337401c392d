"""The engine's thread: events in order, trouble kept to those it belongs to, and an end in every case."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from tests.runtime.generation.driver import alone, request
from tests.targets.generation.meter import Meter

from flagsplit.errors import InputError, InternalError
from flagsplit.runtime.generation.admission import SchedulerSettings
from flagsplit.runtime.generation.engine import GenerationEngine
from flagsplit.runtime.generation.events import Event, Generate, Refused, Tokens
from flagsplit.runtime.generation.testing import HashModel, hidden
from flagsplit.targets.generation.banks import Banks, Sketched
from flagsplit.targets.generation.slot_cache import SlotCache
from flagsplit.targets.generation.step_model import Logits
from flagsplit.targets.interface import Array


class Listener:
    """Collects events by stream, and waits for their ends."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.events: dict[str, list[Event]] = defaultdict(list)

    def __call__(self, event: Event) -> None:
        with self._changed:
            self.events[event.stream_id].append(event)
            self._changed.notify_all()

    def wait(self, stream_id: str, count: int = 0) -> list[Event]:
        """Until a stream has ended, or has told so many tokens."""
        with self._changed:
            done = self._changed.wait_for(lambda: self._has(stream_id, count), 20)
            assert done, f"{stream_id} did not end: {self.events[stream_id]}"
            return list(self.events[stream_id])

    def _has(self, stream_id: str, count: int) -> bool:
        events = self.events[stream_id]
        ended = bool(events) and (isinstance(events[-1], Refused) or events[-1].done)
        return ended or bool(count and len(self.tokens(stream_id)) >= count)

    def tokens(self, stream_id: str) -> list[int]:
        return [token for event in self.events[stream_id] if isinstance(event, Tokens) for token in event.tokens]

    def last(self, stream_id: str) -> Event:
        return self.wait(stream_id)[-1]


class Gated(HashModel):
    """A model that never stops, and steps only as often as it is allowed to."""

    def __init__(self, slots: int, fails: Callable[[Sequence[bytes]], bool] = lambda _: False) -> None:
        super().__init__(slots, stop_share=0, fails=fails)
        self._allowed = threading.Semaphore(0)

    def allow(self, steps: int = 1000) -> None:
        self._allowed.release(steps)

    def step(self, slots: Sequence[int], tokens: Sequence[Array]) -> Logits:
        assert self._allowed.acquire(timeout=20)
        return super().step(slots, tokens)


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def engines() -> Iterator[list[GenerationEngine]]:
    started: list[GenerationEngine] = []
    yield started
    for engine in started:
        engine.stop()


def start(
    engines: list[GenerationEngine], model: HashModel, listener: Listener, settings: SchedulerSettings | None = None
) -> GenerationEngine:
    engine = GenerationEngine(model, listener, settings)
    engines.append(engine)
    engine.start()
    return engine


def test_many_streams_from_many_threads(engines: list[GenerationEngine], listener: Listener) -> None:
    model = HashModel(8, step_s=0.0005)
    engine = start(engines, model, listener, SchedulerSettings(kv_bytes=3000))
    asked = [request(number, f"client{number % 3}", max_tokens=30, temperature=number % 2) for number in range(60)]

    def submit(part: Sequence[Generate]) -> None:
        for each in part:
            engine.submit(each)

    threads = [threading.Thread(target=submit, args=(asked[at::4],)) for at in range(4)]
    for thread in threads:
        thread.start()
    for each in asked:
        assert isinstance(listener.last(each.stream_id), Tokens)
        assert listener.tokens(each.stream_id) == alone(each, model)
        offsets = [event.offset for event in listener.events[each.stream_id] if isinstance(event, Tokens)]
        assert offsets == sorted(offsets)
    stats = engine.stats()
    assert stats.tokens == sum(len(listener.tokens(each.stream_id)) for each in asked)
    assert stats.streams == {"waiting": 0, "running": 0, "parked": 0}
    assert stats.ended["stop"] + stats.ended["length"] == 60
    assert max(stats.batches) > 4
    assert 0 < stats.first_ms_p50 <= stats.first_ms_p95
    assert stats.tokens_per_s > 0
    assert engine.wait_idle(5)


def test_cancel(engines: list[GenerationEngine], listener: Listener) -> None:
    model = Gated(2)
    engine = start(engines, model, listener)
    engine.submit(request(0, max_tokens=60))
    model.allow(3)
    listener.wait("0", 3)
    engine.cancel("0")
    engine.cancel("unknown")
    model.allow()
    last = listener.last("0")
    assert isinstance(last, Tokens)
    assert last.reason == "cancelled"
    assert 3 <= len(listener.tokens("0")) < 60


def test_a_stream_that_makes_steps_fail_hurts_only_itself(
    engines: list[GenerationEngine], listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    poison = b"hidden" + hidden(3)["hidden"].tobytes()
    model = HashModel(8, fails=lambda seen: poison in seen)
    engine = start(engines, model, listener)
    for number in range(8):
        engine.submit(request(number, max_tokens=20))
    for number in range(8):
        last = listener.last(str(number))
        if number == 3:
            assert isinstance(last, Refused)
            assert last.code == "broken"
        else:
            assert listener.tokens(str(number)) == alone(request(number, max_tokens=20), model)
    assert engine.stats().failures >= 2
    assert not engine.stats().is_broken
    assert "on purpose" in caplog.text


def test_a_broken_model_hands_every_stream_back(engines: list[GenerationEngine], listener: Listener) -> None:
    broken = threading.Event()
    model = Gated(4, fails=lambda _: broken.is_set())
    engine = start(engines, model, listener)
    for number in range(12):
        engine.submit(request(number, max_tokens=60))
    model.allow(3)
    listener.wait("0", 2)
    broken.set()
    model.allow()
    for number in range(12):
        last = listener.last(str(number))
        assert isinstance(last, Refused)
        assert last.code == "broken"
    assert engine.stats().is_broken
    broken.clear()
    engine.submit(request(99, max_tokens=5))
    assert isinstance(listener.last("99"), Tokens), "it may have recovered"
    assert not engine.stats().is_broken


class Picky(HashModel):
    """A model that takes no context of five frames, and breaks at six."""

    def open(self, slot: int, context: object, tokens: int = 1) -> None:
        frames = context["hidden"].shape[1]  # type: ignore[index]
        if frames == 5:
            raise InputError("expected other frames, came 5")
        if frames == 6:
            raise InternalError("no memory")
        super().open(slot, context, tokens)  # type: ignore[arg-type]


def test_a_stream_that_cannot_be_opened(engines: list[GenerationEngine], listener: Listener) -> None:
    engine = start(engines, Picky(4), listener)
    for number, frames in enumerate((5, 6, 3, 5, 3)):
        engine.submit(request(number, frames=frames, max_tokens=5))
    codes = [getattr(listener.last(str(number)), "code", "done") for number in range(5)]
    assert codes == ["bad-input", "broken", "done", "bad-input", "done"]


class Forgetful(HashModel):
    """A model that has no memory left for a moment, beside others that run."""

    def __init__(self, slots: int, fails_at: int) -> None:
        super().__init__(slots, stop_share=0)
        self.reserves, self.fails_at = 0, fails_at

    def reserve(self, slot: int, tokens: int) -> None:
        self.reserves += 1
        if self.reserves == self.fails_at and self.open_slots > 1:
            raise MemoryError("no memory")
        super().reserve(slot, tokens)


@pytest.mark.slow
def test_a_change_of_the_slots_that_fails_costs_no_stream_and_no_slot(
    engines: list[GenerationEngine], caplog: pytest.LogCaptureFixture
) -> None:
    expected = {number: alone(request(number, max_tokens=50), Forgetful(1, 0)) for number in range(6)}
    for fails_at in range(1, 24, 2):
        model, listener = Forgetful(4, fails_at), Listener()
        engine = start(engines, model, listener, SchedulerSettings(kv_bytes=800))
        for number in range(6):
            engine.submit(request(number, max_tokens=50))
        for number in range(6):
            last = listener.last(str(number))
            if isinstance(last, Refused):
                assert "the step failed: MemoryError" in last.reason, "it was alone in a step when that failed"
            else:
                assert listener.tokens(str(number)) == expected[number]
        assert engine.wait_idle(5)
        assert model.open_slots == 0
        assert engine.stats().evictions > 0
    assert "no memory" in caplog.text


def test_what_is_told_of_caches_is_what_they_take(engines: list[GenerationEngine], listener: Listener) -> None:
    meter = Meter()
    rooms = Banks(lambda: SlotCache(4, {"past": (1, 1)}, {"cross": (1, 1)}, zeros=meter.zeros), Sketched, 1 << 30)
    engine = start(engines, HashModel(4, stop_share=0, rooms=rooms), listener, SchedulerSettings(kv_bytes=3000))
    assert (engine.stats().kv_bytes, engine.stats().kv_budget_bytes) == (0, 3000)
    for number in range(9):
        engine.submit(request(number, frames=20 * number + 1, max_tokens=50))
    for number in range(9):
        assert isinstance(listener.last(str(number)), Tokens)
    assert engine.wait_idle(5)
    assert 0 < engine.stats().kv_bytes == meter.now < meter.most <= 3000


def test_draining(engines: list[GenerationEngine], listener: Listener) -> None:
    model = Gated(1)
    engine = start(engines, model, listener)
    engine.submit(request(0, max_tokens=20))
    engine.submit(request(1, max_tokens=20))
    model.allow(2)
    listener.wait("0", 2)
    engine.drain()
    engine.submit(request(2))
    model.allow()
    assert isinstance(listener.last("0"), Tokens)
    assert len(listener.tokens("0")) == 20
    assert [listener.last(key).code for key in "12"] == ["drain", "drain"]  # type: ignore[union-attr]
    assert engine.wait_idle(5)


def test_draining_with_little_patience(engines: list[GenerationEngine], listener: Listener) -> None:
    model = Gated(1)
    engine = start(engines, model, listener)
    engine.submit(request(0, max_tokens=60))
    model.allow(2)
    listener.wait("0", 2)
    engine.drain(grace_s=0.0)
    model.allow()
    last = listener.last("0")
    assert isinstance(last, Refused)
    assert last.code == "drain"
    assert len(listener.tokens("0")) in (2, 3)


def test_stopping_hands_back_what_is_left_and_closes_the_model(listener: Listener) -> None:
    model = Gated(1)
    engine = GenerationEngine(model, listener)
    engine.start()
    engine.submit(request(0, max_tokens=60))
    engine.submit(request(1, max_tokens=60))
    model.allow(1)
    listener.wait("0", 1)
    stopping = threading.Thread(target=engine.stop)
    stopping.start()
    while not engine._stopping:
        time.sleep(0.001)
    model.allow()
    stopping.join()
    engine.stop()
    assert [listener.last(key).code for key in "01"] == ["drain", "drain"]  # type: ignore[union-attr]
    assert model.is_closed
    engine.submit(request(2))
    assert listener.last("2") == Refused("2", "drain", "this decoder has stopped; ask another")


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_a_receiver_that_raises_stops_nobody(
    engines: list[GenerationEngine], listener: Listener, error: type[BaseException]
) -> None:
    def receive(event: Event) -> None:
        listener(event)
        if event.stream_id == "0":
            raise error("a bug of the receiver")

    engine = GenerationEngine(HashModel(2, stop_share=0), receive)
    engines.append(engine)
    engine.start()
    for number in range(3):
        engine.submit(request(number, max_tokens=4))
    assert [len(listener.tokens(key)) for key in "012" if listener.wait(key)] == [4, 4, 4]


def test_a_deadline_ends_a_stream_that_waits_for_nothing(engines: list[GenerationEngine], listener: Listener) -> None:
    engine = start(engines, HashModel(1, stop_share=0, step_s=0.005), listener)
    engine.submit(Generate("0", "a", hidden(0), deadline=time.monotonic() + 0.03))
    last = listener.last("0")
    assert isinstance(last, Tokens)
    assert last.reason == "deadline"


class Confused(HashModel):
    """A model that gives logits of the wrong form."""

    def step(self, slots: Sequence[int], tokens: Sequence[Array]) -> Logits:
        return np.zeros((1,), np.float32)


def test_logits_of_the_wrong_form_are_the_models_fault(engines: list[GenerationEngine], listener: Listener) -> None:
    engine = start(engines, Confused(2), listener)
    engine.submit(request(0))
    last = listener.last("0")
    assert isinstance(last, Refused)
    assert last.code == "broken"


def test_a_bug_of_the_engine_leaves_nobody_without_an_answer(
    listener: Listener, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = Gated(2)
    engine = GenerationEngine(model, listener)
    engine.start()
    engine.submit(request(0, max_tokens=60))
    model.allow(1)
    listener.wait("0", 1)
    monkeypatch.setattr("flagsplit.runtime.generation.seats.Seats.admit", lambda *_: 1 / 0)
    model.allow()
    assert listener.last("0") == Refused("0", "broken", "this decoder has a bug and stops; ask another")
    engine.submit(request(1))
    assert isinstance(listener.last("1"), Refused)
    engine.stop()
    assert "ZeroDivisionError" in caplog.text
    assert model.is_closed
