"""Find the lines of text on a scanned page, the classical way: no network, no training, NumPy alone.

Ink falls into connected components; those of a letter's height are chained from left to right by the rows they share.
Chained rather than split where a row sum of ink has its valleys, because a page that is bowed or a few degrees askew
has no empty rows between its lines. The way a line bends is kept, so that it can be cut out straight. Specks, printed
rules and pictures are dropped. Columns are told apart by their gap, but the order is by rows, then from left to right.
Ink is told from paper in `ink.py`; a line is read in `recogniser.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from flagsplit.apps.ocr.components import Components, Ints, find_components
from flagsplit.apps.ocr.ink import ink_mask
from flagsplit.errors import InputError

# A page of a newspaper has some twenty thousand; chaining more, which can only be noise, would take minutes.
LETTERS_MAX: Final = 30_000
_SPECK_AREA_PX: Final = 4
# Multiples of the typical letter height, which is measured on the page.
_LETTER_MIN: Final = 0.45
_LETTER_MAX: Final = 6.0
_LONE_MIN: Final = 0.65
_GAP_MAX: Final = 2.5
_RULE_WIDTH_MIN: Final = 2.0
_RULE_THICKNESS_MAX: Final = 0.3
_DESCENDER_MIN: Final = 0.2
# Share of its rows that a letter has in common with the line it continues.
_OVERLAP_MIN: Final = 0.4
# How far back the rows of a line's end are taken from: enough to even out "g" and "l", little enough to follow a slope.
_RECENT: Final = 3.0
_RECENT_MAX: Final = 8


@dataclass(frozen=True, order=True)
class LineBox:
    """One line of text, in pixels; `bottom` and `right` are exclusive.

    Relative to its middle, the line lies `tilt_px · u + bow_px · u²` lower at `u`, which runs from -1 at `left` to 1 at
    `right`. The box holds the whole of it, so a line that bends has a box taller than its letters.
    """

    top: int
    bottom: int
    left: int
    right: int
    tilt_px: float = 0.0
    bow_px: float = 0.0

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def letter_height_px(self) -> float:
        """From the highest top to the lowest foot, the bend taken out."""
        low, high = self.drop_range_px
        return self.height - (high - low)

    @property
    def start_px(self) -> float:
        """The row on which the line is centered at its left end."""
        low, high = self.drop_range_px
        return (self.top - low + self.bottom - high) / 2 - self.tilt_px + self.bow_px

    @property
    def drop_range_px(self) -> tuple[float, float]:
        """The least and the most that `drop_px` gives within the box."""
        drop = self.drop_px(np.arange(self.left, self.right, dtype=np.float64))
        return float(drop.min()), float(drop.max())

    def drop_px(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """How much lower than in its middle the line lies at each column `x`."""
        u = 2.0 * (x - self.left) / max(self.width, 1) - 1.0
        drop: NDArray[np.float64] = self.tilt_px * u + self.bow_px * u * u
        return drop


@dataclass
class _Chain:
    """The letters of one line so far, as indices, and the rows that its end takes."""

    members: list[int]
    top: float
    bottom: float
    right: int

    def overlap_px(self, top: float, bottom: float) -> float:
        return min(bottom, self.bottom) - max(top, self.top)

    def takes(self, top: float, bottom: float) -> bool:
        return self.overlap_px(top, bottom) >= _OVERLAP_MIN * min(bottom - top, self.bottom - self.top)

    def add(self, index: int, letters: Components, typical_px: float) -> None:
        self.members.append(index)
        self.right = max(self.right, int(letters.right[index]))
        recent = [i for i in self.members[-_RECENT_MAX:] if letters.right[i] > self.right - _RECENT * typical_px]
        self.top, self.bottom = float(letters.top[recent].mean()), float(letters.bottom[recent].mean())


def find_lines(gray: NDArray[np.uint8]) -> tuple[LineBox, ...]:
    """The lines of text on `gray` [H, W], dark on light or light on dark; none on a blank page.

    Raises:
        InputError: not a two-dimensional uint8 image, too large a one, or nothing but crumbs.
    """
    found = find_components(ink_mask(gray))
    found = found.take(found.area_px >= _SPECK_AREA_PX).by_left()
    if not len(found):
        return ()
    typical_px = _typical_height_px(found)
    letters, marks = _letters_and_marks(found, typical_px)
    if len(letters) > LETTERS_MAX:
        raise InputError(f"expected a page of at most {LETTERS_MAX:,} letters; got {len(letters):,} pieces of ink")
    chains = [letters.take(np.array(chain)) for chain in _chains(letters, typical_px)]
    lines: list[Components] = []
    for chain in chains:
        # A quotation mark reaches too high to continue its line; alone it is none either.
        if len(chain) == 1 and chain.height[0] < _LONE_MIN * typical_px:
            marks = marks.join(chain)
        else:
            lines.append(chain)
    marks = marks.by_left()
    return _reading_order([_line_box(line, marks, typical_px, gray.shape) for line in lines])


def _typical_height_px(found: Components) -> float:
    """Median height, each component counting by its height, so that dots and crumbs hardly count."""
    heights = np.sort(found.height)
    weight = heights.cumsum()
    return float(heights[np.searchsorted(weight, weight[-1] / 2)])


def _letters_and_marks(found: Components, typical_px: float) -> tuple[Components, Components]:
    """Letters (or words of joined letters), which make lines, and marks (dots, hyphens), which can only join one."""
    thickness_px = found.area_px / found.width
    rule = (found.width > _RULE_WIDTH_MIN * typical_px) & (thickness_px < _RULE_THICKNESS_MAX * typical_px)
    picture = found.height > _LETTER_MAX * typical_px
    small = found.height < _LETTER_MIN * typical_px
    return found.take(~(rule | picture | small)), found.take(small & ~rule)


def _chains(letters: Components, typical_px: float) -> list[list[int]]:
    """Indices of the letters of each line, from left to right; `letters` come sorted by their left edge."""
    done: list[_Chain] = []
    growing: list[_Chain] = []
    for index in range(len(letters)):
        top, bottom, left = float(letters.top[index]), float(letters.bottom[index]), int(letters.left[index])
        size_px = max(bottom - top, typical_px)
        near = [chain for chain in growing if left - chain.right <= _GAP_MAX * max(size_px, chain.bottom - chain.top)]
        best = max(near, key=lambda chain: chain.overlap_px(top, bottom), default=None)
        if best is not None and best.takes(top, bottom):
            best.add(index, letters, typical_px)
            continue
        # No later letter starts further left, so a chain that the largest letter could not reach is complete.
        far_px = _GAP_MAX * _LETTER_MAX * typical_px
        done += [chain for chain in growing if left - chain.right > far_px]
        growing = [chain for chain in growing if left - chain.right <= far_px]
        growing.append(_Chain([index], top, bottom, int(letters.right[index])))
    return [chain.members for chain in done + growing]


def _line_box(letters: Components, marks: Components, typical_px: float, page_shape: tuple[int, ...]) -> LineBox:
    """The box around `letters` of one line and those `marks` that belong to it, cut off at the edge of the page."""
    left, right = int(letters.left.min()), int(letters.right.max())
    line = LineBox(0, 0, left, right, *_bend(letters, left, right, typical_px))
    own = marks.take(_own_marks(line, *_extent(line, letters), marks, typical_px))
    parts = letters.join(own)
    left, right = int(parts.left.min()), int(parts.right.max())
    line = LineBox(0, 0, left, right, *_bend(letters, left, right, typical_px))
    top, bottom = _extent(line, parts)
    low, high = line.drop_range_px
    return replace(line, top=max(math.floor(top + low), 0), bottom=min(math.ceil(bottom + high), page_shape[0]))


def _own_marks(line: LineBox, top: float, bottom: float, marks: Components, typical_px: float) -> Ints:
    """Indices of the marks in `line`, whose letters reach from `top` to `bottom` where it is not bent."""
    center = (marks.top + marks.bottom) / 2 - line.drop_px((marks.left + marks.right) / 2)
    level = (center > top - 0.3 * typical_px) & (center < bottom + 0.2 * typical_px)
    own: list[int] = []
    right = line.right
    # Sorted by their left edge, so that each dot of an ellipsis carries on from the one before.
    for index in np.nonzero(level & (marks.left >= line.left - typical_px))[0]:
        if marks.left[index] <= right + 0.8 * typical_px:
            right = max(right, int(marks.right[index]))
            own.append(int(index))
    return np.array(own, dtype=np.int64)


def _bend(letters: Components, left: int, right: int, typical_px: float) -> tuple[float, float]:
    """Tilt and bow, fitted to the feet of the letters; nil where there are too few to tell."""
    width = right - left
    degree = 2 if len(letters) >= 12 and width > 10 * typical_px else 1
    feet = letters.bottom.astype(np.float64)
    u = (letters.left + letters.right - 2.0 * left) / width - 1.0
    keep = np.full(len(letters), width > 4 * typical_px)
    tilt, bow = 0.0, 0.0
    # Descenders hang below the line of feet: fit, leave them out, fit again.
    for _ in range(3):
        if keep.sum() < degree + 3:
            return 0.0, 0.0
        powers = np.vander(u, degree + 1, increasing=True)
        fitted = np.linalg.lstsq(powers[keep], feet[keep])[0]
        tilt, bow = float(fitted[1]), float(fitted[2]) if degree == 2 else 0.0
        residual = feet - powers @ fitted
        keep = np.abs(residual - np.median(residual)) < _DESCENDER_MIN * typical_px
    return tilt, bow


def _extent(line: LineBox, parts: Components) -> tuple[float, float]:
    """Top and bottom of `parts`, the bend of the line taken out."""
    drop = line.drop_px((parts.left + parts.right) / 2)
    return float((parts.top - drop).min()), float((parts.bottom - drop).max())


def _reading_order(lines: list[LineBox]) -> tuple[LineBox, ...]:
    """Top to bottom; pieces of one row, such as the cells of a table, from left to right."""
    rows: list[list[LineBox]] = []
    for line in sorted(lines, key=lambda box: (box.start_px, box.left)):
        if rows and _same_row(rows[-1], line):
            rows[-1].append(line)
        else:
            rows.append([line])
    return tuple(line for row in rows for line in sorted(row, key=lambda box: box.left))


def _same_row(row: list[LineBox], line: LineBox) -> bool:
    apart = all(line.left >= other.right or line.right <= other.left for other in row)
    return apart and line.start_px - row[0].start_px < 0.5 * row[0].letter_height_px
