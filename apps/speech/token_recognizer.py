"""Speech to text by the tokens of a program, wherever they are made: what all recognizers of programs do alike.

Of a program that says how likely it is that nobody speaks (Whisper), a window's text is looked at before it is given:
it may be silence, or nonsense that is tried again at a higher temperature. What was given is never taken back, so the
words of such a window come when it is accepted. Of other programs (Moonshine) they come as they are made.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from flagsplit.apps.speech.phrases import Made, TimedTokens, phrases_of
from flagsplit.apps.speech.quality import TEMPERATURES, Quality, quality_of
from flagsplit.apps.speech.recognizer import Heard, SpeechFacts
from flagsplit.apps.speech.words import Phrase
from flagsplit.runtime.generation.constraints import TIMESTAMPS
from flagsplit.runtime.generation.options import GenerationOptions
from flagsplit.runtime.generation.stream_events import Scores
from flagsplit.targets.interface import Array

_LEAST_REST_S: Final = 0.5
"""What is left of a window after its last phrase, and shorter, is no speech."""

TokenRun = Generator[Made, None, Scores]
"""Gives tokens with where each was made, and returns their scores if the options asked for them."""


@dataclass(frozen=True)
class _Attempt:
    made: list[Made]
    quality: Quality


class TokenRecognizer(SpeechFacts, ABC):
    """Recognizes speech with a program.

    Args:
        about: the model, the plan, and whether phrases are to have the model's own times.
        options: of the generation; a temperature above 0 is the only one that is tried.
    """

    def __init__(self, about: SpeechFacts, options: GenerationOptions | None = None) -> None:
        super().__init__(about.plan, about.facts, about.sound, about.tokenizer, times=about.times)
        self._options = options or GenerationOptions()

    @abstractmethod
    def encode(self, samples: NDArray[np.float32]) -> Mapping[str, Array]:
        """What this side makes of a sound, from which tokens can be made any number of times."""

    @abstractmethod
    def run(
        self, encoded: Mapping[str, Array], seconds: float, prompt: tuple[int, ...], options: GenerationOptions
    ) -> TokenRun:
        """The tokens of a sound that was encoded.

        Args:
            encoded: what `encode` gave.
            seconds: how long the sound is.
            prompt: to begin with; empty for the program's own.
            options: of the generation.
        """

    def recognize(
        self, samples: NDArray[np.float32], *, is_partial: bool = False, shared_s: float = 0.0
    ) -> Iterator[Heard]:
        """The text of a sound, token by token; see `Recognizer`."""
        if self.facts.no_speech_token is None:
            return self._as_it_comes(samples)
        return self._accepted(samples, is_partial=is_partial, shared_s=shared_s)

    def _as_it_comes(self, samples: NDArray[np.float32]) -> Iterator[Heard]:
        return self._text(self.run(self.encode(samples), len(samples) / self.rate_hz, (), self._options))

    def _text(self, made: Iterator[Made]) -> Iterator[Heard]:
        stream, where = self.tokenizer.decode_stream(), ""
        for token, where in made:
            yield Heard(stream.feed([token]), where)
        yield Heard(stream.finish(), where, 0)

    def _accepted(self, samples: NDArray[np.float32], *, is_partial: bool, shared_s: float) -> Iterator[Heard]:
        """The text of a sound after it was found to be one; of one that still grows only what is good at once."""
        begin_s, has_times = 0.0, self.times and self.facts.first_timestamp_token is not None
        while True:
            part = samples[round(begin_s * self.rate_hz) :]
            seconds = len(part) / self.rate_hz
            attempt = self._attempt(part, seconds, has_times=has_times, is_partial=is_partial)
            if attempt.quality.is_silent or (is_partial and attempt.quality.is_poor):
                return
            if not has_times:
                yield from self._text(iter(attempt.made))
                return
            found, rest = phrases_of(attempt.made, self.facts, seconds)
            for each in found:
                yield from self._phrase(each, begin_s, attempt.quality)
            if rest is None:
                return
            if is_partial or not 0 < rest.start_s < seconds - max(shared_s, _LEAST_REST_S):
                if not shared_s:
                    yield from self._phrase(rest, begin_s, attempt.quality)
                return
            begin_s += rest.start_s

    def _phrase(self, timed: TimedTokens, begin_s: float, quality: Quality) -> Iterator[Heard]:
        if timed.made:
            yield from self._text(iter(timed.made))
            phrase = Phrase(begin_s + timed.start_s, begin_s + timed.end_s, len(timed.made), quality)
            yield Heard("", timed.made[-1][1], 0, phrase)

    def _attempt(self, samples: NDArray[np.float32], seconds: float, *, has_times: bool, is_partial: bool) -> _Attempt:
        """What is made of a sound at the first temperature that gives a good text, or at the last."""
        chosen = self._options.temperature
        temperatures = (chosen,) if chosen or is_partial else TEMPERATURES
        options = replace(
            self._options,
            logprobs=True,
            constraint=TIMESTAMPS if has_times else "",
            # As published: half of the positions, so that nonsense ends in time.
            max_tokens=min(self._options.max_tokens, max(1, self.facts.max_positions // 2)),
        )
        prompt = self.facts.timestamp_prompt if has_times else ()
        encoded = self.encode(samples)
        for temperature in temperatures:
            run = self.run(encoded, seconds, prompt, replace(options, temperature=temperature))
            made, scores = _collected(run)
            first = self.facts.first_timestamp_token or self.facts.vocabulary
            text = self.tokenizer.decode(token for token, _ in made if token < first)
            quality = quality_of(text, len(made), scores.logprobs, scores.no_speech, temperature)
            if not quality.is_poor:
                break
        return _Attempt(made, quality)


def _collected(run: TokenRun) -> tuple[list[Made], Scores]:
    made = list[Made]()
    while True:
        try:
            made.append(next(run))
        except StopIteration as end:
            return made, end.value
