"""Word error rate: how far a text is from the one that was said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from flagsplit.apps.speech.words import normalized
from flagsplit.errors import InputError

_WORDS_MAX: Final = 10_000


@dataclass(frozen=True)
class WordErrors:
    """How many words are wrong, of the best alignment of two texts.

    Attributes:
        substitutions: words in the place of others.
        insertions: words that were not said.
        deletions: words that are missing.
        words: how many were said.
    """

    substitutions: int
    insertions: int
    deletions: int
    words: int

    @property
    def rate(self) -> float:
        """Wrong words per word that was said; of an empty text 0 if nothing was inserted, else infinite."""
        wrong = self.substitutions + self.insertions + self.deletions
        return wrong / self.words if self.words else (float("inf") if wrong else 0.0)


def word_errors(said: str, heard: str) -> WordErrors:
    """Compare what was heard with what was said, word by word, regardless of case and punctuation.

    Raises:
        InputError: the texts are too long: over 10,000 words where they are not alike.
    """
    first, second = normalized(said), normalized(heard)
    total = len(first)
    alike = _alike(first, second)
    first, second = first[alike:], second[alike:]
    alike = _alike(first[::-1], second[::-1])
    first, second = first[: len(first) - alike], second[: len(second) - alike]
    if max(len(first), len(second)) > _WORDS_MAX:
        raise InputError(f"word errors are counted of up to {_WORDS_MAX} words, not of {len(first)} and {len(second)}")
    substitutions, insertions, deletions = _counts(first, second)
    return WordErrors(substitutions, insertions, deletions, total)


def _alike(first: Sequence[str], second: Sequence[str]) -> int:
    """How many words both begin with."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def _counts(said: Sequence[str], heard: Sequence[str]) -> tuple[int, int, int]:
    distance = distances(said, heard)
    i, j, counts = len(said), len(heard), [0, 0, 0]
    while i or j:
        here = distance[i, j]
        if i and j and distance[i - 1, j - 1] + (said[i - 1] != heard[j - 1]) == here:
            counts[0] += int(said[i - 1] != heard[j - 1])
            i, j = i - 1, j - 1
        elif j and distance[i, j - 1] + 1 == here:
            counts[1], j = counts[1] + 1, j - 1
        else:
            counts[2], i = counts[2] + 1, i - 1
    return counts[0], counts[1], counts[2]


def distances(said: Sequence[str], heard: Sequence[str]) -> NDArray[np.uint16]:
    """Levenshtein's table, a row at a time: insertions are a running minimum."""
    numbers = {word: number for number, word in enumerate({*said, *heard})}
    second = np.array([numbers[word] for word in heard], np.int64)
    steps = np.arange(len(heard) + 1)
    table = np.empty((len(said) + 1, len(heard) + 1), np.uint16)
    row = steps
    table[0] = row
    for i, word in enumerate(said, 1):
        other = row + 1
        other[1:] = np.minimum(other[1:], row[:-1] + (second != numbers[word]))
        row = np.minimum.accumulate(other - steps) + steps
        table[i] = row
    return table
