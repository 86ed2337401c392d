"""Words, when they were said, and how words are compared."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Final

import numpy as np

from flagsplit.apps.speech.quality import Quality

Span = tuple[float, float]

_APART = re.compile(r"[\s\-\u2010-\u2015/]+")
_DROPPED = re.compile(r"[^\w']+")

# How far from the border of two words, by their letters, a pause may come and still be taken for it.
_NEAR_PAUSE_S: Final = 1.0
# By how much farther it may come from one after punctuation than from others.
_PUNCTUATION_S: Final = 0.5
_PUNCTUATION: Final = ".,;:!?\u2014\u2026"
_ROUNDING_S: Final = 1e-6


@dataclass(frozen=True)
class Phrase:
    """Words that a recognizer gave a time of their own.

    Attributes:
        start_s, end_s: when they were said, in seconds.
        tokens: how many they are made of.
        quality: of the text of their window.
    """

    start_s: float
    end_s: float
    tokens: int
    quality: Quality


@dataclass(frozen=True)
class Word:
    """A word that was said.

    The recognizers give no times of words: they are estimated, by the share of each word in the letters of its phrase,
    or its window where there are no phrases, and by where that has speech.

    Attributes:
        text: as it is written, with punctuation.
        start_s, end_s: when it was said, in seconds from the beginning of the sound.
        where: the tier that made it.
        phrase: that it is of, if the recognizer gives the times of phrases.
    """

    text: str
    start_s: float
    end_s: float
    where: str = ""
    phrase: Phrase | None = None

    @property
    def plain(self) -> str:
        """What of it is compared with others."""
        return " ".join(normalized(self.text)) or self.text


def normalized(text: str) -> list[str]:
    """The words of a text as they are compared: lower case, without punctuation, dashes between words taken apart."""
    plain = unicodedata.normalize("NFKC", text).lower().replace("\u2019", "'")
    words = (_DROPPED.sub("", part).strip("'_") for part in _APART.split(plain))
    return [word for word in words if word]


def timed(words: Sequence[tuple[str, str]], speech: Sequence[Span]) -> list[Word]:
    """When each word was said: as long as its letters are of all letters, one after the other where somebody speaks.

    A pause is taken to lie between two words, if it comes near the border of two, best after punctuation.

    Args:
        words: in their order, each with the tier that made it.
        speech: where somebody speaks, in seconds, in order and apart.
    """
    if not words:
        return []
    borders = _borders([text for text, _ in words], [end - start for start, end in speech])
    found = []
    for (text, where), begins, ends in zip(words, borders, borders[1:], strict=False):
        start = _moment(begins, speech, at_end=False)
        found.append(Word(text, start, max(start, _moment(ends, speech, at_end=True)), where))
    return found


def timed_in(phrase: Phrase, words: Sequence[tuple[str, str]], speech: Sequence[Span]) -> list[Word]:
    """When each word of a phrase was said; the first begins and the last ends with it. Arguments as of `timed`."""
    inside = [(max(start, phrase.start_s), min(end, phrase.end_s)) for start, end in speech]
    inside = [span for span in inside if span[0] < span[1]] or [(phrase.start_s, phrase.end_s)]
    inside[0] = (phrase.start_s, inside[0][1])
    inside[-1] = (inside[-1][0], phrase.end_s)
    return [replace(word, phrase=phrase) for word in timed(words, inside)]


def _borders(words: Sequence[str], lengths_s: Sequence[float]) -> list[float]:
    """Where words begin and end, in seconds of speech: by their letters, but that pauses are borders too."""
    letters = [len(word) + 1 for word in words]
    spoken_s = sum(lengths_s)
    by_letters = [spoken_s * done / sum(letters) for done in accumulate(letters, initial=0)]
    anchors = [(0.0, 0.0)]
    for pause in accumulate(lengths_s[:-1]):
        costs = {
            border: abs(border - pause) - _PUNCTUATION_S * (word[-1] in _PUNCTUATION)
            for border, word in zip(by_letters[1:-1], words, strict=False)
            if border > anchors[-1][0] and abs(border - pause) <= _NEAR_PAUSE_S
        }
        if costs:
            anchors.append((min(costs, key=lambda border: costs[border]), pause))
    anchors.append((spoken_s, spoken_s))
    found = np.interp(np.array(by_letters), [by for by, _ in anchors], [at for _, at in anchors])
    return [float(each) for each in found]


def _moment(spoken_s: float, speech: Sequence[Span], *, at_end: bool) -> float:
    """The time by which somebody has spoken so long; between two spans the end of the one or the start of the other."""
    for start, end in speech:
        length = end - start
        if spoken_s < length - _ROUNDING_S or (at_end and spoken_s <= length + _ROUNDING_S):
            return start + min(max(spoken_s, 0.0), length)
        spoken_s -= length
    return speech[-1][1]
