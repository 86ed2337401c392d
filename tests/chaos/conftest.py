"""Keys and caches of these tests lie in temporary folders; a bundle serves all tests, a fleet or worker one module."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.chaos.fleet import Fleet
from tests.chaos.served import PLAIN, Oracle, Served
from tests.runtime.bundles import TIERS, build_bundle

import flagsplit
from flagsplit.runtime.bundle import Bundle
from flagsplit.targets.interface import Executable, LoadOptions
from flagsplit.transport.security import NO_SECURITY, KeyStore


def _environment(factory: pytest.TempPathFactory) -> dict[str, str]:
    base: Path = factory.getbasetemp()
    return {"FLAGSPLIT_HOME": str(base / "home"), "FLAGSPLIT_CACHE": str(base / "cache")}


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in _environment(tmp_path_factory).items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle")
    cache = _environment(tmp_path_factory)["FLAGSPLIT_CACHE"]
    return flagsplit.open(build_bundle(folder), cache=cache)


@pytest.fixture(scope="module")
def shared_fleet(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with Fleet(bundle.path, TIERS[1:], _environment(tmp_path_factory)) as fleet:
        yield fleet


@pytest.fixture
def fleet(shared_fleet: Fleet) -> Fleet:
    """All workers up."""
    shared_fleet.revive()
    return shared_fleet


@pytest.fixture(scope="session")
def whole(bundle: Bundle) -> Iterator[Executable]:
    """The unsplit model."""
    loaded = bundle.load_whole(LoadOptions(threads=1))
    yield loaded
    loaded.close()


@pytest.fixture(scope="session")
def oracle(bundle: Bundle, whole: Executable) -> Oracle:
    return Oracle(bundle, whole)


@pytest.fixture(scope="module")
def shared_cloud(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(bundle, _environment(tmp_path_factory)) as cloud:
        yield cloud


@pytest.fixture
def cloud(shared_cloud: Served) -> Served:
    """A worker for the cloud that is up."""
    shared_cloud.revive()
    return shared_cloud


@pytest.fixture(scope="module")
def shared_plain_cloud(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(bundle, _environment(tmp_path_factory), patch=PLAIN) as cloud:
        yield cloud


@pytest.fixture
def plain_cloud(shared_plain_cloud: Served, monkeypatch: pytest.MonkeyPatch) -> Served:
    """A worker for the cloud without keys, as sessions are that are made meanwhile."""
    monkeypatch.setattr(KeyStore, "security", lambda _: NO_SECURITY)
    shared_plain_cloud.revive()
    return shared_plain_cloud
