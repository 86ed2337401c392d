"""A speech model that runs here as a whole: encoder, then the sequential loop of its decoder."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from flagsplit.apps.speech.encoding import Before, Rest
from flagsplit.apps.speech.recognizer import Heard, SpeechFacts
from flagsplit.runtime.generation.sequential import generate
from flagsplit.targets.generation.step_model import StepModel


class ProgramRecognizer(SpeechFacts):
    """Recognizes speech with a program's graphs; closing it closes them."""

    def __init__(self, about: SpeechFacts, where: str, before: Before, rest: Rest, steps: StepModel) -> None:
        super().__init__(about.plan, about.facts, about.sound, about.tokenizer)
        self._where, self._before, self._rest, self._steps = where, before, rest, steps

    def recognize(self, samples: NDArray[np.float32]) -> Iterator[Heard]:
        """The text of a sound, token by token."""
        hidden = self._rest.hidden(self._before.run(self.sound.tensors(samples)))
        self.crossed_bytes = self._before.crossed_bytes
        stream = self.tokenizer.decode_stream()
        for token in generate(self._steps, {"hidden": hidden}, input_s=len(samples) / self.rate_hz):
            yield Heard(stream.feed([token]), self._where)
        yield Heard(stream.finish(), self._where, 0)

    def close(self) -> None:
        """Free the graphs."""
        for each in (self._before, self._rest, self._steps):
            each.close()
