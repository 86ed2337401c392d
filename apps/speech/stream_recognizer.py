"""A speech program whose tokens decoder services make: the encoder is here or there, the loop here if need be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from flagsplit.apps.speech.features import speech_features
from flagsplit.apps.speech.recognizer import Heard
from flagsplit.apps.text import Tokenizer
from flagsplit.flagir.programs import ProgramFacts
from flagsplit.runtime.generation.client import StreamClient
from flagsplit.runtime.generation.sequential import generate
from flagsplit.runtime.generation.stream_events import StreamRequest
from flagsplit.targets.generation.step_model import StepModel
from flagsplit.targets.interface import Array, Executable, TensorSpec

HIDDEN = "hidden"


class StreamRecognizer:
    """Recognizes speech through a client of token streams.

    Attributes:
        plan: which tier does what.
    """

    def __init__(
        self,
        facts: ProgramFacts,
        tokenizer: Tokenizer,
        client: StreamClient,
        cut: str,
        prepare: Callable[[NDArray[np.float32]], dict[str, Array]],
        plan: str,
        opened: ExitStack,
    ) -> None:
        """Recognize with what is open.

        Args:
            facts: of the program.
            tokenizer: of the program.
            client: of the services.
            cut: what the services call the tensors that `prepare` gives.
            prepare: the tensors of a sound that cross to the services.
            plan: see the attribute.
            opened: what is closed with it.
        """
        self._facts, self._tokenizer, self._client = facts, tokenizer, client
        self._cut, self._prepare, self._opened = cut, prepare, opened
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
        """The text of a sound, token by token, with the tier that made each.

        Raises:
            UnavailableError: no service took it, and it cannot be done here.
        """
        seconds = len(samples) / self.rate_hz
        tokens = self._client.stream(self._prepare(samples), plan=self._cut, input_s=seconds)
        text = self._tokenizer.decode_stream()
        where = ""
        try:
            for token in tokens:
                where = token.place.tier
                yield Heard(text.feed([token.token]), where)
            yield Heard(text.finish(), where, 0)
        finally:
            tokens.cancel()

    def close(self) -> None:
        """Say goodbye to the services and free what runs here."""
        self._opened.close()


class PhoneLoop:
    """The whole program on this side, to go on with when no service is left; opened when it is first needed."""

    def __init__(
        self, facts: ProgramFacts, open_encode: Callable[[], Executable], open_steps: Callable[[], StepModel]
    ) -> None:
        self._facts, self._open_encode, self._open_steps = facts, open_encode, open_steps
        self._encode: Executable | None = None
        self._steps: StepModel | None = None

    def tokens(self, request: StreamRequest, delivered: tuple[int, ...]) -> Iterator[int]:
        """The tokens of a stream after those that were delivered."""
        tensors = dict(request.tensors or {})
        if HIDDEN not in tensors:
            self._encode = self._encode or self._open_encode()
            tensors = self._encode.run(tensors)
        self._steps = self._steps or self._open_steps()
        return generate(
            self._steps,
            {HIDDEN: tensors[HIDDEN]},
            (*(request.prompt or self._facts.prompt), *delivered),
            request.options,
            generated=len(delivered),
            input_s=request.input_s,
        )

    def close(self) -> None:
        """Free what was opened."""
        for each in (self._encode, self._steps):
            if each is not None:
                each.close()
        self._encode = self._steps = None


def prepare_features(facts: ProgramFacts, spec: TensorSpec) -> Callable[[NDArray[np.float32]], dict[str, Array]]:
    """What crosses when the encoder runs elsewhere: what it reads."""
    return lambda samples: speech_features(facts, spec, samples)


def prepare_hidden(facts: ProgramFacts, encode: Executable) -> Callable[[NDArray[np.float32]], dict[str, Array]]:
    """What crosses when the encoder runs here: its hidden states."""
    return lambda samples: {HIDDEN: encode.run(speech_features(facts, encode.inputs[0], samples))[HIDDEN]}
