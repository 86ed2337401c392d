"""Keys and caches of these tests lie in temporary folders; one bundle and one fleet serve all tests of a module."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.chaos.fleet import Fleet
from tests.runtime.bundles import TIERS, build_bundle

import flagsplit
from flagsplit.runtime.bundle import Bundle


def _environment(factory: pytest.TempPathFactory) -> dict[str, str]:
    base: Path = factory.getbasetemp()
    return {"FLAGSPLIT_HOME": str(base / "home"), "FLAGSPLIT_CACHE": str(base / "cache")}


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in _environment(tmp_path_factory).items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
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
