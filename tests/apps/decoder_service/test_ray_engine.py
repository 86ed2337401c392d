"""The engine in replicas: streams outlive replicas that are killed, drained or replaced."""

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec

import numpy as np
import pytest
from tests.apps.decoder_service.ray_streams import FACTS, SETTINGS, Ears, Replicas, ask, expected

from flagsplit.apps.decoder_service.ray_engine import RayEngine
from flagsplit.apps.decoder_service.ray_serve import RayServe
from flagsplit.apps.decoder_service.ray_settings import RaySettings
from flagsplit.errors import ConfigError
from flagsplit.runtime.generation.events import Event, Generate, Refused, Tokens
from flagsplit.runtime.generation.options import GenerationOptions
from flagsplit.runtime.generation.testing import HashModel, hidden, tiny_facts


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


@pytest.mark.parametrize("settings", [{"replicas": 0}, {"replicas": 3, "max_replicas": 2}])
def test_settings(settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="expected --replicas"):
        RaySettings(**settings)  # type: ignore[arg-type]


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray() -> None:
    with pytest.raises(ConfigError, match="needs Ray, which is not installed"):
        RayServe(partial(HashModel, 1), SETTINGS).start()
