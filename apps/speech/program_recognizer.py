"""A speech model that runs here as a whole: encoder, then the sequential loop of its decoder."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from flagsplit.apps.speech.encoding import Before, Rest
from flagsplit.apps.speech.recognizer import SpeechFacts
from flagsplit.apps.speech.token_recognizer import TokenRecognizer, TokenRun
from flagsplit.runtime.generation.options import GenerationOptions
from flagsplit.runtime.generation.sequential import events
from flagsplit.runtime.generation.stream_events import Scores
from flagsplit.targets.generation.step_model import StepModel
from flagsplit.targets.interface import Array


class ProgramRecognizer(TokenRecognizer):
    """Recognizes speech with a program's graphs; closing it closes them."""

    def __init__(self, about: SpeechFacts, where: str, before: Before, rest: Rest, steps: StepModel) -> None:
        super().__init__(about)
        self._where, self._before, self._rest, self._steps = where, before, rest, steps

    def encode(self, samples: NDArray[np.float32]) -> Mapping[str, Array]:
        """The hidden states of a sound."""
        hidden = self._rest.hidden(self._before.run(self.sound.tensors(samples)))
        self.crossed_bytes = self._before.crossed_bytes
        return {"hidden": hidden}

    def run(
        self, encoded: Mapping[str, Array], seconds: float, prompt: tuple[int, ...], options: GenerationOptions
    ) -> TokenRun:
        """The tokens of a sound."""
        logprobs, no_speech = list[float](), 0.0
        for event in events(self._steps, encoded, prompt, options, input_s=seconds):
            logprobs += event.logprobs
            no_speech = no_speech or event.no_speech
            for token in event.tokens:
                yield token, self._where
        return Scores(tuple(logprobs), no_speech)

    def close(self) -> None:
        """Free the graphs."""
        for each in (self._before, self._rest, self._steps):
            each.close()
