"""Streams over replicas of an engine: what they are made of, replicas without Ray, and what is heard of them."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Any

from flagsplit.apps.decoder_service.ray_engine import RayEngine
from flagsplit.apps.decoder_service.ray_replica import DecoderReplica, Message
from flagsplit.apps.decoder_service.ray_settings import RaySettings
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


def ask(engine: RayEngine, *numbers: int, tokens: int = 60) -> None:
    for number in numbers:
        engine.submit(Generate(f"s{number}", "c", hidden(number), options=options_of(number, tokens)))
