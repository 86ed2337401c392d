"""Keys and caches of these tests lie in temporary folders."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    base: Path = tmp_path_factory.getbasetemp()
    monkeypatch.setenv("FLAGSPLIT_HOME", str(base / "home"))
    monkeypatch.setenv("FLAGSPLIT_CACHE", str(base / "cache"))
