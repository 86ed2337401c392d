"""A speech model whose tokens decoder services make: the encoder is here or there, the loop here if need be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from flagsplit.apps.speech.encoding import Before, Rest
from flagsplit.apps.speech.recognizer import SpeechFacts
from flagsplit.apps.speech.token_recognizer import TokenRecognizer, TokenRun
from flagsplit.errors import UnavailableError
from flagsplit.flagir.programs import ProgramFacts
from flagsplit.runtime.generation.client import StreamClient
from flagsplit.runtime.generation.events import Tokens
from flagsplit.runtime.generation.options import GenerationOptions
from flagsplit.runtime.generation.sequential import events
from flagsplit.runtime.generation.stream_events import StreamRequest
from flagsplit.targets.generation.step_model import StepModel
from flagsplit.targets.interface import Array


class StreamRecognizer(TokenRecognizer):
    """Recognizes speech through a client of token streams."""

    def __init__(self, about: SpeechFacts, cut: str, before: Before, client: StreamClient, opened: ExitStack) -> None:
        """Recognize with what is open.

        Args:
            about: the model and the plan.
            cut: what the services call the plan.
            before: what runs here of the encoder.
            client: of the services.
            opened: what is closed with it.
        """
        super().__init__(about)
        self._cut, self._before, self._client, self._opened = cut, before, client, opened

    def encode(self, samples: NDArray[np.float32]) -> Mapping[str, Array]:
        """What crosses the cut."""
        before = self._before.crossed_bytes
        encoded = self._before.run(self.sound.tensors(samples))
        self.crossed_bytes += self._before.crossed_bytes - before
        return encoded

    def run(
        self, encoded: Mapping[str, Array], seconds: float, prompt: tuple[int, ...], options: GenerationOptions
    ) -> TokenRun:
        """The tokens of a sound, with the tier that made each.

        Raises:
            UnavailableError: no service took it, and it cannot be done here.
        """
        self.crossed_bytes += sum(array.nbytes for array in encoded.values())
        stream = self._client.stream(encoded, options, plan=self._cut, prompt=prompt, input_s=seconds)
        try:
            for token in stream:
                yield token.token, token.place.tier
            if stream.reason == "deadline":
                raise UnavailableError("the words of a piece of the sound did not come in time; try again")
        finally:
            stream.cancel()
        return stream.scores

    def close(self) -> None:
        """Say goodbye to the services and free what runs here."""
        self._opened.close()


class PhoneLoop:
    """The rest of a model on this side, to go on with when no service is left; opened when it is first needed."""

    def __init__(self, facts: ProgramFacts, rest: Rest, open_steps: Callable[[], StepModel]) -> None:
        self._facts, self._rest, self._open_steps = facts, rest, open_steps
        self._steps: StepModel | None = None

    def tokens(self, request: StreamRequest, delivered: tuple[int, ...]) -> Iterator[Tokens]:
        """The tokens of a stream after those that were delivered."""
        self._steps = self._steps or self._open_steps()
        return events(
            self._steps,
            {"hidden": self._rest.hidden(request.tensors or {})},
            (*(request.prompt or self._facts.prompt), *delivered),
            request.options,
            generated=len(delivered),
            input_s=request.input_s,
        )

    def close(self) -> None:
        """Free what was opened."""
        self._rest.close()
        if self._steps is not None:
            self._steps.close()
