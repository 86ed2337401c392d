"""Streams of like length in arrays of their own, where that pays, and all arrays within a limit.

All rows of an array are as long as the longest, and a step reads them all; arrays apart are stepped apart, and each
step reads all weights. So a stream goes where the bytes that a step reads grow least, and changes places when it or
others got longer, or ended. What would not fit under the limit is done with less room to spare, or elsewhere, or after
all arrays were made as small as can be, or not at all.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from flagsplit.errors import InternalError
from flagsplit.targets.generation.slot_cache import Shape, SlotCache

_AMPLE = 3 / 4
"""Arrays get room to spare up to this part of the limit; the rest is for streams."""


class Bound(Protocol):
    """What steps a cache."""

    @property
    def cache(self) -> SlotCache:
        """The cache."""


@dataclass(eq=False)
class Sketched:
    """A cache that nobody steps."""

    cache: SlotCache


B = TypeVar("B", bound=Bound)


class Banks(Generic[B]):
    """Caches, and which slot is in which. A `Room`, too: `add`, `reserve` and `copy` tell whether there was room.

    Args:
        cache: makes an empty cache.
        bind: makes what steps it.
        weights_bytes: what a step reads beside caches.
        most: how many caches there may be.
    """

    def __init__(
        self, cache: Callable[[], SlotCache], bind: Callable[[SlotCache], B], weights_bytes: int, most: int = 1 << 30
    ) -> None:
        self.limit: float = math.inf
        """What all arrays may take, also while they are replaced."""
        self._cache, self._bind, self._blank = cache, bind, cache()
        self._weights_bytes, self._most = weights_bytes, most
        self._where: dict[int, B] = {}
        self.banks: list[B] = [bind(cache())]
        """All of them; the first may be empty."""

    def sketch(self) -> "Banks[Sketched]":
        """The same without what they hold: what is done to it allocates nothing."""
        made = Banks[Sketched](self._blank.sketch, Sketched, self._weights_bytes, self._most)
        made.limit = self.limit
        drawn = {bank: Sketched(bank.cache.sketch()) for bank in self.banks}
        made.banks = list(drawn.values())
        made._where = {slot: drawn[bank] for slot, bank in self._where.items()}
        return made

    def confine(self, limit: float) -> None:
        """Set the limit, and make arrays as small as can be if they take more."""
        self.limit = limit
        if self.kv_bytes > limit:
            for bank in self.banks:
                bank.cache.resize(bank.cache.tightest())

    @property
    def nbytes(self) -> int:
        """What all arrays hold."""
        return sum(bank.cache.nbytes for bank in self.banks)

    @property
    def kv_bytes(self) -> int:
        """What all arrays take while one of them is replaced."""
        return self._taken({})

    def bytes_for(self, tokens: int, frames: int, rows: int = 1) -> int:
        """What so many rows take when no others are there, while one of their arrays is replaced."""
        return sum(self._blank.bytes_of(self._blank.least(rows, tokens, frames)))

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

    def add(self, slot: int, frames: int, tokens: int = 1) -> bool:
        """Give a slot a row with room for some tokens, whose context is to be filled in."""
        if slot in self._where:
            raise InternalError(f"slot {slot} is open already; close it first")
        places = [bank for bank, _ in self._by_cost((tokens, frames), None)]
        bank = self._place(places, 1, tokens, frames)
        if bank is None:
            return False
        bank.cache.add(slot, frames, tokens)
        self._where[slot] = bank
        return True

    def remove(self, slot: int) -> None:
        """Free a slot, if it is open."""
        bank = self._where.pop(slot, None)
        if bank is not None:
            bank.cache.remove(slot)
            self._settle()
            for each in self.banks:
                each.cache.shrink()

    def copy(self, source: int, target: int) -> bool:
        """Make a slot like another."""
        if self._where.get(target, self.of(source)) is not self.of(source):
            sketch = self.sketch()
            sketch.remove(target)
            if not sketch.copy(source, target):
                return False
            self.remove(target)
        bank = self.of(source)
        cache = bank.cache
        if target not in self._where:
            (row,) = cache.rows([source])
            if self._place([bank], 1, int(cache.needs[row]), int(cache.frames[row])) is None:
                return False
        cache.copy(source, target)
        self._where[target] = bank
        return True

    def truncate(self, slot: int, tokens: int) -> None:
        """Keep the first tokens of a slot."""
        self.of(slot).cache.truncate(slot, tokens)

    def reserve(self, slot: int, tokens: int) -> bool:
        """Make room for a slot of so many tokens, here or elsewhere."""
        bank = self.of(slot)
        cache = bank.cache
        if tokens > cache.capacity[0]:
            (row,) = cache.rows([slot])
            place = self._place(self._places(slot, tokens), 1, tokens, int(cache.frames[row]), stays=bank)
            if place is None:
                return False
            if place is not bank:
                self._move(slot, place)
                cache.tighten()
                cache = place.cache
        (row,) = cache.rows([slot])
        cache.needs[row] = max(tokens, int(cache.needs[row]))
        return True

    def clear(self) -> None:
        """Free everything."""
        self._where, self.banks = {}, []

    def _places(self, slot: int, tokens: int) -> list[B | None]:
        """Where a slot may get longer, the place first after which steps read least."""
        bank = self.of(slot)
        cache = bank.cache
        if cache.count == 1:
            return [bank]
        others = cache.longest(without=slot)
        need = tokens, int(cache.frames[cache.rows([slot])[0]])
        elsewhere = self._by_cost(need, bank)
        staying = cache.count * cache.row_bytes(tokens, cache.capacity[1])
        less = staying - (cache.count - 1) * cache.row_bytes(*others)
        return [
            *(place for place, cost in elsewhere if cost < less),
            bank,
            *(place for place, cost in elsewhere if cost >= less),
        ]

    def _by_cost(self, need: tuple[int, int], but: B | None) -> list[tuple[B | None, float]]:
        """Where a stream may go, None for a new place, and how many bytes more steps read then; the least first."""
        found: list[tuple[B | None, float]] = []
        for bank in self.banks:
            cache = bank.cache
            if bank is but:
                continue
            after = (max(cache.capacity[0], need[0]), max(cache.capacity[1], need[1])) if cache.count else need
            before = cache.count * cache.row_bytes(*cache.capacity) if cache.count else -self._weights_bytes
            found.append((bank, (cache.count + 1) * cache.row_bytes(*after) - before))
        if len(self.banks) < self._most:
            found.append((None, self._weights_bytes + self._blank.row_bytes(*need)))
        return sorted(found, key=lambda each: each[1])

    def _place(self, places: list[B | None], more: int, tokens: int, frames: int, stays: B | None = None) -> B | None:
        """The first place where there is room for so many rows more (none where a stream stays), which is made."""
        for compact in (False, True):
            for bank in places:
                found = self._fit(bank, 0 if bank is not None and bank is stays else more, tokens, frames, compact)
                if found is not None:
                    return found
        return None

    def _fit(self, bank: B | None, more: int, tokens: int, frames: int, compact: bool) -> B | None:
        """Make room in a place, in a new one if it is None; if all are to be compact, as little as can be."""
        made = bank or self._bind(self._cache())
        cache = made.cache
        if compact:
            others = {each: each.cache.tightest() for each in self.banks if each is not bank}
            shapes = iter([cache.tightest(more, tokens, frames)])
        else:
            others, shapes = {}, cache.shapes(more, tokens, frames)
        for at, shape in enumerate(shapes):
            limit = self.limit if at or compact else self.limit * _AMPLE
            if shape == cache.shape or self._taken({**others, made: shape}) <= limit:
                for each, small in others.items():
                    each.cache.resize(small)
                cache.resize(shape)
                if bank is None:
                    self.banks.append(made)
                return made
        return None

    def _taken(self, changed: Mapping[B, Shape]) -> int:
        """What all arrays take, the largest of them twice, when some caches have these shapes."""
        shapes = {**{bank: bank.cache.shape for bank in self.banks}, **changed}
        sizes = [bank.cache.bytes_of(shape) for bank, shape in shapes.items()]
        return sum(total for total, _ in sizes) + max((largest for _, largest in sizes), default=0)

    def _move(self, slot: int, other: B) -> None:
        self._where[slot].cache.move(slot, other.cache)
        self._where[slot] = other
        self._drop_empty()

    def _settle(self) -> None:
        """Put two banks together where that costs less than stepping them apart, and there is room."""
        self._drop_empty()
        if len(self.banks) < 2:
            return
        small, large = sorted(self.banks, key=lambda bank: bank.cache.count)[:2]
        apart = sum(each.cache.count * each.cache.row_bytes(*each.cache.capacity) for each in (small, large))
        rows = small.cache.count + large.cache.count
        (a, b), (c, d) = small.cache.capacity, large.cache.capacity
        shape = max(rows, large.cache.shape[0]), max(a, c), max(b, d)
        if rows * large.cache.row_bytes(*shape[1:]) > apart + self._weights_bytes:
            return
        if self._taken({large: shape}) <= self.limit:
            large.cache.resize(shape)
            for slot in small.cache.slots:
                self._move(slot, large)

    def _drop_empty(self) -> None:
        kept = [bank for bank in self.banks if bank.cache.count] or self.banks[:1]
        for bank in self.banks:
            if bank not in kept:
                bank.cache.resize((0, 0, 0))  # Whoever still looks at the bank must not keep its arrays.
        self.banks = kept
