"""The keys and values of streams: one array for each input of the step graph, one row a stream.

Rows in use are always the first ones, so that any run of rows is a piece of memory that an engine can read in place.
When a stream ends, the last row takes its place. All arrays are as long as the longest stream needs. Which shape they
get is said from outside (`banks.py`), since that is what takes memory; a cache can be sketched, to try what would be.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flagsplit.errors import InternalError

Floats = NDArray[np.float32]
Whole = NDArray[np.int64]
Shape = tuple[int, int, int]
"""Rows, and the tokens and frames that each has room for."""
_UNIT = 16
"""Lengths of arrays are multiples of so many tokens or frames."""
_GROWTH = 1.25
"""By how much arrays grow that will have to grow again."""
_SLACK = 4
"""Arrays that are so many times as large as those in use need are replaced when a stream ends."""


def padded_length(length: int) -> int:
    """The next multiple of `_UNIT`."""
    return -(-length // _UNIT) * _UNIT


class SlotCache:
    """Caches by slot.

    Args:
        slots: how many streams there can be.
        past: by name of an array that grows with its stream's tokens, heads and elements of a head.
        cross: the same for arrays that are as long as their stream's context.
        zeros: makes an array of a shape; NumPy's by default, or tensors that are indexed alike.
        padded: how long an array is made for a stream of some length.
        rows: how many rows there are at least.
        shrinks: whether arrays that are far too large for the streams that are left are replaced.
    """

    def __init__(
        self,
        slots: int,
        past: Mapping[str, tuple[int, int]],
        cross: Mapping[str, tuple[int, int]],
        *,
        zeros: Callable[[tuple[int, ...]], Any] = lambda shape: np.zeros(shape, np.float32),
        padded: Callable[[int], int] = padded_length,
        rows: int = 1,
        shrinks: bool = True,
    ) -> None:
        self.lengths: Whole = np.zeros(slots, np.int64)
        """Tokens of each row."""
        self.frames: Whole = np.zeros(slots, np.int64)
        """Frames of each row."""
        self.needs: Whole = np.zeros(slots, np.int64)
        """Tokens that each row must have room for."""
        self.shape: Shape = (rows, 0, 0)
        """Of all arrays."""
        self.version = 0
        """Counts how often arrays were replaced."""
        self.before_replacing: Callable[[], None] = lambda: None
        """Called before arrays are replaced: who looks at them lets go of them, so that they are freed."""
        self._zeros, self._padded, self._shrinks = zeros, padded, shrinks
        self.past: dict[str, Any] = {name: self._empty(rows, *form, 0) for name, form in past.items()}
        self.cross: dict[str, Any] = {name: self._empty(rows, *form, 0) for name, form in cross.items()}
        self._each = _bytes_each(self.past), _bytes_each(self.cross)
        self._least_rows, self._most_rows = rows, slots
        self._row_of: dict[int, int] = {}
        self._slot_of: list[int] = []

    def sketch(self) -> "SlotCache":
        """The same cache without what it holds: what is done to it allocates nothing."""
        made = copy.copy(self)
        made.lengths, made.frames, made.needs = self.lengths.copy(), self.frames.copy(), self.needs.copy()
        made.past, made.cross = {}, {}
        made.before_replacing = lambda: None
        made._row_of, made._slot_of = dict(self._row_of), list(self._slot_of)
        return made

    @property
    def nbytes(self) -> int:
        """What all arrays hold."""
        return self.bytes_of(self.shape)[0]

    @property
    def count(self) -> int:
        """How many slots are open."""
        return len(self._slot_of)

    @property
    def slots(self) -> list[int]:
        """The open ones, by row."""
        return list(self._slot_of)

    @property
    def capacity(self) -> tuple[int, int]:
        """How many tokens and frames a row can have."""
        return self.shape[1:]

    def bytes_of(self, shape: Shape) -> tuple[int, int]:
        """What all arrays hold when they have a shape, and what the largest of them does."""
        rows, tokens, frames = shape
        (past, one_past), (cross, one_cross) = self._each
        return rows * (past * tokens + cross * frames), rows * max(one_past * tokens, one_cross * frames)

    def row_bytes(self, tokens: int, frames: int) -> int:
        """Bytes of a row that is just long enough."""
        return self.bytes_of((1, self._long(tokens), self._long(frames)))[0]

    def least(self, rows: int, tokens: int, frames: int) -> Shape:
        """The least shape for so many rows of such lengths."""
        return max(self._least_rows, rows), self._long(tokens), self._long(frames)

    def tightest(self, more: int = 0, tokens: int = 0, frames: int = 0) -> Shape:
        """The least shape for all rows in use, and so many more, one of which may have such lengths."""
        count = self.count
        longest = max(tokens, int(self.needs[:count].max(initial=0)))
        widest = max(frames, int(self.frames[:count].max(initial=0)))
        return self.least(count + more, longest, widest)

    def shapes(self, more: int, tokens: int, frames: int) -> Iterator[Shape]:
        """Shapes with room for so many more rows and such lengths, from one that will do for long to the least."""
        rows, has_tokens, has_frames = self.shape
        wanted = self.count + more
        if wanted <= rows and tokens <= has_tokens and frames <= has_frames:
            yield self.shape
            return
        longer = max(has_frames, self._long(frames))
        made_rows = rows if wanted <= rows else min(self._most_rows, max(wanted, 2 * rows))
        grown = has_tokens if tokens <= has_tokens else self._long(max(tokens, int(has_tokens * _GROWTH)))
        yield made_rows, grown, longer
        yield max(rows, wanted), max(has_tokens, self._long(tokens)), longer
        yield self.tightest(more, tokens, frames)

    def resize(self, shape: Shape) -> None:
        """Give all arrays a shape that has room for the rows in use.

        What gets smaller is replaced first, one array after another, so what is there meanwhile is no more than the
        arrays before or after, whichever is more, and the largest of them once more.
        """
        rows, *lengths = shape
        if shape == self.shape:
            return
        self.before_replacing()
        before, self.shape = self.shape, shape
        parts = list(zip((self.past, self.cross), lengths, before[1:], strict=True))
        for arrays, length, had in sorted(parts, key=lambda part: rows * part[1] > before[0] * part[2]):
            if (rows, length) != (before[0], had):
                self._replace(arrays, rows, length)
        self.version += 1

    def longest(self, without: int) -> tuple[int, int]:
        """The most tokens and frames that a row needs, but for one slot."""
        rows = [row for slot, row in self._row_of.items() if slot != without]
        return int(self.needs[rows].max(initial=1)), int(self.frames[rows].max(initial=0))

    def rows(self, slots: Sequence[int]) -> list[int]:
        """The rows of open slots.

        Raises:
            InternalError: one is not open.
        """
        try:
            return [self._row_of[slot] for slot in slots]
        except KeyError as error:
            raise InternalError(f"slot {error} has no stream; open it first") from error

    def add(self, slot: int, frames: int, tokens: int = 1) -> int:
        """Give a slot a row of no tokens, with room for some, whose context is to be filled in; which row."""
        if not 0 <= slot < self._most_rows or slot in self._row_of:
            raise InternalError(f"slot {slot} is open already, or there are only {self._most_rows}")
        self.resize(next(self.shapes(1, tokens, frames)))
        row = len(self._slot_of)
        self._slot_of.append(slot)
        self._row_of[slot] = row
        self.lengths[row], self.frames[row], self.needs[row] = 0, frames, tokens
        return row

    def remove(self, slot: int) -> None:
        """Free a slot, if it is open; the last row moves to its place."""
        row = self._row_of.pop(slot, None)
        if row is None:
            return
        last = len(self._slot_of) - 1
        moved = self._slot_of.pop()
        if row != last:
            self._copy_row(last, row)
            self._slot_of[row] = moved
            self._row_of[moved] = row

    def copy(self, source: int, target: int) -> None:
        """Make a slot like another; it is opened if it is free."""
        (row,) = self.rows([source])
        if target not in self._row_of:
            self.add(target, int(self.frames[row]), int(self.needs[row]))
        self._copy_row(row, self._row_of[target])

    def move(self, slot: int, other: "SlotCache") -> None:
        """Move a slot to another cache."""
        (row,) = self.rows([slot])
        to = other.add(slot, int(self.frames[row]), int(self.needs[row]))
        other._copy_row(row, to, self)
        self.remove(slot)

    def tighten(self) -> None:
        """Make arrays no longer than the rows in use need."""
        rows, tokens, frames = self.shape
        _, longest, widest = self.tightest()
        self.resize((rows, min(tokens, longest), min(frames, widest)))

    def shrink(self) -> None:
        """Free what arrays hold, if it is far more than the rows in use need."""
        if not self._shrinks:
            return
        has_rows, *lengths = self.shape
        rows, *needed = self.tightest(tokens=1, frames=1)
        if any(has_rows * has > _SLACK * rows * need for has, need in zip(lengths, needed, strict=True)):
            tokens, frames = (min(has, need) for has, need in zip(lengths, needed, strict=True))
            self.resize((min(has_rows, 2 * rows), tokens, frames))

    def truncate(self, slot: int, tokens: int) -> None:
        """Keep the first tokens of a slot."""
        (row,) = self.rows([slot])
        self.lengths[row] = self.needs[row] = min(tokens, int(self.lengths[row]))

    def fill(self, row: int, at: int, arrays: Mapping[str, Any]) -> None:
        """The context of a row from a frame on, each [1, heads, frames, head_size]."""
        for name, array in arrays.items():
            self.cross[name][row, :, at : at + array.shape[2]] = array[0]

    def reserve(self, tokens: int) -> None:
        """Make room for streams of so many tokens."""
        self.resize(next(self.shapes(0, tokens, 0)))

    def append(
        self, rows: Sequence[int], places: Sequence[int], counts: Sequence[int], new: Mapping[str, Floats]
    ) -> None:
        """Add keys and values; there is room for them.

        Args:
            rows: of the cache.
            places: rows of `new` with theirs.
            counts: how many of each.
            new: by names of the cache's arrays, [places, heads, chunk, head_size].
        """
        if max(counts) == 1:
            ends = self.lengths[list(rows)]
            for name, array in new.items():
                self.past[name][rows, :, ends] = array[places, :, 0]
        else:
            for name, array in new.items():
                for row, place, count in zip(rows, places, counts, strict=True):
                    at = int(self.lengths[row])
                    self.past[name][row, :, at : at + count] = array[place, :, :count]
        self.lengths[list(rows)] += np.array(counts)

    def _copy_row(self, source: int, target: int, of: "SlotCache | None" = None) -> None:
        """Make a row like another, of this cache or another one."""
        of = of or self
        length, frames = int(of.lengths[source]), int(of.frames[source])
        for arrays, others, count in ((self.past, of.past, length), (self.cross, of.cross, frames)):
            for name, array in arrays.items():
                array[target, :, :count] = others[name][source, :, :count]
        self.lengths[target], self.frames[target], self.needs[target] = length, frames, of.needs[source]

    def _replace(self, arrays: dict[str, Any], rows: int, length: int) -> None:
        kept = min(self.count, rows)
        for name, array in arrays.items():
            made, upto = self._empty(rows, array.shape[1], array.shape[3], length), min(length, array.shape[2])
            made[:kept, :, :upto] = array[:kept, :, :upto]
            arrays[name] = made

    def _empty(self, rows: int, heads: int, size: int, length: int) -> Any:
        """Zeros: what is masked is still multiplied, by zero."""
        return self._zeros((rows, heads, length, size))

    def _long(self, length: int) -> int:
        return self._padded(length) if length else 0


def _bytes_each(arrays: Mapping[str, Any]) -> tuple[int, int]:
    """Bytes of a token or frame in all arrays, and in the largest."""
    found = [array.shape[1] * array.shape[3] * array.itemsize for array in arrays.values()]
    return sum(found), max(found, default=0)
