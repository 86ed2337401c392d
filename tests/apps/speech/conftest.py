"""Recordings and models of the zoo, for tests that hear real speech."""

from collections.abc import Callable
from pathlib import Path

import pytest

from flagsplit.apps import zoo
from flagsplit.errors import PeerError

Pulled = Callable[[str], Path]


@pytest.fixture(scope="session")
def pulled() -> Pulled:
    """A file of the zoo; the test is skipped if it is not there and cannot be fetched."""

    def pull(name: str) -> Path:
        try:
            return zoo.pull(name)
        except PeerError as error:
            pytest.skip(f"offline: {error}")

    return pull
