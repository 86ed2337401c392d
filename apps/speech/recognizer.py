"""What turns a piece of sound into text, wherever it runs: the one thing that `Transcriber` needs to be given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Heard:
    """The next bit of a text.

    Attributes:
        text: what it adds, from a part of a word to some words, with the spaces between them.
        where: the tier that made it, such as "phone".
        tokens: how many tokens it is made of.
    """

    text: str
    where: str
    tokens: int = 1


class Recognizer(Protocol):
    """A speech recognizer; one thread uses it."""

    @property
    def plan(self) -> str:
        """Which tier does what."""

    @property
    def rate_hz(self) -> int:
        """Samples per second of the sound that it takes."""

    @property
    def max_input_s(self) -> float:
        """The longest sound that it takes at once."""

    def recognize(self, samples: NDArray[np.float32]) -> Iterator[Heard]:
        """The text of a sound, as it is made.

        Args:
            samples: mono, -1..1, at most `max_input_s` of them.
        """

    def close(self) -> None:
        """Free what it holds; a second call does nothing."""
