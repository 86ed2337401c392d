"""What a recognizer hears of one window: its words as they come, and afterwards when they were said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from flagsplit.apps.speech.recognizer import Recognizer
from flagsplit.apps.speech.windows import Window
from flagsplit.apps.speech.words import Phrase, Span, Word, timed, timed_in

Heards = list[tuple[str, str]]
"""Words, each with the tier that made its end."""


class Hearing:
    """A window that is recognized by going through `words`.

    Args:
        recognizer: what is asked.
        window: what it hears.
        is_partial, shared_s: as for `Recognizer.recognize`.

    Attributes:
        tokens: made so far.
    """

    def __init__(
        self, recognizer: Recognizer, window: Window, *, is_partial: bool = False, shared_s: float = 0.0
    ) -> None:
        self._rate_hz, self._window = recognizer.rate_hz, window
        self._heard = recognizer.recognize(window.samples, is_partial=is_partial, shared_s=shared_s)
        self._phrases: list[tuple[Phrase, Heards]] = []
        self._open: Heards = []
        self.tokens = 0

    def words(self) -> Iterator[tuple[str, str]]:
        """Each word as soon as it is whole, with the tier that made its end."""
        held, where = "", ""
        for heard in self._heard:
            held, where = held + heard.text, heard.where
            self.tokens += heard.tokens
            *whole, held = held.split(" ")
            if heard.phrase is not None:
                whole, held = [*whole, held], ""
            for word in filter(None, whole):
                self._open.append((word, where))
                yield word, where
            if heard.phrase is not None:
                self._phrases.append((heard.phrase, self._open))
                self._open = []
        if held.strip():
            self._open.append((held.strip(), where))
            yield held.strip(), where

    def timed(self) -> list[Word]:
        """All words, when they were said."""
        window_s = self._window.start / self._rate_hz
        speech = [(start / self._rate_hz, end / self._rate_hz) for start, end in self._window.speech]
        found = list[Word]()
        for phrase, heard in self._phrases:
            moved = replace(phrase, start_s=window_s + phrase.start_s, end_s=window_s + phrase.end_s)
            found += timed_in(moved, heard, speech)
        return found + timed(self._open, _after(speech, found[-1].end_s) if found else speech)


def _after(speech: Sequence[Span], at_s: float) -> list[Span]:
    """The speech from a time on."""
    left = [(max(start, at_s), end) for start, end in speech if end > at_s]
    return left or [(at_s, at_s)]
