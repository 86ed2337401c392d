"""A speech program that runs here as a whole: encoder, then the sequential loop of its decoder."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from flagsplit.apps.speech.recognizer import Heard
from flagsplit.apps.text import open_tokenizer
from flagsplit.apps.text.tokenizer import Tokenizer
from flagsplit.flagir.programs import ProgramFacts
from flagsplit.runtime.generation.sequential import generate
from flagsplit.targets.generation import StepModel
from flagsplit.targets.interface import Executable


class ProgramRecognizer:
    """Recognizes speech with a program's graphs; closing it closes them.

    Attributes:
        facts: what the program is.
    """

    def __init__(self, facts: ProgramFacts, tokenizer: bytes, encode: Executable, model: StepModel, where: str) -> None:
        self.facts = facts
        self._tokenizer: Tokenizer = open_tokenizer(facts.tokenizer, tokenizer)
        self._encode, self._model, self._where = encode, model, where

    @property
    def rate_hz(self) -> int:
        """Samples per second."""
        return self.facts.sample_rate_hz

    @property
    def max_input_s(self) -> float:
        """The longest sound at once."""
        return self.facts.max_input_s

    def recognize(self, samples: NDArray[np.float32]) -> Iterator[Heard]:
        """The text of a sound, token by token."""
        hidden = self._encode.run({"audio": samples[None]})["hidden"]
        stream = self._tokenizer.decode_stream()
        for token in generate(self._model, {"hidden": hidden}, input_s=len(samples) / self.rate_hz):
            yield Heard(stream.feed([token]), self._where)
        yield Heard(stream.finish(), self._where, 0)

    def close(self) -> None:
        """Free the graphs."""
        self._encode.close()
        self._model.close()
