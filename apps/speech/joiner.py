"""Which words are certain: of windows that overlap, and of one that is recognized again and again while it grows.

A pure machine: recognized words go in, each word that is certain comes out once, in order. Of an open window a word is
certain when two runs in a row agree on it and on all before it ("local agreement", Liu et al. 2020, Low-Latency
Sequence-to-Sequence Speech Recognition and Translation); what was given out is never taken back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from flagsplit.apps.speech.merge import SLACK_S, seam
from flagsplit.apps.speech.wer import distances
from flagsplit.apps.speech.words import Span, Word


class Joiner:
    """Joins the words of the windows of one sound."""

    def __init__(self) -> None:
        # Words of the window before that lie in the sound shared with this one, and how many of them were given out.
        self._tail: list[Word] = []
        self._tail_given = 0
        # Of the text of this window: what was given out, how many words of that belong to a window before, and what
        # the last run had after that.
        self._given: list[Word] = []
        self._before = 0
        self._next: list[Word] = []

    def partial(self, words: Sequence[Word], shared: Span | None) -> list[Word]:
        """Take the words of a window that still grows; give those that are certain by now.

        Args:
            words: of the whole window so far.
            shared: the sound that it shares with the window before, in seconds.
        """
        rest = self._rest(words, shared)
        agreed = next(
            (i for i, (a, b) in enumerate(zip(rest, self._next, strict=False)) if a.plain != b.plain),
            min(len(rest), len(self._next)),
        )
        self._given += rest[:agreed]
        self._next = rest[agreed:]
        return rest[:agreed]

    def final(
        self, words: Sequence[Word], shared: Span | None, next_from_s: float | None = None, *, is_early: bool = False
    ) -> tuple[list[Word], list[Word]]:
        """Take the words of a window that has ended.

        Args:
            words: of the window.
            shared: the sound that it shares with the window before, in seconds.
            next_from_s: where the next window begins if it overlaps this one.
            is_early: whether it ended at a pause that is past, so that words of the next window were given out already.

        Returns:
            The words that are certain and were not given out, and all words of the window that are certain.
        """
        carried: list[Word] = []
        if is_early and self._given:
            kept = _taken(self._joined(words, shared), self._given)
            self._given, carried = self._given[:kept], self._given[kept:]
        fresh = self._rest(words, shared)
        text = self._given + fresh
        certain = len(text)
        if next_from_s is not None:
            # What `seam` may still drop waits for the next window.
            shared_from = next((i for i, word in enumerate(text) if word.end_s > next_from_s - SLACK_S), len(text))
            certain = max(len(self._given), shared_from)
            self._tail, self._tail_given = text[shared_from:], certain - shared_from
            carried = text[shared_from:certain]
        else:
            self._tail, self._tail_given = [], 0
        fresh, of_window = text[len(self._given) : certain], text[self._before : certain]
        self._given, self._before, self._next = carried, self._tail_given, []
        return fresh, _in_order(of_window)

    def _joined(self, words: Sequence[Word], shared: Span | None) -> list[Word]:
        """The words from the beginning of the sound that is shared with the window before."""
        if shared is None:
            return list(words)
        kept, first = seam(self._tail, words, shared, at_least=self._tail_given)
        return [*self._tail[:kept], *words[first:]]

    def _rest(self, words: Sequence[Word], shared: Span | None) -> list[Word]:
        """The words after those that were given out."""
        joined = self._joined(words, shared)
        taken = _taken(self._given, joined)
        if taken == len(self._given):
            # The more of a window was heard, the better is known when its words were said, and of which phrase.
            pairs = zip(self._given, joined, strict=False)
            self._given = [replace(again, text=word.text, where=word.where) for word, again in pairs]
        return joined[taken:]


def _in_order(words: Sequence[Word]) -> list[Word]:
    """The same words, none said before the end of the one before: times of different runs may contradict each other."""
    found: list[Word] = []
    for word in words:
        start = max(word.start_s, found[-1].end_s if found else 0.0)
        found.append(replace(word, start_s=start, end_s=max(word.end_s, start)))
    return found


def _taken(given: Sequence[Word], words: Sequence[Word]) -> int:
    """For how many of `words`, from their beginning, those that were given out stand: those most alike."""
    if not given:
        return 0
    row = distances([word.plain for word in given], [word.plain for word in words])[-1].tolist()
    return min(range(len(row)), key=lambda count: (row[count], abs(count - len(given))))
