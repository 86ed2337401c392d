"""The engine in replicas: streams outlive replicas that are killed, drained or replaced. The last tests need Ray."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import asdict, replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from flagsplit.apps.decoder_service.ray_engine import RayEngine
from flagsplit.apps.decoder_service.ray_replica import DecoderReplica, Message, event_of, message_of, request_of
from flagsplit.apps.decoder_service.ray_serve import RayServe
from flagsplit.apps.decoder_service.ray_settings import RaySettings
from flagsplit.errors import ConfigError, InternalError
from flagsplit.runtime.generation.admission import SchedulerSettings
from flagsplit.runtime.generation.events import Event, Generate, Refused, Tokens
from flagsplit.runtime.generation.options import GenerationOptions
from flagsplit.runtime.generation.sequential import generate
from flagsplit.runtime.generation.testing import HashModel, hidden, tiny_facts

FACTS = tiny_facts(max_positions=400)
SETTINGS = RaySettings(replicas=2, slots=8, cpus=0.5, max_failures=4, stall_s=1.0)


class GoneError(Exception):
    """What Ray says of a replica that died."""


class Replicas:
    """Replicas in this process, each with an engine of its own; calls go to them as Ray Serve's would."""

    errors = (GoneError,)

    def __init__(
        self, count: int = 2, *, step_s: float = 0.002, slots: int = 8, waiting: int = 64, facts: Any = FACTS
    ) -> None:
        self._open = partial(HashModel, slots, facts, step_s=step_s, stop_share=0)
        self._scheduler = SchedulerSettings(max_waiting=waiting)
        self.members = [DecoderReplica(self._open, self._scheduler) for _ in range(count)]
        self.dead: set[int] = set()
        self.hung: set[int] = set()
        self.calls: list[tuple[int, Message]] = []
        self.forgotten: list[str] = []
        self.deployed = 0

    def start(self) -> None:
        """They are up."""

    def deploy(self, open_model: Callable[[], Any] | None = None) -> None:
        self.deployed += 1

    async def generate(self, stream_id: str, failures: int, message: Message) -> AsyncGenerator[Message, None]:
        index = (len(stream_id) + ord(stream_id[-1]) + failures) % len(self.members)
        self.calls.append((index, message))
        calls = self.members[index].generate(message)
        try:
            async for found in calls:
                if index in self.dead:
                    raise GoneError("the actor died")
                if index in self.hung:
                    await asyncio.sleep(60)
                yield found
        finally:
            await asyncio.sleep(0.001)  # A call is not closed at once.
            await calls.aclose()

    async def forget(self, stream_id: str) -> None:
        self.forgotten.append(stream_id)

    def stop(self) -> None:
        for member in self.members:
            member.stop()


class Ears:
    """Collects what an engine says of streams."""

    def __init__(self) -> None:
        self.tokens: dict[str, list[int]] = {}
        self.ends: dict[str, Event] = {}
        self._changed = threading.Condition()

    def __call__(self, event: Event) -> None:
        with self._changed:
            if isinstance(event, Tokens):
                told = self.tokens.setdefault(event.stream_id, [])
                assert event.offset == len(told), event
                told += event.tokens
            if isinstance(event, Refused) or event.reason:
                assert event.stream_id not in self.ends
                self.ends[event.stream_id] = event
            self._changed.notify_all()

    def until(self, is_so: Callable[[], bool], longest_s: float = 10.0) -> None:
        with self._changed:
            assert self._changed.wait_for(is_so, longest_s), (self.ends, {n: len(t) for n, t in self.tokens.items()})


def options_of(number: int, tokens: int = 60) -> GenerationOptions:
    """Every other stream draws its tokens."""
    return GenerationOptions(max_tokens=tokens, temperature=0.0 if number % 2 else 0.8, seed=number)


def expected(number: int, tokens: int = 60) -> list[int]:
    return list(generate(HashModel(1, FACTS, stop_share=0), hidden(number), (), options_of(number, tokens)))


@pytest.fixture
def start() -> Iterator[Callable[..., tuple[RayEngine, Replicas, Ears]]]:
    started: list[RayEngine] = []

    def begin(replicas: Replicas | None = None) -> tuple[RayEngine, Replicas, Ears]:
        replicas, ears = replicas or Replicas(), Ears()
        engine = RayEngine(replicas, ears, FACTS.prompt, SETTINGS)  # type: ignore[arg-type]
        engine.start()
        started.append(engine)
        return engine, replicas, ears

    yield begin
    for engine in started:
        engine.stop()


Start = Callable[..., tuple[RayEngine, Replicas, Ears]]


def ask(engine: RayEngine, *numbers: int, tokens: int = 60) -> None:
    for number in numbers:
        engine.submit(Generate(f"s{number}", "c", hidden(number), options=options_of(number, tokens)))


def test_streams_are_those_of_the_sequential_loop(start: Start) -> None:
    engine, replicas, ears = start()
    ask(engine, *range(6))
    ears.until(lambda: len(ears.ends) == 6)
    assert [ears.tokens[f"s{number}"] for number in range(6)] == [expected(number) for number in range(6)]
    assert len({index for index, _ in replicas.calls}) == 2
    assert not engine.moves


@pytest.mark.slow
def test_streams_outlive_their_replica(start: Start) -> None:
    engine, replicas, ears = start()
    ask(engine, *range(6))
    ears.until(lambda: len(ears.tokens) == 6 and min(map(len, ears.tokens.values())) > 5)
    replicas.dead.add(0)
    ears.until(lambda: len(ears.ends) == 6)
    assert [ears.tokens[f"s{number}"] for number in range(6)] == [expected(number) for number in range(6)]
    assert engine.moves["died"] >= 3
    again = [message for _, message in replicas.calls if message["generated"]]
    assert again
    assert all(message["tokens"][0] == FACTS.prompt[0] for message in again)


@pytest.mark.slow
def test_streams_leave_a_replica_that_hangs(start: Start) -> None:
    engine, replicas, ears = start()
    ask(engine, *range(4))
    ears.until(lambda: len(ears.tokens) == 4 and min(map(len, ears.tokens.values())) > 5)
    replicas.hung.add(0)
    ears.until(lambda: len(ears.ends) == 4)
    assert [ears.tokens[f"s{number}"] for number in range(4)] == [expected(number) for number in range(4)]
    assert set(engine.moves) == {"stalled"}


@pytest.mark.slow
def test_where_all_replicas_fail_the_stream_ends(start: Start) -> None:
    engine, replicas, ears = start()
    replicas.dead |= {0, 1}
    ask(engine, 1)
    ears.until(lambda: bool(ears.ends))
    end = ears.ends["s1"]
    assert isinstance(end, Refused)
    assert (end.code, "5 replicas in a row failed; GoneError" in end.reason) == ("broken", True)


@pytest.mark.slow
def test_a_replica_that_goes_away_hands_its_streams_on(start: Start) -> None:
    engine, replicas, ears = start()
    ask(engine, *range(4))
    ears.until(lambda: len(ears.tokens) == 4)
    replicas.members[1]._engine.drain(0.0)
    ears.until(lambda: len(ears.ends) == 4)
    assert [ears.tokens[f"s{number}"] for number in range(4)] == [expected(number) for number in range(4)]
    assert engine.moves["drain"] >= 1


@pytest.mark.slow
def test_a_stream_that_finds_no_room_tries_another_replica_then_is_refused(start: Start) -> None:
    engine, _, ears = start(Replicas(slots=1, waiting=1, step_s=0.01))
    ask(engine, *range(8), tokens=30)
    ears.until(lambda: len(ears.ends) == 8)
    refused = [end for end in ears.ends.values() if isinstance(end, Refused)]
    assert len(refused) in range(1, 8)
    assert {end.code for end in refused} == {"busy"}
    assert all(end.retry_after_s > 0 for end in refused)
    done = {name for name, end in ears.ends.items() if isinstance(end, Tokens)}
    assert all(ears.tokens[name] == expected(int(name[1:]), 30) for name in done)


@pytest.mark.slow
def test_cancel_and_deadline(start: Start) -> None:
    engine, replicas, ears = start(Replicas(step_s=0.01))
    ask(engine, 1, tokens=300)
    late = GenerationOptions(max_tokens=300)
    engine.submit(Generate("late", "c", hidden(2), options=late, deadline=time.monotonic() + 0.2))
    ears.until(lambda: len(ears.tokens.get("s1", ())) > 3)
    engine.cancel("s1")
    engine.cancel("kept")
    ears.until(lambda: len(ears.ends) == 2)
    assert {name: getattr(end, "reason", "") for name, end in ears.ends.items()} == {
        "s1": "cancelled",
        "late": "deadline",
    }
    for member in replicas.members:
        assert member._engine.wait_idle(5.0)
    assert replicas.forgotten == ["kept"]


def test_ids_are_used_once_at_a_time(start: Start) -> None:
    engine, _, ears = start(Replicas(step_s=0.01))
    ask(engine, 1, tokens=300)
    ears.until(lambda: bool(ears.tokens))
    told: list[Event] = []
    engine._emit = told.append
    ask(engine, 1)
    while not told:
        time.sleep(0.01)
    assert next(each.code for each in told if isinstance(each, Refused)) == "bad-input"


def test_the_end_hands_streams_back(start: Start) -> None:
    engine, _, ears = start(Replicas(step_s=0.01))
    ask(engine, 1, tokens=300)
    ears.until(lambda: bool(ears.tokens))
    engine.stop()
    ask(engine, 2)
    assert {name: getattr(end, "code", "") for name, end in ears.ends.items()} == {"s1": "drain", "s2": "drain"}
    engine.stop()


def test_rows_wait_at_their_replica_for_the_next_ones() -> None:
    """A call ends with the token that the rows give; the cache stays for the next call of that id."""
    facts = tiny_facts(kind="decoder-only", input="text", prompt=(), max_positions=64)

    async def scenario() -> list[Any]:
        replica = DecoderReplica(partial(HashModel, 2, facts, stop_share=0), SchedulerSettings())
        found = []
        for position, kept in ((0, True), (3, True), (9, False)):
            rows = np.full((3, facts.width), position, np.float32)
            request = Generate(
                "r", "c", None, (5, 6, 7), 0, GenerationOptions(max_tokens=9), rows=rows, position=position
            )
            said = [item async for item in replica.generate(message_of(request, time.monotonic()))]
            found.append(said[-1]["events"][-1])
            assert ("code" in found[-1]) is not kept
        await replica.forget("r")
        await asyncio.to_thread(replica.stop)
        return found

    first, second, third = asyncio.run(scenario())
    assert len(first["tokens"]) == len(second["tokens"]) == 1
    assert third["code"] == "no-state"


def test_the_next_rows_may_be_sent_as_soon_as_there_is_a_token() -> None:
    """Whoever hears of a token asks for the next at once, from wherever it was told."""
    facts = tiny_facts(kind="decoder-only", input="text", prompt=(), max_positions=64)
    replicas, told, all_told = Replicas(facts=facts), list[Event](), threading.Event()

    def send(made: int) -> None:
        rows = np.full((1 if made else 3, facts.width), made, np.float32)
        position, tokens = (made + 2, tuple(range(3 + made))) if made else (0, (1, 2, 3))
        engine.submit(
            Generate("r", "c", None, tokens, made, GenerationOptions(max_tokens=20), rows=rows, position=position)
        )

    def hear(event: Event) -> None:
        told.append(event)
        if len(told) == 10 or isinstance(event, Refused):
            all_told.set()
        else:
            send(len(told))

    engine = RayEngine(replicas, hear, (), SETTINGS)  # type: ignore[arg-type]
    engine.start()
    try:
        send(0)
        assert all_told.wait(10)
        assert [type(event) for event in told] == [Tokens] * 10
    finally:
        engine.stop()


def test_a_replica_that_breaks_says_so() -> None:
    model = partial(HashModel, 2, FACTS, fails=lambda _: True)
    replica = DecoderReplica(model, SchedulerSettings())

    async def scenario() -> None:
        await replica.check_health()
        for number in range(4):
            request = Generate(str(number), "c", hidden(number))
            assert [item async for item in replica.generate(message_of(request, time.monotonic()))]
        with pytest.raises(InternalError, match="fails again and again"):
            await replica.check_health()
        await asyncio.to_thread(replica.stop)

    asyncio.run(scenario())


def test_messages_keep_what_a_stream_is() -> None:
    request = Generate("a", "c", hidden(3), (1, 2, 3), 1, GenerationOptions(7, 0.5, stop=(4,)), time.monotonic() + 9)
    found = request_of(message_of(request, time.monotonic()))
    assert abs(found.deadline - request.deadline) < 1
    assert (found.tokens, found.generated, found.options) == (request.tokens, 1, request.options)
    assert found.context is not None
    assert list(found.context) == ["hidden"]
    event = Tokens("a", 3, (5,), True, "stop", logprobs=(-0.5, -0.25), no_speech=0.125)
    plain = asdict(event)
    assert event_of({**plain, "logprobs": list(event.logprobs)}) == event
    del plain["logprobs"]
    assert event_of(plain) == replace(event, logprobs=())


@pytest.mark.parametrize("settings", [{"replicas": 0}, {"replicas": 3, "max_replicas": 2}])
def test_settings(settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="expected --replicas"):
        RaySettings(**settings)  # type: ignore[arg-type]


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray() -> None:
    with pytest.raises(ConfigError, match="needs Ray, which is not installed"):
        RayServe(partial(HashModel, 1), SETTINGS).start()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own.
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed; make test-ray")
def test_rows_find_their_cache_on_ray() -> None:
    """Calls of one stream come to the replica that has its cache; those whose replica died are to send all rows."""
    facts = tiny_facts(kind="decoder-only", input="text", prompt=(), max_positions=64)
    settings, told, where = RaySettings(replicas=2, slots=8, cpus=0.5), Ears(), dict[str, set[str]]()

    class Watched(RayServe):
        async def generate(self, stream_id: str, failures: int, message: Message) -> AsyncGenerator[Message, None]:
            async with aclosing(super().generate(stream_id, failures, message)) as calls:
                async for found in calls:
                    where.setdefault(stream_id, set()).add(found["where"])
                    yield found

    def send(name: str, made: int, position: int, count: int) -> None:
        rows = np.full((count, facts.width), len(name), np.float32)
        options, tokens = GenerationOptions(max_tokens=20), tuple(range(2, 2 + 3 + made))
        engine.submit(Generate(name, "c", None, tokens, made, options, rows=rows, position=position))

    def told_of_all(count: int) -> bool:
        return all(name in told.ends or len(told.tokens.get(name, ())) == count for name in names)

    names = [f"rows-{number}" for number in range(8)]
    engine = RayEngine(Watched(partial(HashModel, 8, facts, stop_share=0), settings), told, (), settings)
    try:
        engine.start()
        for made, (position, count) in enumerate(((0, 3), (3, 1), (4, 1))):
            for name in names:
                send(name, made, position, count)
            told.until(partial(told_of_all, made + 1), 30)
        assert not told.ends
        assert {len(each) for each in where.values()} == {1}
        victim = min(*where.values(), key=sorted)
        os.kill(int(next(iter(victim)).split("/")[1]), signal.SIGKILL)
        for name in names:
            send(name, 3, 5, 1)
        told.until(partial(told_of_all, 4), 60)
        lost = {name for name in names if where[name] >= victim}
        assert set(told.ends) == lost
        assert {getattr(end, "code", "") for end in told.ends.values()} == {"no-state"}
        assert 0 < len(lost) < len(names)
    finally:
        engine.stop()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own.
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed; make test-ray")
def test_ray_adds_a_replica_when_streams_queue_up() -> None:
    settings = RaySettings(replicas=1, max_replicas=2, slots=2, waiting=16, cpus=0.5)
    ears, seen, number = Ears(), set[str](), 0
    engine = RayEngine(RayServe(partial(HashModel, 2, FACTS, step_s=0.02), settings), ears, FACTS.prompt, settings)
    try:
        engine.start()
        until = time.monotonic() + 60
        while len(seen) < 2 and time.monotonic() < until:
            while number - len(ears.ends) < 8:
                ask(engine, number, tokens=100)
                number += 1
            time.sleep(0.1)
            seen |= set(engine.replicas())
        assert len(seen) == 2
        ears.until(lambda: len(ears.ends) == number, 60)
        assert all(isinstance(end, Tokens) for end in ears.ends.values())
    finally:
        engine.stop()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own.
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed; make test-ray")
def test_on_ray() -> None:
    """Two replicas as processes: one is killed, then both are replaced; no stream notices."""
    open_model = partial(HashModel, 16, FACTS, step_s=0.02, stop_share=0)
    ears, on_signal = Ears(), signal.getsignal(signal.SIGTERM)
    engine = RayEngine(RayServe(open_model, SETTINGS), ears, FACTS.prompt, SETTINGS)
    try:
        engine.start()
        assert signal.getsignal(signal.SIGTERM) is on_signal
        ask(engine, *range(12), tokens=150)
        ears.until(lambda: len(ears.tokens) == 12 and min(map(len, ears.tokens.values())) > 10, 30)
        before = engine.replicas()
        assert len(before) == 2
        os.kill(int(max(before, key=lambda name: before[name]).split("/")[1]), signal.SIGKILL)
        ears.until(lambda: len(ears.ends) == 12, 60)
        assert [ears.tokens[f"s{number}"] for number in range(12)] == [expected(number, 150) for number in range(12)]
        assert engine.moves["died"] >= 1
        ask(engine, *range(20, 26), tokens=300)
        ears.until(lambda: len(ears.tokens) == 18)
        old = set(engine.replicas())
        engine.upgrade(open_model)
        ask(engine, *range(30, 36), tokens=100)
        ears.until(lambda: len(ears.ends) == 24, 90)
        for number in (*range(20, 26), *range(30, 36)):
            tokens = 300 if number < 30 else 100
            assert ears.tokens[f"s{number}"] == expected(number, tokens)
        ask(engine, *range(40, 46), tokens=100)
        ears.until(lambda: len(ears.tokens) == 30)
        assert not old & set(engine.replicas())
    finally:
        engine.stop()
