"""Byte-pair encoding: of all neighbors the pair of the lowest rank becomes one, until no pair has a rank."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

Rank = Callable[[str, str], int | None]


def merge_pairs(symbols: Sequence[str], rank: Rank) -> list[str]:
    """Merge; of equal ranks the leftmost first.

    Args:
        symbols: to begin with.
        rank: of a pair; None where it stays two.
    """
    # A chain with a queue: a text without a space is one word, and going through that for every merge is quadratic.
    words: list[str | None] = list(symbols)
    after, before = list(range(1, len(words) + 1)), list(range(-1, len(words) - 1))
    queue: list[tuple[int, int, str, str]] = []

    def consider(at: int, following: int) -> None:
        if at < 0 or following >= len(words):
            return
        left, right = words[at], words[following]
        if left is not None and right is not None and (found := rank(left, right)) is not None:
            heapq.heappush(queue, (found, at, left, right))

    for at in range(len(words) - 1):
        consider(at, at + 1)
    while queue:
        _, at, left, right = heapq.heappop(queue)
        following = after[at]
        # One of the two may have been merged with another neighbor since.
        if words[at] != left or following >= len(words) or words[following] != right:
            continue
        words[at], words[following] = left + right, None
        after[at] = after[following]
        if after[at] < len(words):
            before[after[at]] = at
        consider(before[at], at)
        consider(at, after[at])
    return [word for word in words if word is not None]
