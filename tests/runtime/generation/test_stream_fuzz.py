"""Hostile clients of a service, and an engine that is slow and late: the machine lives, stays small and forgets all."""

import random

import numpy as np
import pytest
from tests.runtime.generation.stream_oracle import BUNDLE, FACTS, WIDTH, encode

from flagsplit.runtime.bundle_events import Served
from flagsplit.runtime.events import BeginDrain, Ended, Event, Instruction, Ran, Run, Send, Skip, Tick
from flagsplit.runtime.generation.events import Refused, Tokens
from flagsplit.runtime.generation.service_machine import StreamMachine
from flagsplit.runtime.generation.stream_events import Begin, Generated, Quit
from flagsplit.runtime.worker_machine import WorkerOptions
from flagsplit.targets.interface import Array
from flagsplit.transport.channel import Down, Received, Up, Violated, inbound_name
from flagsplit.transport.checksum import crc32
from flagsplit.transport.messages import (
    Bye,
    Cancel,
    Chunk,
    Done,
    Hello,
    Hop,
    HopTiming,
    Message,
    Open,
    Ping,
    TensorHeader,
)
from flagsplit.transport.messages import encode as to_frames

OPTIONS = WorkerOptions(
    max_held_bytes=60_000, max_flights=10, max_peers=4, max_bundle_bytes=0, linger_s=3.0, drain_s=2.0
)
INSTANCES = tuple(digit * 32 for digit in "56789")
KINDS = ("hello", *["open"] * 8, "chunk", "end", *["engine"] * 4, *["ran"] * 6, "time", "gone")
NAMES = (("hidden",), ("hidden", "tokens"), ("tokens",), ("rows",), ("rows", "tokens"), ("audio",), ())
RIGHT = (
    ('{"max_tokens":9,"seed":3}', ("hidden",)),
    ('{"delivered":2}', ("hidden", "tokens")),
    ('{"kept":true,"delivered":1}', ("tokens",)),
    ('{"kept":true}', ()),
    ('{"from":0}', ("rows", "tokens")),
    ('{"from":2,"delivered":1}', ("rows", "tokens")),
)
"""Texts that go with their tensors."""
SPECS = (
    "{}",
    "{}",
    "{}",
    '{"max_tokens":9,"seed":3}',
    '{"delivered":2}',
    '{"kept":true}',
    '{"kept":true,"delivered":1}',
    '{"from":0}',
    '{"from":2}',
    '{"from":2,"delivered":1}',
    '{"max_tokens":0}',
    "[]",
    "",
)


class Hostile:
    """Says anything; keeps the books of what the engine was given."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        served = {BUNDLE: Served(("phone", "cloud"), {})}
        self.machine = StreamMachine("cloud", served, "0" * 32, {BUNDLE: FACTS}, OPTIONS)
        self.now = 0.0
        self.runs: list[Run] = []
        self.known: list[str] = []
        self.at_engine: set[str] = set()
        self.up: set[str] = set()
        self.ended = False
        self.steps = 0

    def tell(self, event: Event) -> None:
        for instruction in self.machine.handle(event, self.now):
            self._follow(instruction)
        self._check()

    def _follow(self, instruction: Instruction) -> None:
        match instruction:
            case Send(_, message):
                to_frames(message)
            case Run():
                self.runs.append(instruction)
            case Skip(token):
                self.runs = [run for run in self.runs if run.token != token] + [
                    run for run in self.runs if run.token == token
                ]
            case Begin(generate):
                assert generate.position or generate.stream_id not in self.at_engine
                self.at_engine.add(generate.stream_id)
                self.known.append(generate.stream_id)
            case Quit(stream_id):
                assert stream_id in self.at_engine
                self.at_engine.discard(stream_id)
            case Ended():
                self.ended = True

    def _check(self) -> None:
        machine = self.machine
        assert machine.streams.keys() <= machine.flights.keys()
        assert machine._at_engine.keys() == self.at_engine
        assert {machine.streams[key].engine_id for key in machine._at_engine.values()} == self.at_engine
        assert len(machine.flights) <= OPTIONS.max_flights
        # A context may be larger than the tensors that were counted when they came; here it is 128 bytes.
        assert machine.shares.held_bytes <= OPTIONS.max_held_bytes + 1000 * OPTIONS.max_flights

    def step(self) -> None:
        rng = self.rng
        instance = rng.choice(INSTANCES)
        peer = inbound_name(instance)
        self.steps += 1
        kind = rng.choice(KINDS)
        if kind == "hello" or peer not in self.up:
            self.up.add(peer)
            self.tell(Up(peer))
            self.tell(Received(peer, Hello((1, 0), (1, rng.randint(0, 3)), instance, "session", BUNDLE, 1000)))
        elif kind == "open":
            self.tell(Received(peer, self._open(instance)))
        elif kind == "chunk":
            payload = rng.randbytes(rng.choice([1, 4096, 32]))
            self._say(
                peer, Chunk(self._sid(instance), *self._ids(), 1, rng.randint(0, 3), 0, crc32(payload), payload=payload)
            )
        elif kind == "end":
            sid, (rid, attempt) = self._sid(instance), self._ids()
            words: list[Message] = [Cancel(sid, rid, attempt), Done(sid, rid), Ping(0, 0)]
            self._say(peer, rng.choice(words))
        elif kind == "engine" and self.known:
            self._engine(rng.choice(self.known))
        elif kind == "ran" and self.runs:
            run = self.runs.pop(rng.randrange(len(self.runs)))
            fails = rng.random() < 0.2
            self.tell(Ran(run.token, None if fails else encode(run.segment, run.inputs), "broke" if fails else ""))
        elif kind == "time":
            self.now += rng.choice([0.01, 0.1, 2.0])
            self.tell(Tick())
        elif kind == "gone":
            self.up.discard(peer)
            gone: list[Event] = [Down(peer, "x"), Down(peer, "x"), Violated(peer, "x"), Received(peer, Bye())]
            self.tell(rng.choice(gone))

    def _say(self, peer: str, message: Message) -> None:
        self.tell(Received(peer, message))

    def _engine(self, name: str) -> None:
        rng = self.rng
        event: Tokens | Refused
        if rng.random() < 0.3:
            event = Refused(name, rng.choice(["busy", "no-state", "broken", "bad-input", "deadline"]), "x", 0.5)
        else:
            done = rng.random() < 0.4
            reason = rng.choice(["stop", "length", "deadline", ""]) if done else ""
            event = Tokens(name, rng.randint(0, 5), tuple(range(rng.choice([0, 1, 3, 1500]))), done, reason)  # type: ignore[arg-type]
        if isinstance(event, Refused) or event.reason:
            self.at_engine.discard(name)
        self.tell(Generated(event))

    def _sid(self, instance: str) -> str:
        return self.rng.choice(INSTANCES) if self.rng.random() < 0.1 else instance

    def _ids(self) -> tuple[int, int]:
        return self.steps // 40 + self.rng.randint(0, 2), self.rng.randint(1, 6)

    def _open(self, instance: str) -> Open:
        rng = self.rng
        is_right = rng.random() < 0.8
        spec, names = rng.choice(RIGHT) if is_right else (rng.choice(SPECS), rng.choice(NAMES))
        shapes: dict[str, Array] = {
            "hidden": np.ones((1, rng.choice([2, 5000])), np.float32),
            "tokens": np.full(rng.randint(2 if is_right else 0, 4), rng.choice([1, 5, 5, 99]), np.int64),
            "rows": np.ones((rng.randint(1 if is_right else 0, 2), WIDTH), np.float32),
            "audio": np.ones(3, np.float32),
        }
        tensors = {name: shapes[name] for name in names}
        payload = b"".join(array.tobytes() for array in tensors.values())
        payload = payload if rng.random() < 0.8 and len(payload) <= 65536 else b""
        rid, attempt = self._ids()
        return Open(
            self._sid(instance),
            rid,
            attempt,
            0,
            "p1" if is_right else rng.choice(["p2", "x"]),
            1,
            (Hop("phone", "", names), Hop("cloud")),
            tuple(TensorHeader(name, each.dtype.name, each.shape, each.nbytes) for name, each in tensors.items()),
            rng.choice([0, 500, 3000, 3000]),
            (HopTiming("phone", "", 0, 0, 0, 0),),
            resume=not payload and rng.random() < 0.3,
            inline_crc32=crc32(payload) if payload else None,
            generation=spec,
            payload=payload,
        )

    def end(self) -> None:
        """All leave for good: nothing is left anywhere."""
        for instance in INSTANCES:
            self.tell(Received(inbound_name(instance), Bye()))
        self.now += 100
        self.tell(Tick())
        for run in self.runs:
            self.tell(Ran(run.token, encode(run.segment, run.inputs)))
        assert not self.machine.flights
        assert not self.machine.streams
        assert not self.at_engine
        assert self.machine.shares.held_bytes == 0
        assert self.machine.waiting_runs == 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_whatever_clients_say_the_service_lives_and_forgets(seed: int) -> None:
    hostile = Hostile(seed)
    for _ in range(3000):
        hostile.step()
    if seed % 2:
        hostile.tell(BeginDrain("bye"))
        for _ in range(50):
            hostile.step()
    hostile.end()
    assert len(hostile.known) > 40
