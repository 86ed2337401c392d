"""Sound to words: find speech, cut it into windows, recognize each, join the words of those that overlap.

Words are given as soon as they are certain: of a window between pauses as the recognizer gives them; where windows
overlap once both were recognized. Live, a window that is still open is recognized again and again, and words are given
when two runs agree; see `joiner.py`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Final

import numpy as np
from numpy.typing import NDArray

from flagsplit.apps.speech.hearing import Hearing
from flagsplit.apps.speech.joiner import Joiner
from flagsplit.apps.speech.quality import Quality
from flagsplit.apps.speech.recognizer import Recognizer
from flagsplit.apps.speech.vad import BLOCK, RATE_HZ, Gate, VoiceDetector
from flagsplit.apps.speech.windows import Window, WindowRules, Windows
from flagsplit.apps.speech.words import Span, Word
from flagsplit.errors import ConfigError
from flagsplit.targets.interface import Executable

Samples = NDArray[np.float32]
# Sound between two runs on an open window, and how long to leave the processor alone after one, by what it took.
_LIVE_STEP_S: Final = 1.0
_LIVE_REST: Final = 1.0


@dataclass(frozen=True)
class NewWord:
    """A word that is certain, as soon as it is; when it was said comes with its segment.

    Attributes:
        text: with its punctuation.
        where: the tier that made it.
        window: number of the window that it is from.
    """

    text: str
    where: str
    window: int


@dataclass(frozen=True)
class Segment:
    """The words of one window, or of one phrase where the recognizer gives their times, after they came as `NewWord`s.

    Attributes:
        window: its number.
        words: at least one, all of the same phrase.
        tokens: how many tokens the recognizer made of the window or the phrase.
    """

    window: int
    words: tuple[Word, ...]
    tokens: int

    @property
    def quality(self) -> Quality | None:
        """That of the text of its window, if the recognizer tells."""
        phrase = self.words[0].phrase
        return None if phrase is None else phrase.quality

    @property
    def text(self) -> str:
        """The words with spaces between them."""
        return " ".join(word.text for word in self.words)


class Transcriber:
    """Transcribes one sound."""

    def __init__(
        self,
        recognizer: Recognizer,
        detector: Executable,
        rules: WindowRules | None = None,
        *,
        live: bool = False,
        progress: Callable[[float], None] = lambda _seconds: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare for one sound.

        Args:
            recognizer: what is asked; stays the caller's.
            detector: the network of `vad.open_detector`; stays the caller's.
            rules: of windows; they are cut down to what the recognizer takes.
            live: give words of a window before it ends; costs several times the work.
            progress: told how many seconds of the sound are done.
            clock: seconds that pass, for `live`.

        Raises:
            ConfigError: the recognizer takes sound of another rate than the detector.
        """
        if recognizer.rate_hz != RATE_HZ:
            raise ConfigError(f"expected a recognizer of sound at {RATE_HZ} Hz, this one takes {recognizer.rate_hz}")
        self._rules = (rules or WindowRules()).within(recognizer.max_input_s or float("inf"))
        self._recognizer, self._detector = recognizer, VoiceDetector(detector)
        self._gate, self._windows, self._joiner = Gate(), Windows(self._rules, RATE_HZ), Joiner()
        self._live, self._progress, self._clock = live, progress, clock
        self._run_at_s, self._rested_at = 0.0, 0.0

    def events(self, blocks: Iterable[Samples]) -> Iterator[NewWord | Segment]:
        """The words of a sound, whose samples at `RATE_HZ` come in blocks of any size, and its segments."""
        taken = 0
        for block in _of_size(blocks, BLOCK):
            probability = self._detector.push(block)
            for window in list(self._windows.push(block, self._gate.push(probability))):
                yield from self._ended(window)
            taken += len(block)
            if self._live:
                yield from self._open(taken / RATE_HZ)
            self._progress(taken / RATE_HZ)
        for window in list(self._windows.finish()):
            yield from self._ended(window)

    def _ended(self, window: Window) -> Iterator[NewWord | Segment]:
        is_alone = not (window.overlap or window.goes_on or self._live)
        shared_s = self._rules.overlap_s if window.goes_on else 0.0
        hearing = Hearing(self._recognizer, window, shared_s=shared_s)
        for text, where in hearing.words():
            if is_alone:
                yield NewWord(text, where, window.index)
        next_from_s = window.end / RATE_HZ - self._rules.overlap_s if window.goes_on else None
        is_early = self._windows.still_open is not None
        fresh, words = self._joiner.final(hearing.timed(), _shared(window), next_from_s, is_early=is_early)
        if not is_alone:
            yield from (NewWord(word.text, word.where, window.index) for word in fresh)
        for phrase, said in groupby(words, lambda word: word.phrase):
            yield Segment(window.index, tuple(said), hearing.tokens if phrase is None else phrase.tokens)

    def _open(self, now_s: float) -> Iterator[NewWord]:
        """Words of the window that is still open, every now and then."""
        if now_s - self._run_at_s < _LIVE_STEP_S or self._clock() < self._rested_at:
            return
        window = self._windows.still_open
        if window is None:
            return
        began = self._clock()
        hearing = Hearing(self._recognizer, window, is_partial=True)
        deque(hearing.words(), maxlen=0)
        self._run_at_s = now_s
        self._rested_at = self._clock() + _LIVE_REST * (self._clock() - began)
        for word in self._joiner.partial(hearing.timed(), _shared(window)):
            yield NewWord(word.text, word.where, window.index)


def _shared(window: Window) -> Span | None:
    return (window.start / RATE_HZ, (window.start + window.overlap) / RATE_HZ) if window.overlap else None


def _of_size(blocks: Iterable[Samples], size: int) -> Iterator[Samples]:
    """The same samples in blocks of one size; the last may be shorter."""
    held: Samples = np.zeros(0, np.float32)
    for block in blocks:
        held = np.concatenate([held, block])
        whole = len(held) // size * size
        for at in range(0, whole, size):
            yield held[at : at + size]
        held = held[whole:]
    if len(held):
        yield held
