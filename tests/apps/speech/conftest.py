"""Recordings and models of the zoo, for tests that hear real speech."""

from collections.abc import Callable
from pathlib import Path

import pytest

from flagsplit.apps import zoo
from flagsplit.errors import PeerError

BECKETT = "Ever tried, ever failed, no matter, try again, fail again, fail better."
TWO_CITIES = (
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, "
    "it was the epoch of belief, it was the epoch of incredulity, it was the season of Light, it was the season of "
    "Darkness, it was the spring of hope, it was the winter of despair, we had everything before us, we had nothing "
    "before us, we were all going direct to Heaven, we were all going direct the other way\u2014in short, the period "
    "was so far like the present period, that some of its noisiest authorities insisted on its being received, for "
    "good or for evil, in the superlative degree of comparison only."
)
"""The first paragraph of A Tale of Two Cities by Charles Dickens, 1859, which two-cities.wav is a reading of."""

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
