"""Hostile clients: whatever they say, in whatever order, the worker's machine lives, stays small and harms nobody."""

import random
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
from tests.runtime.hired import CLOUD, OTHER, SESSION, Hired, S, T

from flagsplit.runtime.bundle_events import (
    BundleLoaded,
    BundleUnloaded,
    LoadBundle,
    OpenUpload,
    PartStored,
    StorePart,
    UnloadBundle,
    UploadFailed,
    UploadOpened,
)
from flagsplit.runtime.events import BeginDrain, Ended, Event, Instruction, Ran, Run, Send, Skip, Tick
from flagsplit.runtime.testing import served_of
from flagsplit.runtime.worker_machine import WorkerHooks, WorkerOptions
from flagsplit.targets.interface import Array
from flagsplit.transport.channel import Down, Received, Up, Violated, inbound_name
from flagsplit.transport.messages import (
    BundleOffer,
    BundlePart,
    BundleRetire,
    BundleStatus,
    Bye,
    Cancel,
    Chunk,
    Credit,
    Done,
    Drain,
    Failed,
    Have,
    Hello,
    Hop,
    HopTiming,
    Message,
    Open,
    PeerAddress,
    Ping,
    Pong,
    Probe,
    Reject,
    TensorHeader,
    Welcome,
    encode,
)
from flagsplit.transport.tensors import TransferLimits, chunks_of

_OPTIONS = WorkerOptions(
    max_held_bytes=200_000, max_flights=12, max_peers=4, max_bundles=3, max_bundle_bytes=5_000, linger_s=3.0
)
_INSTANCES = (S, T, "7" * 32, "8" * 32, "9" * 32, "a" * 32)
_DIGESTS = ("d" * 64, "e" * 64, "f" * 64, "", "?")
_TIERS = ("phone", "edge", "cloud", "moon")


class Hostile:
    """Says anything that a wire can carry; engine, files and clock behave, in any order."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.hired = Hired(
            _OPTIONS,
            bundles=("d" * 64, "e" * 64)[: self.rng.choice([0, 1, 2, 2])],
            hooks=WorkerHooks(is_admin=lambda key: key == "admin"),
        )
        self.hired.machine.limits = TransferLimits(max_tensor_bytes=50_000, min_chunk_bytes=1)
        self.owed: list[Event] = []
        self.owed_words: list[tuple[str, Message]] = []
        self.sid = S
        self.ended = False
        self.up: set[str] = set()

    def play(self, steps: int) -> None:
        for _ in range(steps):
            self.follow(self.hired.tell(self.event(), after_s=self.rng.choice([0.0, 0.0, 0.1, 2.0])))
            self.check()

    def follow(self, said: list[Instruction]) -> None:
        for one in said:
            match one:
                case Send(_, message):
                    encode(message)
                case Run(token, segment, inputs):
                    try:
                        outputs, error = self.hired_run(segment, inputs), ""
                    except (KeyError, ValueError, IndexError) as broken:
                        outputs, error = {}, str(broken)
                    self.owed.append(Ran(token, None if error else outputs, error))
                case Skip(token):
                    self.owed = [Ran(token, None, "skipped") if _token(owed) == token else owed for owed in self.owed]
                case OpenUpload(upload, _, size):
                    self.owed.append(self.rng.choice([UploadOpened(upload, 0), UploadOpened(upload, size // 2)]))
                case StorePart(upload, offset, payload):
                    stored = PartStored(upload, offset + len(payload))
                    self.owed.append(stored if self.rng.random() < 0.9 else UploadFailed(upload, "disk full"))
                case LoadBundle(upload, bundle):
                    served = served_of(self.hired.facts, "edge")
                    loaded = BundleLoaded(upload, bundle, served)
                    self.owed.append(loaded if self.rng.random() < 0.8 else UploadFailed(upload, "damaged"))
                case UnloadBundle(bundle):
                    self.owed.append(BundleUnloaded(bundle))
                case Ended():
                    assert not self.ended
                    self.ended = True

    @staticmethod
    def hired_run(segment: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {f"v{op}": next(iter(inputs.values())) for op in segment.split(".")}

    def event(self) -> Event:
        rng = self.rng
        kind = rng.random()
        if self.owed and kind < 0.15:
            return self.owed.pop(rng.randrange(len(self.owed)))
        if kind < 0.2:
            return Tick()
        if kind < 0.2005:
            return BeginDrain("enough")
        peer = self.peer()
        if peer not in self.up:
            self.up.add(peer)
            self.sid = peer.removeprefix("in:")
            if peer.startswith("in:") and rng.random() < 0.8:
                self.owed_words.append((peer, self.hello(self.sid, rng.choice(_DIGESTS[:3]))))
            return Up(peer, rng.choice(["", "admin", "friend"]))
        if kind < 0.23:
            self.up.discard(peer)
            return Down(peer, "gone") if rng.random() < 0.5 else Violated(peer, "nonsense")
        if self.owed_words and rng.random() < 0.7:
            return Received(*self.owed_words.pop(0))
        if rng.random() < 0.25 and peer.startswith("in:"):
            self.owed_words += [(peer, word) for word in self.sense(peer)]
        self.sid = peer.removeprefix("in:") if peer.startswith("in:") and rng.random() < 0.7 else rng.choice(_INSTANCES)
        return Received(peer, self.message())

    def peer(self) -> str:
        known = [*self.hired.machine.peers.beyond, *map(inbound_name, _INSTANCES)]
        return self.rng.choice(known)

    def message(self) -> Message:
        rng = self.rng
        sid, rid, attempt = self.sid, rng.randint(0, 2), rng.randint(0, 3)
        bundle = rng.choice(_DIGESTS)
        sha = rng.choice(["0", "1", "2"]) * 64
        payload = bytes(rng.choice([1, 8, 40, 40, 1000, 2500]))
        crc = rng.choice([zlib.crc32(payload), 0])
        place = rng.choice([0, 8])
        makers: list[Callable[[], Message]] = [
            lambda: self.hello(sid, bundle),
            self.opened,
            self.opened,
            self.opened,
            lambda: Chunk(sid, rid, attempt, rng.choice([1, 1, 3]), rng.choice([0, 0, 1]), place, crc, payload=payload),
            lambda: Have(sid, rid, attempt, rng.randint(0, 4), tuple(rng.choices(range(100), k=rng.randint(0, 3)))),
            lambda: Cancel(sid, rid, attempt),
            lambda: Done(sid, rid),
            lambda: Failed(sid, rid, attempt, rng.choice(_TIERS), "busy", "so", True),
            lambda: Welcome((1, 1), sid, 0, bundle, rng.choice(_TIERS), 1, 1, rng.choice([(), ("resume",)])),
            lambda: Reject("bundle", "no"),
            lambda: Ping(1, 2),
            lambda: Pong(1, 2),
            lambda: Bye("over"),
            lambda: Drain("soon", bundle, rng.choice(_DIGESTS)),
            lambda: Credit(1, 2),
            lambda: Probe(1, 5, b"x"),
            lambda: BundleOffer(sha, bundle, rng.choice([0, 1, 40, 2500, 10**9])),
            lambda: BundlePart(bundle, rng.choice([0, 20, 1250]), crc, payload),
            lambda: BundleStatus(bundle, "ready"),
            lambda: BundleRetire(bundle, rng.choice(_DIGESTS)),
        ]
        return rng.choice(makers)()

    def sense(self, peer: str) -> list[Message]:
        """Something that a client might really say."""
        rng, sid = self.rng, peer.removeprefix("in:")
        kind = rng.random()
        bundle = rng.choice(_DIGESTS[:3])
        if kind < 0.5:
            opened = replace(
                self.hired.opened(rng.randint(0, 2), rng.randint(0, 3), sid), bundle=rng.choice(["", bundle])
            )
            return [opened, *chunks_of(opened, [np.arange(5)])]
        if kind < 0.7:
            return [self.hello(sid, bundle)]
        if kind < 0.8:
            return [BundleRetire(bundle, rng.choice([*_DIGESTS[:3], ""]))]
        parts = [BundlePart(bundle, at, zlib.crc32(bytes(1000)), bytes(1000)) for at in (0, 1000, 2000, 1500, 2500)]
        return [BundleOffer(rng.choice(["1", "2"]) * 64, bundle, 3000), *parts]

    def hello(self, sid: str, bundle: str) -> Hello:
        rng = self.rng
        peers = {rng.choice(_TIERS): PeerAddress(rng.choice(["tcp://a:1", "tcp://b:1", "nonsense"]))}
        return Hello(
            rng.choice([(1, 0), (1, 0), (1, 0), (1, 0), (1, 1), (2, 0)]),
            rng.choice([(1, 1), (1, 9), (3, 0)]),
            sid,
            rng.choice(["session", "worker"]),
            bundle,
            rng.choice([1, 1000, 3_600_000]),
            peers,
            rng.choice([(), ("resume",), ("resume", "bundles")]),
        )

    def opened(self) -> Open:
        rng = self.rng
        good = self.hired.opened(rng.randint(0, 2), rng.randint(0, 3), self.sid)
        count = rng.choice([0, 1, 5, 5, 5, 200, 5000])
        name = rng.choice(["v0", "v0", "v1", "v2", "x"])
        header = TensorHeader(name, "int64", (count,), 8 * count)
        if rng.random() < 0.5:
            hop = rng.randint(0, 4)
            trace = tuple(HopTiming("phone", "0", 1, 1, 0, 0) for _ in range(rng.choice([hop, 1])))
            carry = tuple(dict.fromkeys(rng.choices(["v0", "v1", "v2", name, "n" * 250], k=rng.randint(0, 3))))
            route = tuple(
                Hop(rng.choice(_TIERS), rng.choice(["", "1", "2"]), carry) for _ in range(rng.randint(hop + 1, 9))
            )
            good = replace(good, hop=hop, route=route, trace=trace)
        return replace(
            good,
            tensors=(header,) * rng.choice([1, 1, 1, 2]),
            deadline_ms=rng.choice([0, 1, 2000, 60_000, 2**53 - 1]),
            bundle=rng.choice([*_DIGESTS, "", "", "d" * 64]),
            resume=rng.random() < 0.3,
        )

    def check(self) -> None:
        """Everything that must not grow has not."""
        machine, stats = self.hired.machine, self.hired.machine.stats()
        assert stats.flights <= _OPTIONS.max_flights
        assert 0 <= stats.held_bytes <= 2 * _OPTIONS.max_held_bytes
        assert stats.sessions + stats.workers <= _OPTIONS.max_peers
        assert len(stats.bundles) <= _OPTIONS.max_bundles + 4
        assert stats.lingering <= stats.flights
        assert stats.uploads <= 5
        assert set(machine._away) <= set(machine.flights)
        assert set(machine._owners) <= {sid for sid, _ in machine.flights}
        assert sum(count for count, _ in stats.clients.values()) == len(machine.shares._costs) <= stats.flights
        assert sum(held for _, held in stats.clients.values()) == stats.held_bytes
        assert len(machine.peers.beyond) <= 4 * 3 * len(_INSTANCES)
        for beyond in machine.peers.beyond.values():
            assert sum(map(len, beyond.waiting.values())) <= 600
            assert len(beyond.asked) <= len(_DIGESTS)

    def calm_down(self) -> None:
        """Everybody leaves and time passes: nothing is left of it."""
        for instance in _INSTANCES:
            self.follow(self.hired.tell(Down(inbound_name(instance), "gone")))
        for _ in range(100):
            while self.owed:
                self.follow(self.hired.tell(self.owed.pop()))
            self.follow(self.hired.tell(Tick(), after_s=1.0))
        machine = self.hired.machine
        assert machine.is_idle()
        assert not machine.waiting_runs
        assert machine.shares.held_bytes == 0
        assert not machine.shares.clients
        assert not machine.shares.paused
        assert not machine.peers.inbound
        assert not machine.peers.beyond
        assert not machine.bundles.uploads
        assert not machine.bundles.retiring


def _token(event: Event) -> int:
    return event.token if isinstance(event, Ran) else -1


@pytest.mark.slow
@pytest.mark.parametrize("block", range(10))
def test_nothing_a_client_says_breaks_the_machine(block: int) -> None:
    taken = ran = 0
    for seed in range(block * 250, block * 250 + 250):
        hostile = Hostile(seed)
        try:
            hostile.play(150)
            hostile.calm_down()
            taken += hostile.hired.machine.stats().opened
            ran += sum(isinstance(one, Run) for one in hostile.hired.said)
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
    assert min(taken, ran) > 100, "some of it must make sense, or nothing is tried"


@pytest.mark.slow
def test_a_hostile_session_does_not_disturb_another() -> None:
    for seed in range(200):
        hostile = Hostile(seed)
        hired = Hired(WorkerOptions(linger_s=3.0, max_flights=64))
        hired.hello()
        hired.tell(Up(CLOUD))
        hired.say(Welcome((1, 1), "2" * 32, 0, hired.facts.bundle, "cloud", 1, 1), CLOUD)
        hired.hello(T)
        hired.ask(hired.opened(1))
        for _ in range(40):
            message = hostile.message()
            if isinstance(message, Hello):
                message = replace(message, role="session", bundle=hired.facts.bundle, peers={})
            if not isinstance(message, Bye):
                hired.say(message, OTHER)
        said = hired.finish(S)
        sent = [one.message for one in said if isinstance(one, Send) and one.peer == CLOUD]
        assert [type(message) for message in sent] == [Open, Chunk], f"seed {seed}"
        assert hired.machine.flights[(S, 1)].attempt == 1
        hired.say(Done(S, 1), SESSION)
        assert (S, 1) not in hired.machine.flights
