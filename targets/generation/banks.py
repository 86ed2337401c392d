"""Streams of like length in arrays of their own, where that pays.

All rows of an array are as long as the longest, and a step reads them all; arrays apart are stepped apart, and each
step reads all weights. So a stream goes where the bytes that a step reads grow least, and changes places when it or
others got longer, or ended.
"""

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from flagsplit.errors import InternalError
from flagsplit.targets.generation.slot_cache import SlotCache


class Bound(Protocol):
    """What steps a cache."""

    @property
    def cache(self) -> SlotCache:
        """The cache."""


B = TypeVar("B", bound=Bound)


class Banks(Generic[B]):
    """Caches, and which slot is in which.

    Args:
        make: makes an empty cache with what steps it.
        weights_bytes: what a step reads beside caches.
        bytes_for: bytes of a row of so many tokens and frames.
    """

    def __init__(self, make: Callable[[], B], weights_bytes: int, bytes_for: Callable[[int, int], int]) -> None:
        self._make = make
        self._weights_bytes = weights_bytes
        self._bytes_for = bytes_for
        self._where: dict[int, B] = {}
        self.banks: list[B] = [make()]
        """All of them; the first may be empty."""

    def of(self, slot: int) -> B:
        """Where an open slot is.

        Raises:
            InternalError: it is not open.
        """
        if slot not in self._where:
            raise InternalError(f"slot {slot} has no stream; open it first")
        return self._where[slot]

    def length(self, slot: int) -> int:
        """How many tokens an open slot has."""
        cache = self.of(slot).cache
        return int(cache.lengths[cache.rows([slot])[0]])

    def add(self, slot: int, frames: int) -> tuple[B, int]:
        """Give a slot a row, whose context is to be filled in."""
        if slot in self._where:
            raise InternalError(f"slot {slot} is open already; close it first")
        bank = self._cheapest((1, frames), None)[0] or self._new()
        row = bank.cache.add(slot, frames)
        self._where[slot] = bank
        return bank, row

    def remove(self, slot: int) -> None:
        """Free a slot, if it is open."""
        bank = self._where.pop(slot, None)
        if bank is not None:
            bank.cache.remove(slot)
            self._settle()
            for each in self.banks:
                each.cache.shrink()

    def copy(self, source: int, target: int) -> None:
        """Make a slot like another."""
        bank = self.of(source)
        if self._where.get(target, bank) is not bank:
            self.remove(target)
            bank = self.of(source)
        bank.cache.copy(source, target)
        self._where[target] = bank

    def truncate(self, slot: int, tokens: int) -> None:
        """Keep the first tokens of a slot."""
        self.of(slot).cache.truncate(slot, tokens)

    def reserve(self, slot: int, tokens: int) -> None:
        """Make room for a slot of so many tokens, here or elsewhere."""
        bank = self.of(slot)
        cache = bank.cache
        has_tokens, has_frames = cache.capacity
        if tokens <= has_tokens:
            return
        others = cache.longest(without=slot)
        frames = int(cache.frames[cache.rows([slot])[0]])
        if cache.count > 1:
            staying = cache.count * self._bytes_for(tokens, has_frames)
            other, elsewhere = self._cheapest((tokens, frames), bank)
            if (cache.count - 1) * self._bytes_for(*others) + elsewhere < staying:
                bank = other or self._new()
                self._move(slot, bank)
                cache.tighten()
        bank.cache.reserve(tokens)

    def clear(self) -> None:
        """Free everything."""
        self._where, self.banks = {}, []

    def _cheapest(self, need: tuple[int, int], but: B | None) -> tuple[B | None, int]:
        """Where a stream costs least, None for a new place, and how many bytes more a step reads then."""
        found: B | None = None
        least = self._weights_bytes + self._bytes_for(*need)
        for bank in self.banks:
            cache = bank.cache
            if bank is but:
                continue
            after = (max(cache.capacity[0], need[0]), max(cache.capacity[1], need[1])) if cache.count else need
            before = cache.count * self._bytes_for(*cache.capacity) if cache.count else -self._weights_bytes
            more = (cache.count + 1) * self._bytes_for(*after) - before
            if more <= least:
                found, least = bank, more
        return found, least

    def _new(self) -> B:
        made = self._make()
        self.banks.append(made)
        return made

    def _move(self, slot: int, other: B) -> None:
        self._where[slot].cache.move(slot, other.cache)
        self._where[slot] = other
        self._drop_empty()

    def _settle(self) -> None:
        """Put two banks together where that costs less than stepping them apart."""
        self._drop_empty()
        if len(self.banks) < 2:
            return
        small, large = sorted(self.banks, key=lambda bank: bank.cache.count)[:2]
        apart = sum(each.cache.count * self._bytes_for(*each.cache.capacity) for each in (small, large))
        (a, b), (c, d) = small.cache.capacity, large.cache.capacity
        together = (small.cache.count + large.cache.count) * self._bytes_for(max(a, c), max(b, d))
        if together <= apart + self._weights_bytes:
            for slot in small.cache.slots:
                self._move(slot, large)

    def _drop_empty(self) -> None:
        self.banks = [bank for bank in self.banks if bank.cache.count] or self.banks[:1]
