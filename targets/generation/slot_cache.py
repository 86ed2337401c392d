"""The keys and values of all open streams: one array for each input of the step graph, one row a stream.

Rows in use are always the first ones, so that any run of rows is a piece of memory that an engine can read in place.
Arrays are as long as the longest stream needs, and grow by steps; when a stream ends, the last row takes its place.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flagsplit.errors import InternalError

Floats = NDArray[np.float32]
Whole = NDArray[np.int64]
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
        rows: how many rows are there from the beginning.
        shrinks: whether arrays that are far too long for the only stream that is open are replaced.
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
        self.version = 0
        """Counts how often arrays were replaced."""
        self._zeros, self._padded, self._shrinks = zeros, padded, shrinks
        self.past: dict[str, Any] = {name: self._empty(rows, *form, padded(1)) for name, form in past.items()}
        self.cross: dict[str, Any] = {name: self._empty(rows, *form, padded(1)) for name, form in cross.items()}
        self._most_rows = slots
        self._row_of: dict[int, int] = {}
        self._slot_of: list[int] = []

    @property
    def nbytes(self) -> int:
        """What all arrays hold."""
        return sum(array.nbytes for array in (*self.past.values(), *self.cross.values()))

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
        return _length_of(self.past), _length_of(self.cross)

    def longest(self, without: int) -> tuple[int, int]:
        """The most tokens and frames that a row has, but for one slot."""
        rows = [row for slot, row in self._row_of.items() if slot != without]
        return int(self.lengths[rows].max(initial=1)), int(self.frames[rows].max(initial=0))

    def rows(self, slots: Sequence[int]) -> list[int]:
        """The rows of open slots.

        Raises:
            InternalError: one is not open.
        """
        try:
            return [self._row_of[slot] for slot in slots]
        except KeyError as error:
            raise InternalError(f"slot {error} has no stream; open it first") from error

    def add(self, slot: int, frames: int) -> int:
        """Give a slot a row of no tokens, whose context is to be filled in; which row."""
        if not 0 <= slot < self._most_rows or slot in self._row_of:
            raise InternalError(f"slot {slot} is open already, or there are only {self._most_rows}")
        row = len(self._slot_of)
        self._slot_of.append(slot)
        self._row_of[slot] = row
        self.lengths[row], self.frames[row] = 0, frames
        self._fit(self.cross, row + 1, int(self.frames[: row + 1].max()))
        self._fit(self.past, row + 1, int(self.lengths[: row + 1].max()))
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
            self.add(target, int(self.frames[row]))
        self._copy_row(row, self._row_of[target])

    def move(self, slot: int, other: "SlotCache") -> None:
        """Move a slot to another cache."""
        (row,) = self.rows([slot])
        length = int(self.lengths[row])
        to = other.add(slot, int(self.frames[row]))
        other.reserve(length)
        other._copy_row(row, to, self)
        self.remove(slot)

    def tighten(self) -> None:
        """Make arrays no longer than the rows in use need."""
        for arrays, lengths in ((self.past, self.lengths), (self.cross, self.frames)):
            needed = int(lengths[: self.count].max(initial=1))
            if arrays and self._padded(needed) < _length_of(arrays):
                self._replace(arrays, len(next(iter(arrays.values()))), self._padded(needed))

    def shrink(self) -> None:
        """Free what arrays hold, if it is far more than the rows in use need."""
        if not self._shrinks:
            return
        for arrays, lengths in ((self.past, self.lengths), (self.cross, self.frames)):
            if arrays:
                has_rows, _, has_length, _ = next(iter(arrays.values())).shape
                rows, length = max(1, self.count), self._padded(int(lengths[: self.count].max(initial=1)))
                if has_rows * has_length > _SLACK * rows * length:
                    self._replace(arrays, min(has_rows, 2 * rows), length)

    def truncate(self, slot: int, tokens: int) -> None:
        """Keep the first tokens of a slot."""
        (row,) = self.rows([slot])
        self.lengths[row] = min(tokens, int(self.lengths[row]))

    def fill(self, row: int, at: int, arrays: Mapping[str, Any]) -> None:
        """The context of a row from a frame on, each [1, heads, frames, head_size]."""
        for name, array in arrays.items():
            self.cross[name][row, :, at : at + array.shape[2]] = array[0]

    def reserve(self, tokens: int) -> None:
        """Make room for streams of so many tokens."""
        self._fit(self.past, len(self._slot_of), tokens, _GROWTH)

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
        self.lengths[target], self.frames[target] = length, frames

    def _fit(self, arrays: dict[str, Any], rows: int, length: int, growth: float = 1.0) -> None:
        """Replace arrays that are too small; or far too long, when the only row that is left is the first."""
        if not arrays:
            return
        has_rows, _, has_length, _ = next(iter(arrays.values())).shape
        is_long = self._shrinks and rows == 1 and has_length > 4 * self._padded(max(1, length))
        if rows <= has_rows and length <= has_length and not is_long:
            return
        made_rows = has_rows if rows <= has_rows else min(self._most_rows, max(rows, 2 * has_rows))
        made_length = self._padded(max(1, length)) if is_long else has_length
        if length > has_length:
            made_length = self._padded(max(length, int(has_length * growth)))
        self._replace(arrays, made_rows, made_length)

    def _replace(self, arrays: dict[str, Any], rows: int, length: int) -> None:
        for name, array in arrays.items():
            made = self._empty(rows, array.shape[1], array.shape[3], length)
            kept, upto = min(self.count, rows, array.shape[0]), min(length, array.shape[2])
            made[:kept, :, :upto] = array[:kept, :, :upto]
            arrays[name] = made
        self.version += 1

    def _empty(self, rows: int, heads: int, size: int, length: int) -> Any:
        """Zeros: what is masked is still multiplied, by zero."""
        return self._zeros((rows, heads, length, size))


def _length_of(arrays: Mapping[str, Any]) -> int:
    return int(next(iter(arrays.values())).shape[2]) if arrays else 0
