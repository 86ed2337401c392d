"""Replicas of Ray Serve, as processes of this host. Ray is not part of the environment: make test-ray."""

import os
import signal
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from importlib.util import find_spec

import numpy as np
import pytest
from tests.apps.decoder_service.ray_streams import FACTS, SETTINGS, Ears, ask, expected

from flagsplit.apps.decoder_service.ray_engine import RayEngine
from flagsplit.apps.decoder_service.ray_replica import Message
from flagsplit.apps.decoder_service.ray_serve import RayServe
from flagsplit.apps.decoder_service.ray_settings import RaySettings
from flagsplit.runtime.generation.events import Generate, Tokens
from flagsplit.runtime.generation.options import GenerationOptions
from flagsplit.runtime.generation.testing import HashModel, tiny_facts

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Ray's own.
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed; make test-ray"),
]


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
