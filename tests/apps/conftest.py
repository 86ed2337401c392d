"""What the tests of the wired-together parts share: folders, a small model, bundles, workers on threads."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.apps import models
from tests.apps.faulty import SHAPE, Faulty, same
from tests.targets.faulty_chip import FaultyChip

import flagsplit
from flagsplit.apps import zoo
from flagsplit.errors import PeerError
from flagsplit.runtime.bundle import Bundle
from flagsplit.runtime.worker import Worker, WorkerSettings
from flagsplit.runtime.worker_options import WorkerHooks
from flagsplit.targets.catalogue import TARGETS
from flagsplit.transport.security import KeyStore
from flagsplit.transport.zeromq import ZmqChannel

USERS_CACHE = Path(os.environ.get("FLAGSPLIT_CACHE", "~/.cache/flagsplit")).expanduser()
"""As it is before tests set one of their own."""

SPEECH_FILES = ("silero-vad", "beckett.wav", "two-cities.wav")

Serve = Callable[[Bundle], dict[str, str]]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the keys and the cache that all tests of a process share."""
    return tmp_path_factory.mktemp("flagsplit")


@pytest.fixture(scope="session")
def speech_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the tests that has the zoo's files for speech; the program in it is made once."""
    cache = tmp_path_factory.mktemp("speech")
    (cache / "zoo").mkdir()
    for name in (*("moonshine-encoder", "moonshine-decoder", "moonshine-tokenizer"), *SPEECH_FILES):
        try:
            path = zoo.pull(name, cache=USERS_CACHE)
        except PeerError as error:
            pytest.skip(f"offline: {error}")
        (cache / "zoo" / path.name).symlink_to(path)
    return cache


@pytest.fixture
def own_folders(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAGSPLIT_HOME", str(folders / "home"))
    monkeypatch.setenv("FLAGSPLIT_CACHE", str(folders / "cache"))


@pytest.fixture(scope="session")
def small_model(folders: Path) -> Path:
    return models.save(models.small(), folders / "small.onnx")


@pytest.fixture(scope="session")
def small_bundle(folders: Path, small_model: Path) -> Path:
    """Three tiers and three plans, each of one tier."""
    return flagsplit.build(small_model, "phone,edge,cloud", folders / "small.flagsplit").path


@pytest.fixture(scope="session")
def split_bundle(folders: Path, small_model: Path) -> Path:
    """Three tiers and plans that all cut the model."""
    return flagsplit.build(small_model, "phone,edge,cloud", folders / "split.flagsplit", sla=models.SPLIT_SLA).path


@pytest.fixture(scope="session")
def other_bundle(folders: Path) -> Path:
    """Of the same model with other weights."""
    model = models.save(models.small(seed=1), folders / "other.onnx")
    return flagsplit.build(model, "phone,edge,cloud", folders / "other.flagsplit").path


@pytest.fixture(scope="session")
def split_sla(folders: Path) -> Path:
    path = folders / "split.json"
    path.write_text(json.dumps(models.SPLIT_SLA))
    return path


@pytest.fixture
def serve(own_folders: None) -> Iterator[Serve]:
    """Workers for all tiers beyond the first, on threads of this process; gives their addresses."""
    with ExitStack() as stack:

        def start(bundle: Bundle) -> dict[str, str]:
            addresses = {}
            for index, tier in enumerate(bundle.tiers[1:], start=1):
                keys = KeyStore()
                settings = WorkerSettings(hooks=WorkerHooks(is_worker=keys.is_worker))
                channel = ZmqChannel(security=keys.security())
                worker = Worker(bundle, index, channel, "tcp://127.0.0.1:0", settings)
                stack.callback(worker.stop)
                addresses[tier] = worker.address
            return addresses

        yield start


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Faulty:
    """Builds the small model for a phone whose chip has faults."""

    def build(factors: Mapping[str, float], **more: Any) -> Bundle:
        monkeypatch.setitem(TARGETS, "faulty", partial(same, FaultyChip(factors)))
        model = models.save(models.small(), tmp_path / "small.onnx")
        choices = {"targets": {"phone": ["faulty"]}, "shapes": {"image": SHAPE}, **more}
        flagsplit.build(model, "phone,cloud", tmp_path / "b.flagsplit", **choices)
        return flagsplit.open(tmp_path / "b.flagsplit", cache=tmp_path / "cache")

    return build
