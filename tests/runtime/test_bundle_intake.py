"""Bundles that arrive at a real worker: part files, digests, loading, and what is left of them."""

import hashlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tests.runtime.bundles import PLANS, TIERS, build_bundle, inputs_of

from flagsplit.errors import BundleError, PolicyError
from flagsplit.runtime.bundle import Bundle, open_bundle
from flagsplit.runtime.bundle_events import (
    BundleEvent,
    BundleLoaded,
    BundleUnloaded,
    CloseUpload,
    LoadBundle,
    OpenUpload,
    PartStored,
    Served,
    StorePart,
    UnloadBundle,
    UploadFailed,
    UploadOpened,
)
from flagsplit.runtime.bundle_intake import BundleIntake
from flagsplit.runtime.bundle_swap import SwapMachine, SwapOptions
from flagsplit.runtime.bundle_upload import UploadFile
from flagsplit.runtime.events import Ended, Instruction
from flagsplit.runtime.session import Session
from flagsplit.runtime.shell import NoEngine, Shell
from flagsplit.runtime.worker import Worker, WorkerSettings
from flagsplit.runtime.worker_machine import WorkerHooks
from flagsplit.transport.memory import MemoryChannel, MemoryNetwork
from flagsplit.transport.messages import PeerAddress

_PATIENCE_S = 20.0
DATA = np.random.default_rng(1).bytes(5000)
SHA = hashlib.sha256(DATA).hexdigest()


class Intake:
    """An intake whose bundles are any bytes."""

    def __init__(self, cache: Path) -> None:
        self.events: queue.SimpleQueue[BundleEvent] = queue.SimpleQueue()
        self.loaded: list[bytes] = []
        self.unloaded: list[str] = []
        self.cache = cache
        self.intake = BundleIntake(cache, self._load, self.unloaded.append, self.events.put)

    def _load(self, path: Path, digest: str) -> Served:
        if digest == "bad":
            raise BundleError("it is not signed")
        if digest == "odd":
            raise RuntimeError("boom")
        self.loaded.append(path.read_bytes())
        return Served(TIERS, {})

    def do(self, instruction: OpenUpload | StorePart | LoadBundle | UnloadBundle) -> BundleEvent:
        self.intake.do(instruction)
        return self.events.get(timeout=_PATIENCE_S)

    def files(self) -> list[str]:
        return sorted(path.name for path in (self.cache / "uploads").rglob("*.part"))


@pytest.fixture
def intake(tmp_path: Path) -> Iterator[Intake]:
    made = Intake(tmp_path / "cache")
    yield made
    made.intake.close()
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_parts_become_a_bundle(intake: Intake) -> None:
    assert intake.do(OpenUpload(1, SHA, 5000)) == UploadOpened(1, 0)
    assert intake.do(StorePart(1, 0, DATA[:3000])) == PartStored(1, 3000)
    intake.intake.do(CloseUpload(1, keep=True))
    assert intake.do(OpenUpload(2, SHA, 5000)) == UploadOpened(2, 3000)
    assert intake.do(StorePart(2, 3000, memoryview(DATA)[3000:])) == PartStored(2, 5000)
    assert intake.do(LoadBundle(2, "good")) == BundleLoaded(2, "good", Served(TIERS, {}))
    assert intake.loaded == [DATA]
    assert intake.files() == []
    assert intake.do(UnloadBundle("good")) == BundleUnloaded("good")
    assert intake.unloaded == ["good"]


@pytest.mark.parametrize(
    ("digest", "data", "reason"),
    [("good", b"x" * 5000, "SHA-256"), ("bad", DATA, "not signed"), ("odd", DATA, "RuntimeError: boom")],
)
def test_what_cannot_be_served_is_refused_and_removed(intake: Intake, digest: str, data: bytes, reason: str) -> None:
    intake.do(OpenUpload(1, SHA, 5000))
    intake.do(StorePart(1, 0, data))
    event = intake.do(LoadBundle(1, digest))
    assert isinstance(event, UploadFailed)
    assert reason in event.reason
    assert intake.files() == []


def test_an_upload_that_is_given_up_leaves_no_file(intake: Intake) -> None:
    intake.do(OpenUpload(1, SHA, 5000))
    assert intake.files() == [f"{SHA}.part"]
    intake.intake.do(CloseUpload(1, keep=False))
    intake.do(OpenUpload(2, "2" * 64, 10))
    assert intake.files() == [f"{'2' * 64}.part"]


def test_a_disk_without_room_is_said(intake: Intake) -> None:
    event = intake.do(OpenUpload(1, SHA, 1 << 60))
    assert isinstance(event, UploadFailed)
    assert "bytes of disk are needed" in event.reason


def test_files_of_workers_that_are_gone_are_removed_and_others_are_not(tmp_path: Path) -> None:
    one, other = Intake(tmp_path), Intake(tmp_path)
    one.do(OpenUpload(1, SHA, 5000))
    gone = tmp_path / "uploads" / "gone"
    gone.mkdir()
    (gone / ".lock").touch()
    (gone / "x.part").touch()
    other.do(OpenUpload(1, SHA, 5000))
    assert len(one.files()) == 2
    assert not gone.exists()
    one.intake.close()
    other.intake.close()
    other.intake.close()
    assert [path.name for path in (tmp_path / "uploads").iterdir()] == [".lock"]


def test_workers_that_begin_at_the_same_moment_leave_each_other_alone(tmp_path: Path) -> None:
    for _ in range(40):
        intakes = [Intake(tmp_path) for _ in range(6)]
        together = threading.Barrier(len(intakes))

        def begin(one: Intake, together: threading.Barrier = together) -> list[BundleEvent]:
            together.wait()
            return [one.do(OpenUpload(1, SHA, 5000)), one.do(StorePart(1, 0, DATA))]

        with ThreadPoolExecutor(len(intakes)) as pool:
            assert list(pool.map(begin, intakes)) == [[UploadOpened(1, 0), PartStored(1, 5000)]] * len(intakes)
        for one in intakes:
            one.intake.close()


# --- a real worker


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Bundle]:
    made = []
    for plans in (PLANS, PLANS[1:]):
        folder = tmp_path_factory.mktemp("bundle")
        made.append(open_bundle(build_bundle(folder, plans), folder / "cache"))
    return made[0], made[1]


def _until(done: Callable[[], bool]) -> None:
    give_up = time.monotonic() + _PATIENCE_S
    while not done():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def _swap(network: MemoryNetwork, bundle: Bundle, retire: str = "") -> SwapMachine:
    file = UploadFile.of(bundle.path, bundle.digest)
    channel = MemoryChannel(network)
    workers = {tier: PeerAddress(f"mem://{tier}") for tier in TIERS[1:]}
    machine = SwapMachine(file, workers, channel.instance, SwapOptions(retire=retire))
    ended: list[Instruction] = []

    def tell(instruction: Instruction) -> None:
        if isinstance(instruction, Ended):
            ended.append(instruction)

    shell = Shell(machine, channel, NoEngine(), tell, lambda error: ended.append(Ended(str(error))), "swap")
    shell.start(machine.start())
    _until(lambda: bool(ended))
    shell.stop()
    return machine


def _no(_: Bundle) -> None:
    raise BundleError("it is not signed")


@pytest.mark.slow
def test_empty_workers_get_their_first_bundle_and_then_the_next(bundles: tuple[Bundle, Bundle], tmp_path: Path) -> None:
    old, new = bundles
    network = MemoryNetwork()
    settings = WorkerSettings(hooks=WorkerHooks(is_admin=lambda _: True), cache=tmp_path)
    workers = [Worker((), tier, MemoryChannel(network), f"mem://{tier}", settings) for tier in TIERS[1:]]
    try:
        assert workers[0].readiness() == (False, "no bundle is here yet")
        assert not _swap(network, old).error
        assert workers[0].readiness() == (True, "")
        addresses = {tier: PeerAddress(f"mem://{tier}") for tier in TIERS[1:]}
        with Session(old, addresses, MemoryChannel(network)) as session:
            assert session.run(inputs_of(1)).report.plan == "plan0"
            assert not _swap(network, new, "old").error
            assert [worker.stats().bundles for worker in workers] == [(new.digest,)] * 2
            assert session.run(inputs_of(2)).report.plan == "plan3"
        with Session(new, addresses, MemoryChannel(network)) as session:
            assert session.run(inputs_of(1)).report.plan == "plan0"
        workers[0].drain()
        assert workers[0].wait(_PATIENCE_S)
        assert workers[0].drained.is_set()
        assert workers[0].readiness() == (False, "the worker ended")
    finally:
        for worker in workers:
            worker.stop()
    assert [path.name for path in (tmp_path / "uploads").iterdir()] == [".lock"]


@pytest.mark.slow
def test_a_bundle_that_breaks_the_rules_of_one_worker_is_served_by_none_of_the_sessions(
    bundles: tuple[Bundle, Bundle], tmp_path: Path
) -> None:
    old, new = bundles
    network = MemoryNetwork()
    hooks = WorkerHooks(is_admin=lambda _: True)
    settings = [WorkerSettings(hooks=hooks, cache=tmp_path), WorkerSettings(hooks=hooks, cache=tmp_path, check=_no)]
    workers = [
        Worker(old, tier, MemoryChannel(network), f"mem://{tier}", one)
        for tier, one in zip(TIERS[1:], settings, strict=True)
    ]
    try:
        assert "not signed" in _swap(network, new, "old").error
        assert old.digest in workers[0].stats().bundles
        assert workers[1].stats().bundles == (old.digest,)
    finally:
        for worker in workers:
            worker.stop()


def test_a_tier_that_a_bundle_lacks_is_named(bundles: tuple[Bundle, Bundle]) -> None:
    with pytest.raises(PolicyError, match="moon"):
        Worker(bundles[0], "moon", MemoryChannel(MemoryNetwork()), "mem://moon")
