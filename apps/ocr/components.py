"""Connected components of a binary mask, in NumPy alone.

A row of the mask is a sequence of runs of ink; two runs belong together when they touch, corners included. Labels
spread over that graph by hooking each root on a smaller one and then jumping pointers, so the work is a handful of
array operations whatever the number of runs. SciPy or OpenCV would bring this too, at the price of a heavy dependency.
`lines.py` builds text lines from the boxes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Components:
    """Boxes of the components, one array element each; bottom and right are exclusive, all in pixels."""

    top: Ints
    bottom: Ints
    left: Ints
    right: Ints
    area_px: Ints

    @property
    def height(self) -> Ints:
        return self.bottom - self.top

    @property
    def width(self) -> Ints:
        return self.right - self.left

    def __len__(self) -> int:
        return len(self.top)

    def take(self, keep: NDArray[Any]) -> Components:
        """Those that `keep` selects: a boolean mask, or indices in the order wanted."""
        return Components(self.top[keep], self.bottom[keep], self.left[keep], self.right[keep], self.area_px[keep])

    def by_left(self) -> Components:
        """The same, sorted by their left edge."""
        return self.take(np.argsort(self.left, kind="stable"))

    def join(self, other: Components) -> Components:
        """These, then those of `other`."""
        pairs = ((getattr(self, name), getattr(other, name)) for name in ("top", "bottom", "left", "right", "area_px"))
        return Components(*(np.concatenate(pair) for pair in pairs))


def find_components(mask: NDArray[np.bool_]) -> Components:
    """The 8-connected components of `mask` [H, W]."""
    row, start, end = _runs(mask)
    root = _roots(len(row), *_touching(row, start, end, mask.shape[1]))
    _, label = np.unique(root, return_inverse=True)
    count = int(label.max()) + 1 if len(label) else 0

    def gather(fold: np.ufunc, first: int, values: Ints) -> Ints:
        out = np.full(count, first, dtype=np.int64)
        fold.at(out, label, values)
        return out

    height, width = mask.shape
    return Components(
        top=gather(np.minimum, height, row),
        bottom=gather(np.maximum, 0, row + 1),
        left=gather(np.minimum, width, start),
        right=gather(np.maximum, 0, end),
        area_px=gather(np.add, 0, end - start),
    )


def _runs(mask: NDArray[np.bool_]) -> tuple[Ints, Ints, Ints]:
    """Row, first column and column after the last of every run of ink, in reading order."""
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    row, start = np.nonzero(edges == 1)
    return row, start, np.nonzero(edges == -1)[1]


def _touching(row: Ints, start: Ints, end: Ints, width: int) -> tuple[Ints, Ints]:
    """Index pairs of runs in neighboring rows that touch, corners included."""
    # One number per position, so that a single search over all rows finds the runs of the row below.
    stride = width + 2
    below = (row + 1) * stride
    first = np.searchsorted(row * stride + end, below + start, side="left")
    last = np.searchsorted(row * stride + start, below + end, side="right")
    counts = last - first
    upper = np.repeat(np.arange(len(row)), counts)
    offset = np.arange(len(upper)) - np.repeat(np.cumsum(counts) - counts, counts)
    return upper, np.repeat(first, counts) + offset


def _roots(count: int, one: Ints, other: Ints) -> Ints:
    """The smallest index in each one's component, over the graph with the edges (one[i], other[i])."""
    root = np.arange(count)
    while True:
        low, high = np.minimum(root[one], root[other]), np.maximum(root[one], root[other])
        if np.array_equal(low, high):
            return root
        np.minimum.at(root, high, low)
        while not np.array_equal(root, jumped := root[root]):
            root = jumped
