"""Keys and cache of the tests, not the user's."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAGSPLIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FLAGSPLIT_CACHE", str(tmp_path / "cache"))
