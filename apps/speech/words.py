"""Words, when they were said, and how words are compared."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

Span = tuple[float, float]

_APART = re.compile(r"[\s\-\u2010-\u2015/]+")
_DROPPED = re.compile(r"[^\w']+")


@dataclass(frozen=True)
class Word:
    """A word that was said.

    The recognizers give no times: they are estimated, by the share of each word in the letters of its window and by
    where the window has speech.

    Attributes:
        text: as it is written, with punctuation.
        start_s, end_s: when it was said, in seconds from the beginning of the sound.
        where: the tier that made it.
    """

    text: str
    start_s: float
    end_s: float
    where: str = ""


def normalized(text: str) -> list[str]:
    """The words of a text as they are compared: lower case, without punctuation, dashes between words taken apart."""
    plain = unicodedata.normalize("NFKC", text).lower().replace("\u2019", "'")
    words = (_DROPPED.sub("", part).strip("'_") for part in _APART.split(plain))
    return [word for word in words if word]


def timed(words: Sequence[tuple[str, str]], speech: Sequence[Span]) -> list[Word]:
    """When each word was said: as long as its letters are of all letters, one after the other where somebody speaks.

    Args:
        words: in their order, each with the tier that made it.
        speech: where somebody speaks, in seconds, in order and apart.
    """
    letters = [len(text) + 1 for text, _ in words]
    spoken_s = sum(end - start for start, end in speech)
    found, done = [], 0
    for (text, where), count in zip(words, letters, strict=True):
        start = _moment(spoken_s * done / sum(letters), speech, at_end=False)
        done += count
        end = _moment(spoken_s * done / sum(letters), speech, at_end=True)
        found.append(Word(text, start, max(start, end), where))
    return found


def _moment(spoken_s: float, speech: Sequence[Span], *, at_end: bool) -> float:
    """The time by which somebody has spoken so long; between two spans the end of the one or the start of the other."""
    for start, end in speech:
        length = end - start
        if spoken_s < length or (at_end and spoken_s <= length):
            return start + max(spoken_s, 0.0)
        spoken_s -= length
    return speech[-1][1]
