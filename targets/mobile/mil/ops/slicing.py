"""Slices, what is put together out of several tensors, and windows."""

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from flagsplit.targets.mobile.mil.arguments import Arguments, Operator
from flagsplit.targets.mobile.mil.types import Array


def _slices(a: Arguments, x: Array) -> tuple[slice | int, ...]:
    """What `slice_by_index` and `slice_update` select, as NumPy writes it."""
    begin, end = a.integers("begin"), a.integers("end")
    stride = a.integers("stride", [1] * x.ndim)
    if not len(begin) == len(end) == len(stride) == x.ndim or 0 in stride:
        raise a.refuse(f"begin {begin}, end {end} and stride {stride} do not fit x of shape {list(x.shape)}")
    free_begin, free_end, squeezed = (a.flags(name, x.ndim) for name in ("begin_mask", "end_mask", "squeeze_mask"))
    return tuple(
        (0 if free_begin[axis] else begin[axis])
        if squeezed[axis]
        else slice(None if free_begin[axis] else begin[axis], None if free_end[axis] else end[axis], stride[axis])
        for axis in range(x.ndim)
    )


def slice_by_index(a: Arguments) -> Array:
    """`x[begin:end:stride, …]`; masks stand for an open end, or take one element and leave out its axis."""
    x = a.tensor("x")
    return np.asarray(x[_slices(a, x)])


def slice_update(a: Arguments) -> Array:
    """`x` with the slice replaced by `update`."""
    x = a.tensor("x").copy()
    update = a.tensor("update")
    selected = _slices(a, x)
    x[selected] = update.reshape(np.shape(x[selected]))
    return x


def slice_by_size(a: Arguments) -> Array:
    """`size` elements of each axis from `begin`; -1 takes the rest."""
    x, begin, size = a.tensor("x"), a.integers("begin"), a.integers("size")
    if not len(begin) == len(size) == x.ndim:
        raise a.refuse(f"begin {begin} and size {size} do not fit x of shape {list(x.shape)}")
    starts = [start + whole if start < 0 else start for start, whole in zip(begin, x.shape, strict=True)]
    counts = [
        whole - start if count == -1 else count for start, count, whole in zip(starts, size, x.shape, strict=True)
    ]
    if any(
        start < 0 or count < 0 or start + count > whole
        for start, count, whole in zip(starts, counts, x.shape, strict=True)
    ):
        raise a.refuse(f"begin {begin} and size {size} reach outside x of shape {list(x.shape)}")
    return x[tuple(slice(start, start + count) for start, count in zip(starts, counts, strict=True))]


def concat(a: Arguments) -> Array:
    """Tensors one after another along `axis`, or element by element in turn."""
    values, axis = a.tensors("values"), a.integer("axis")
    if len({value.dtype for value in values}) > 1:
        raise a.refuse("expected values of one type")
    if values[0].ndim == 0:
        return np.stack(values)
    if not a.flag("interleave", False):
        return np.concatenate(values, axis=axis)
    axis %= values[0].ndim
    stacked = np.stack(values, axis=axis + 1)
    return stacked.reshape(*stacked.shape[:axis], -1, *stacked.shape[axis + 2 :])


def stack(a: Arguments) -> Array:
    """Tensors of one shape along a new axis."""
    values = a.tensors("values")
    if len({value.dtype for value in values}) > 1:
        raise a.refuse("expected values of one type")
    return np.stack(values, axis=a.integer("axis"))


def split(a: Arguments) -> tuple[Array, ...]:
    """`x` cut along `axis` into parts of stated sizes, or into equal ones."""
    x, axis = a.tensor("x"), a.integer("axis")
    whole = x.shape[axis]
    if a.has("split_sizes"):
        sizes = a.integers("split_sizes")
    else:
        count = a.integer("num_splits")
        if not 0 < count <= max(whole, 1) or whole % count:
            raise a.refuse(f"axis {axis} of {list(x.shape)} cannot be cut into {count} equal parts")
        sizes = [whole // count] * count
    if sum(sizes) != whole or min(sizes, default=0) < 0:
        raise a.refuse(f"parts of sizes {sizes} do not make up axis {axis} of {list(x.shape)}")
    return tuple(np.split(x, np.cumsum(sizes)[:-1], axis=axis))


def sliding_windows(a: Arguments) -> Array:
    """All windows of `size` along `axis`, `stride` apart; an axis for their elements follows it."""
    x, size, stride = a.tensor("x"), a.integer("size"), a.integer("stride", 1)
    axis = a.integer("axis") % max(x.ndim, 1)
    if stride < 1 or not 0 < size <= x.shape[axis]:
        raise a.refuse(f"windows of {size}, {stride} apart, do not fit axis {axis} of {list(x.shape)}")
    windows = np.moveaxis(sliding_window_view(x, size, axis=axis), -1, axis + 1)
    windows = windows[(*[slice(None)] * axis, slice(None, None, stride))]
    a.room(windows.shape)
    return windows


OPERATORS: Final[Mapping[str, Operator]] = {
    "concat": concat,
    "slice_by_index": slice_by_index,
    "slice_by_size": slice_by_size,
    "slice_update": slice_update,
    "sliding_windows": sliding_windows,
    "split": split,
    "stack": stack,
}
