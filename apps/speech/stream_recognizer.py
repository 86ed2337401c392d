"""A speech model whose tokens decoder services make: the encoder is here or there, the loop here if need be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from flagsplit.apps.speech.encoding import Before, Rest
from flagsplit.apps.speech.recognizer import Heard, SpeechFacts
from flagsplit.errors import UnavailableError
from flagsplit.flagir.programs import ProgramFacts
from flagsplit.runtime.generation.client import StreamClient
from flagsplit.runtime.generation.sequential import generate
from flagsplit.runtime.generation.stream_events import StreamRequest
from flagsplit.targets.generation.step_model import StepModel


class StreamRecognizer(SpeechFacts):
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
        super().__init__(about.plan, about.facts, about.sound, about.tokenizer)
        self._cut, self._before, self._client, self._opened = cut, before, client, opened

    def recognize(self, samples: NDArray[np.float32]) -> Iterator[Heard]:
        """The text of a sound, token by token, with the tier that made each.

        Raises:
            UnavailableError: no service took it, and it cannot be done here.
        """
        crossed = self._before.crossed_bytes
        crossing = self._before.run(self.sound.tensors(samples))
        crossed = self._before.crossed_bytes - crossed
        self.crossed_bytes += crossed + sum(array.nbytes for array in crossing.values())
        tokens = self._client.stream(crossing, plan=self._cut, input_s=len(samples) / self.rate_hz)
        text = self.tokenizer.decode_stream()
        where = ""
        try:
            for token in tokens:
                where = token.place.tier
                yield Heard(text.feed([token.token]), where)
            if tokens.reason == "deadline":
                raise UnavailableError("the words of a piece of the sound did not come in time; try again")
            yield Heard(text.finish(), where, 0)
        finally:
            tokens.cancel()

    def close(self) -> None:
        """Say goodbye to the services and free what runs here."""
        self._opened.close()


class PhoneLoop:
    """The rest of a model on this side, to go on with when no service is left; opened when it is first needed."""

    def __init__(self, facts: ProgramFacts, rest: Rest, open_steps: Callable[[], StepModel]) -> None:
        self._facts, self._rest, self._open_steps = facts, rest, open_steps
        self._steps: StepModel | None = None

    def tokens(self, request: StreamRequest, delivered: tuple[int, ...]) -> Iterator[int]:
        """The tokens of a stream after those that were delivered."""
        self._steps = self._steps or self._open_steps()
        return generate(
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
