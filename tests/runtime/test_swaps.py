"""Bundles sent to a whole line of workers while sessions use it, on a clock that only moves when told."""

import hashlib
import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.runtime.hired import ALONE, GRAPH, TIERS, TRIP, X, facts
from tests.runtime.worlds import Graph, Numbers, make_facts, same

from flagsplit.runtime.bundle_swap import RETIRE_OLD, SwapMachine, SwapOptions
from flagsplit.runtime.bundle_upload import Upload, UploadFile, UploadOptions
from flagsplit.runtime.events import Deliver
from flagsplit.runtime.session_machine import SessionFacts, SessionOptions
from flagsplit.runtime.testing import Cluster, bundle_bytes
from flagsplit.runtime.worker_machine import WorkerOptions
from flagsplit.transport.messages import BundleOffer, BundlePart, BundleStatus, Message, PeerAddress

OLD, NEW = "d" * 64, "e" * 64
# Other functions than the old bundle's, so that an answer of the wrong one shows.
NEWER = Graph((("x",), ("v0", "x"), ("v1",), ("v0", "v2")), ("v3",))


class Line:
    """Three tiers with a session, another bundle, and somebody who brings it."""

    def __init__(self, seed: int = 0, worker: WorkerOptions | None = None) -> None:
        self.rng = random.Random(seed)
        self.cluster = Cluster(
            facts(trip=TRIP, alone=ALONE),
            Numbers(GRAPH),
            seed=seed,
            session=SessionOptions(attempt_s=4.0, max_attempts=64),
            worker=worker,
        )
        newer = replace(facts_of_newer(), bundle=NEW)
        self.cluster.add_bundle(newer, Numbers(NEWER))
        self.asked: dict[int, Graph] = {}

    def swap(self, name: str, options: SwapOptions, data: bytes | None = None) -> SwapMachine:
        data = bundle_bytes(NEW) if data is None else data
        sha = hashlib.sha256(data).hexdigest()
        file = UploadFile(NEW, sha, len(data), lambda offset, size: data[offset : offset + size])
        instance = self.rng.randbytes(16).hex()
        workers = {tier: PeerAddress(f"sim://{tier}") for tier in TIERS[1:]}
        machine = SwapMachine(file, workers, instance, options)
        self.cluster.host(name, name, instance, machine, machine.start())
        return machine

    def ask(self, name: str = "", graph: Graph = GRAPH) -> None:
        self.asked[self.cluster.submit(X, name=name)] = graph

    def served(self) -> list[tuple[str, ...]]:
        return [self.cluster.worker(tier).stats().bundles for tier in TIERS[1:]]

    def check(self) -> list[Deliver]:
        answers = []
        for rid, graph in self.asked.items():
            answer = self.cluster.answers[rid]
            assert isinstance(answer, Deliver), "\n".join(self.cluster.story)
            assert same(answer.outputs, graph.answer(X["x"]))
            answers.append(answer)
        return answers


def facts_of_newer() -> SessionFacts:
    return make_facts(NEWER, TIERS, {"trip": TRIP, "alone": ALONE})


def test_two_bundles_are_served_side_by_side() -> None:
    line = Line()
    line.cluster.add_bundle(replace(facts_of_newer(), bundle=NEW), Numbers(NEWER), at_start=True)
    for tier in TIERS[1:]:
        line.cluster.kill(tier)
        line.cluster.start(tier)
    line.cluster.join("tablet", NEW)
    line.cluster.run(3.0)
    for _ in range(5):
        line.ask()
        line.ask("tablet", NEWER)
        line.cluster.run(1.0)
    line.cluster.run(20.0)
    assert {(answer.report.plan, answer.report.attempts) for answer in line.check()} == {("trip", 1)}


def test_a_swap_under_load_fails_no_request() -> None:
    line = Line()
    line.cluster.run(2.0)
    for at in range(60):
        line.cluster.at(2.0 + at * 0.1, line.ask)
    line.cluster.run(1.0)
    machine = line.swap("boss", SwapOptions(retire=RETIRE_OLD))
    line.cluster.run(30.0)
    assert not machine.error
    assert {state for state, _, _ in machine.progress.values()} == {"retired"}
    assert line.served() == [(NEW,), (NEW,)]
    line.cluster.join("tablet", NEW)
    line.cluster.run(2.0)
    line.ask("tablet", NEWER)
    line.cluster.run(5.0)
    assert line.check()[-1].report.plan == "trip"


def test_where_one_worker_refuses_nothing_is_retired() -> None:
    line = Line()
    line.cluster.run(1.0)
    machine = line.swap("boss", SwapOptions(retire=OLD), data=b"not what it should be")
    line.cluster.run(10.0)
    assert "refused" in machine.error
    assert "damaged" in machine.error
    assert line.served() == [(OLD,), (OLD,)]
    line.ask()
    line.cluster.run(5.0)
    assert line.check()[0].report.plan == "trip"


def test_a_worker_that_takes_no_bundles_says_so() -> None:
    line = Line(worker=WorkerOptions(max_bundle_bytes=0))
    line.cluster.run(1.0)
    machine = line.swap("boss", SwapOptions())
    line.cluster.run(5.0)
    assert "takes no bundles" in machine.error


def test_a_worker_that_is_not_there_is_given_up() -> None:
    line = Line()
    line.cluster.kill("cloud")
    line.cluster.run(1.0)
    machine = line.swap("boss", SwapOptions(retire=OLD, patience_s=5.0))
    line.cluster.run(10.0)
    assert "tier cloud: no progress for 5 s" in machine.error
    assert OLD in line.cluster.worker("edge").stats().bundles


def _history(seed: int) -> None:
    line = Line(seed)
    rng, cluster = line.rng, line.cluster
    cluster.run(1.0)
    for _ in range(rng.randint(5, 20)):
        cluster.at(rng.uniform(1.0, 12.0), line.ask)
    line.swap("first", SwapOptions(retire=RETIRE_OLD))
    pairs = [("edge", "first"), ("cloud", "first"), ("phone", "edge"), ("edge", "cloud")]
    for _ in range(rng.randint(1, 6)):
        one, other = rng.choice(pairs)
        cluster.at(rng.uniform(1.0, 3.0), lambda one=one, other=other: cluster.lose(one, other))  # type: ignore[misc]
    cluster.at(rng.uniform(1.0, 3.0), lambda: cluster.kill("first"))
    cluster.run(rng.uniform(3.0, 6.0))
    machine = line.swap("second", SwapOptions(retire=RETIRE_OLD))
    cluster.run(60.0)
    line.check()
    assert not machine.error, f"seed {seed}: {machine.error}\n" + "\n".join(cluster.story)
    assert line.served() == [(NEW,), (NEW,)], f"seed {seed}"
    for tier in TIERS[1:]:
        assert cluster.worker(tier).is_idle()


@pytest.mark.slow
@pytest.mark.parametrize("block", range(2))
def test_random_histories_with_a_swap(block: int) -> None:
    """Connections are lost and the first uploader is killed: no request fails, and the second swap ends well."""
    for seed in range(block * 20, block * 20 + 20):
        _history(seed)


# --- one upload by itself


class Sender:
    def __init__(self, size: int = 10_000) -> None:
        self.data = random.Random(size).randbytes(size)
        file = UploadFile(NEW, "1" * 64, size, lambda offset, count: self.data[offset : offset + count])
        self.upload = Upload(file, UploadOptions(part_bytes=1000, window_bytes=3000, again_s=2.0))
        self.now = 0.0

    def status(self, state: str, offset: int = 0) -> list[int]:
        return _offsets(self.upload.heard(BundleStatus(NEW, state, offset, "why"), self.now))


def _offsets(messages: Iterable[Message]) -> list[int]:
    return [one.offset for one in messages if isinstance(one, BundlePart)]


def test_an_upload_stays_a_window_ahead() -> None:
    sender = Sender()
    (offer,) = sender.upload.connected(0.0)
    assert offer == BundleOffer("1" * 64, NEW, 10_000)
    assert sender.status("partial", 0) == [0, 1000, 2000]
    assert sender.status("partial", 1000) == [3000]
    assert sender.status("partial", 3000) == [4000, 5000]
    assert sender.status("partial", 10_000) == []
    assert sender.status("loading", 10_000) == []
    assert sender.status("ready") == []
    assert sender.upload.is_over


def test_an_upload_starts_where_the_worker_is_and_again_when_nothing_moves() -> None:
    sender = Sender()
    list(sender.upload.connected(0.0))
    assert sender.status("partial", 9500) == [9500]
    assert _offsets(sender.upload.tick(1.9)) == []
    assert _offsets(sender.upload.tick(2.0)) == [9500]
    sender.upload.lost()
    assert sender.status("partial", 9600) == [], "news of a connection that is gone"
    list(sender.upload.connected(3.0))
    assert sender.status("partial", 9500) == [9500]
    assert sender.status("refused") == []
    assert (sender.upload.state, sender.upload.reason) == ("refused", "why")
    none: list[Message] = list(sender.upload.connected(4.0))
    assert none == []


def test_a_file_that_shrinks_ends_the_upload() -> None:
    sender = Sender()
    list(sender.upload.connected(0.0))
    sender.data = b""
    assert sender.status("partial", 0) == []
    assert "shorter" in sender.upload.reason


def test_the_file_is_read_by_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "a.flagsplit"
    path.write_bytes(np.arange(1000).tobytes())
    file = UploadFile.of(path, NEW)
    assert (file.size_bytes, file.file_sha256) == (8000, hashlib.sha256(path.read_bytes()).hexdigest())
    assert file.read(7000, 5000) == path.read_bytes()[7000:]
