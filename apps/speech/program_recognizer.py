"""A speech program that runs here as a whole: encoder, then the sequential loop of its decoder."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from flagsplit.apps.speech.features import speech_features
from flagsplit.apps.speech.recognizer import Heard
from flagsplit.apps.text import Tokenizer
from flagsplit.flagir.programs import ProgramFacts
from flagsplit.runtime.generation.sequential import generate
from flagsplit.targets.generation.step_model import StepModel
from flagsplit.targets.interface import Executable


class ProgramRecognizer:
    """Recognizes speech with a program's graphs; closing it closes them.

    Attributes:
        plan: which tier does what.
    """

    def __init__(
        self, facts: ProgramFacts, tokenizer: Tokenizer, encode: Executable, model: StepModel, where: str, plan: str
    ) -> None:
        self._facts, self._tokenizer = facts, tokenizer
        self._encode, self._model, self._where = encode, model, where
        self.plan = plan

    @property
    def rate_hz(self) -> int:
        """Samples per second."""
        return self._facts.sample_rate_hz

    @property
    def max_input_s(self) -> float:
        """The longest sound at once."""
        return self._facts.max_input_s

    def recognize(self, samples: NDArray[np.float32]) -> Iterator[Heard]:
        """The text of a sound, token by token."""
        hidden = self._encode.run(speech_features(self._facts, self._encode.inputs[0], samples))["hidden"]
        stream = self._tokenizer.decode_stream()
        for token in generate(self._model, {"hidden": hidden}, input_s=len(samples) / self.rate_hz):
            yield Heard(stream.feed([token]), self._where)
        yield Heard(stream.finish(), self._where, 0)

    def close(self) -> None:
        """Free the graphs."""
        self._encode.close()
        self._model.close()
