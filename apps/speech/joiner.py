"""Which words are certain: of windows that overlap, and of one that is recognized again and again while it grows.

A pure machine: recognized words go in, each word that is certain comes out once, in order. Of an open window a word is
certain when two runs in a row agree on it and on all before it ("local agreement", Liu et al. 2020, Low-Latency
Sequence-to-Sequence Speech Recognition and Translation); what was given out is never taken back.
"""

from __future__ import annotations

from collections.abc import Sequence

from flagsplit.apps.speech.merge import SLACK_S, seam
from flagsplit.apps.speech.wer import distances
from flagsplit.apps.speech.words import Span, Word, normalized


class Joiner:
    """Joins the words of the windows of one sound."""

    def __init__(self) -> None:
        # Words of the window before that lie in the sound shared with this one, and how many of them were given out.
        self._tail: list[Word] = []
        self._tail_given = 0
        # Of the text of this window: what was given out, and what the last run had after that.
        self._given: list[Word] = []
        self._next: list[Word] = []

    def partial(self, words: Sequence[Word], shared: Span | None) -> list[Word]:
        """Take the words of a window that still grows; give those that are certain by now.

        Args:
            words: of the whole window so far.
            shared: the sound that it shares with the window before, in seconds.
        """
        rest = self._rest(words, shared)
        agreed = next(
            (i for i, (a, b) in enumerate(zip(rest, self._next, strict=False)) if key(a) != key(b)),
            min(len(rest), len(self._next)),
        )
        self._given += rest[:agreed]
        self._next = rest[agreed:]
        return rest[:agreed]

    def final(
        self, words: Sequence[Word], shared: Span | None, next_from_s: float | None
    ) -> tuple[list[Word], list[Word]]:
        """Take the words of a window that has ended.

        Args:
            words: of the window.
            shared: the sound that it shares with the window before, in seconds.
            next_from_s: where the next window begins if it overlaps this one.

        Returns:
            The words that are certain and were not given out, and all words of the window that are certain.
        """
        fresh = self._rest(words, shared)
        text = self._given + fresh
        first = self._tail_given
        certain = len(text)
        if next_from_s is not None:
            # What `seam` may still drop waits for the next window.
            shared_from = next((i for i, word in enumerate(text) if word.end_s > next_from_s - SLACK_S), len(text))
            certain = max(len(self._given), shared_from)
            self._tail, self._tail_given = text[shared_from:], certain - shared_from
        else:
            self._tail, self._tail_given = [], 0
        fresh = text[len(self._given) : certain]
        self._given, self._next = self._tail[: self._tail_given], []
        return fresh, text[first:certain]

    def _rest(self, words: Sequence[Word], shared: Span | None) -> list[Word]:
        """The words after those that were given out."""
        joined = list(words)
        if shared is not None:
            kept, first = seam(self._tail, words, shared, at_least=self._tail_given)
            joined = [*self._tail[:kept], *words[first:]]
        return joined[_taken(self._given, joined) :]


def key(word: Word) -> str:
    """What of a word is compared."""
    return " ".join(normalized(word.text)) or word.text


def _taken(given: Sequence[Word], words: Sequence[Word]) -> int:
    """How many of `words` those that were given out stand for: the most alike beginning."""
    if not given:
        return 0
    row = distances([key(word) for word in given], [key(word) for word in words])[-1].tolist()
    return min(range(len(row)), key=lambda count: (row[count], abs(count - len(given))))
