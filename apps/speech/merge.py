"""Join the words of two windows that share some sound, so that no word is lost and none stands twice.

A window that was cut in the middle of speech has its last word or two wrong, and the next one its first. Between them
both have the same words. They are aligned (Smith and Waterman's dynamic program, without cost for what lies before the
shared sound in one and after it in the other), and the text changes from one window to the other at the pair of equal
words that lies nearest to the middle. The times decide among like alignments, so that refrains are not taken for
one another; where nothing is alike, they decide alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from flagsplit.apps.speech.words import Span, Word

_EQUAL: Final = 2.0
_UNEQUAL: Final = -1.5
_SKIPPED: Final = -1.0
# Words beyond an alignment's end that both should have had: the ones that were cut, seldom more than one or two.
_LEFT_OVER: Final = -0.6
# What a second of distance between two estimated times costs.
_APART_PER_S: Final = -0.8
SLACK_S: Final = 1.5
"""By how much an estimated time may be wrong."""


def seam(before: Sequence[Word], after: Sequence[Word], shared: Span, *, at_least: int = 0) -> tuple[int, int]:
    """Where the text changes from one window to the next.

    Args:
        before: words of the one window.
        after: words of the next.
        shared: the sound that both have, in seconds.
        at_least: how many words of `before` stay in any case.

    Returns:
        How many words of `before` stay, and with which of `after` it goes on.
    """
    first = next((i for i, word in enumerate(before) if word.end_s > shared[0] - SLACK_S), len(before))
    last = next((i for i, word in enumerate(after) if word.start_s > shared[1] + SLACK_S), len(after))
    pairs = [(i, j) for i, j in _aligned(before[first:], after[:last]) if first + i + 1 >= at_least]
    middle = (shared[0] + shared[1]) / 2
    if not pairs:
        return _by_time(before, after, max(middle, before[at_least - 1].end_s) if at_least else middle)

    def distance(pair: tuple[int, int]) -> float:
        one, other = before[first + pair[0]], after[pair[1]]
        return abs((one.start_s + one.end_s + other.start_s + other.end_s) / 4 - middle)

    at, to = min(pairs, key=distance)
    return first + at + 1, to + 1


def _by_time(before: Sequence[Word], after: Sequence[Word], middle: float) -> tuple[int, int]:
    kept = sum((word.start_s + word.end_s) / 2 < middle for word in before)
    return kept, sum((word.start_s + word.end_s) / 2 < middle for word in after)


def _aligned(before: Sequence[Word], after: Sequence[Word]) -> list[tuple[int, int]]:
    """Pairs of equal words of the best alignment of an end of `before` with a beginning of `after`."""
    keys, others = [word.plain for word in before], [word.plain for word in after]
    rows, columns = len(keys), len(others)
    # best[i][j]: of alignments of before[..i] with after[..j]; how each came about, to go back by.
    best = [[_LEFT_OVER * j for j in range(columns + 1)] for _ in range(rows + 1)]
    came = [["stop"] * (columns + 1) for _ in range(rows + 1)]
    for i in range(1, rows + 1):
        for j in range(1, columns + 1):
            pair = _UNEQUAL
            if keys[i - 1] == others[j - 1]:
                pair = _EQUAL + _APART_PER_S * abs(before[i - 1].start_s - after[j - 1].start_s)
            choices = (
                (best[i - 1][j - 1] + pair, "pair"),
                (best[i - 1][j] + _SKIPPED, "before"),
                (best[i][j - 1] + _SKIPPED, "after"),
                (_LEFT_OVER * j, "stop"),
            )
            best[i][j], came[i][j] = max(choices, key=lambda choice: choice[0])
    ends = ((best[i][j] + _LEFT_OVER * (rows - i), i, j) for i in range(rows + 1) for j in range(columns + 1))
    _, i, j = max(ends, default=(0.0, 0, 0))
    pairs = []
    while i and j and came[i][j] != "stop":
        if came[i][j] == "pair":
            if keys[i - 1] == others[j - 1]:
                pairs.append((i - 1, j - 1))
            i, j = i - 1, j - 1
        elif came[i][j] == "before":
            i -= 1
        else:
            j -= 1
    return pairs[::-1]
