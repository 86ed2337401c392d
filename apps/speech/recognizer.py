"""What turns a piece of sound into text, wherever it runs: the one thing that `Transcriber` needs to be given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flagsplit.apps.speech.features import SoundInput
from flagsplit.apps.speech.words import Phrase
from flagsplit.apps.text import Tokenizer
from flagsplit.flagir.programs import ProgramFacts


@dataclass(frozen=True)
class Heard:
    """The next bit of a text.

    Attributes:
        text: what it adds, from a part of a word to some words, with the spaces between them.
        where: the tier that made it, such as "phone".
        tokens: how many tokens it is made of.
        phrase: what was heard since the phrase before is this one; times are those of the sound.
    """

    text: str
    where: str
    tokens: int = 1
    phrase: Phrase | None = None


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
        """The longest sound that it takes at once; 0 for no limit."""

    def recognize(
        self, samples: NDArray[np.float32], *, is_partial: bool = False, shared_s: float = 0.0
    ) -> Iterator[Heard]:
        """The text of a sound, as it is made or as soon as it is known to be right.

        Args:
            samples: mono, -1..1, at most `max_input_s` of them.
            is_partial: whether the sound still grows, and will be recognized again: no pains are taken with it.
            shared_s: with how many of its last seconds the next sound begins: what is cut off there is heard then.
        """

    def close(self) -> None:
        """Free what it holds; a second call does nothing."""


class SpeechFacts:
    """What the recognizers of one model have in common.

    Attributes:
        plan: which tier does what.
        facts: of the program.
        sound: what is read of a sound.
        tokenizer: turns tokens into text.
        times: whether phrases are to have the times that the model gives, if it can.
        crossed_bytes: what was sent to other tiers so far, before the transport squeezes it.
    """

    def __init__(
        self, plan: str, facts: ProgramFacts, sound: SoundInput, tokenizer: Tokenizer, *, times: bool = False
    ) -> None:
        self.plan, self.facts, self.sound, self.tokenizer = plan, facts, sound, tokenizer
        self.times, self.crossed_bytes = times, 0

    @property
    def rate_hz(self) -> int:
        """Samples per second."""
        return self.facts.sample_rate_hz

    @property
    def max_input_s(self) -> float:
        """The longest sound at once."""
        limits = (self.facts.max_input_s, self.sound.max_samples / self.rate_hz)
        return min((limit for limit in limits if limit), default=0.0)
