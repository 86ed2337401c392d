"""What the tests of emulated links share."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What a test opens; after it no thread and no descriptor may be left."""
    descriptors = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    before = set(threading.enumerate())
    with ExitStack() as opened:
        yield opened
    assert set(threading.enumerate()) == before
    if descriptors:
        assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
