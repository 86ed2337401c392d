"""Pools over one to three spatial axes."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from flagsplit.targets.mobile.mil.arguments import Arguments, Operator
from flagsplit.targets.mobile.mil.ops.windows import Window, padded, read_window, shifted
from flagsplit.targets.mobile.mil.types import Array


def max_pool(a: Arguments) -> Array:
    """The largest element of each window; padding never is."""
    x, window, places = _prepare(a)
    x = padded(a, x, window.pads, -np.inf)
    result = np.full((*x.shape[:2], *places), -np.inf, x.dtype)
    for offset in itertools.product(*map(range, window.kernel)):
        np.maximum(result, shifted(x, offset, window, places), out=result)
    return result


def avg_pool(a: Arguments) -> Array:
    """The mean of each window, with or without the padding that it covers."""
    x, window, places = _prepare(a)
    excluded = a.flag("exclude_padding_from_average", False)
    counts = _counts(a, x.shape[2:], window, places, excluded)
    return _sums(a, x, window, places) / counts


def l2_pool(a: Arguments) -> Array:
    """The root of the sum of the squares of each window."""
    x, window, places = _prepare(a)
    return np.sqrt(_sums(a, np.square(x), window, places))


def _prepare(a: Arguments) -> tuple[Array, Window, tuple[int, ...]]:
    """The input, its window with the padding that ceil mode adds at the ends, and the sizes of the output."""
    x = a.tensor("x")
    window = read_window(a, x, a.integers("kernel_sizes"))
    places = window.sizes(x.shape[2:])
    if a.flag("ceil_mode", False):
        places = tuple(
            _ceil_places(size, pads, kernel, stride)
            for size, pads, kernel, stride in zip(x.shape[2:], window.pads, window.kernel, window.strides, strict=True)
        )
        if any(
            (count - 1) * stride >= size + before
            for count, stride, size, (before, _) in zip(places, window.strides, x.shape[2:], window.pads, strict=True)
        ):
            raise a.refuse("its last window lies beyond x, and what that gives is not specified")
        pads = tuple(
            (before, max(after, (count - 1) * stride + kernel - size - before))
            for count, size, (before, after), kernel, stride in zip(
                places, x.shape[2:], window.pads, window.kernel, window.strides, strict=True
            )
        )
        window = Window(window.kernel, window.strides, window.dilations, pads)
    a.room((*x.shape[:2], *places))
    # Loops run over the elements of a window: none may be larger than what it slides over.
    if any(reach > size + sum(pads) for reach, size, pads in zip(window.reach, x.shape[2:], window.pads, strict=True)):
        raise a.refuse(f"a window of {list(window.kernel)} does not fit x of shape {list(x.shape)}")
    return x, window, places


def _ceil_places(size: int, pads: tuple[int, int], kernel: int, stride: int) -> int:
    places = math.ceil((size + sum(pads) - kernel) / stride) + 1
    # The last window must start inside the input or the padding before it.
    return places - 1 if sum(pads) > 0 and (places - 1) * stride >= size + pads[0] else places


def _sums(a: Arguments, x: Array, window: Window, places: Sequence[int]) -> Array:
    x = padded(a, x, window.pads)
    result = np.zeros((*x.shape[:2], *places), x.dtype)
    for offset in itertools.product(*map(range, window.kernel)):
        result += shifted(x, offset, window, places)
    return result


def _counts(
    a: Arguments, spatial: Sequence[int], window: Window, places: Sequence[int], excluded: bool
) -> Array | np.float32:
    """By what each sum is divided: the elements of the window that are in the input, or in its stated padding."""
    stated = read_window(a, a.tensor("x"), window.kernel).pads
    counts: Array = np.ones((), np.float32)
    for axis, (size, kernel, stride, count) in enumerate(
        zip(spatial, window.kernel, window.strides, places, strict=True)
    ):
        before, after = stated[axis]
        starts = np.arange(count) * stride - before
        first, last = (0, size) if excluded else (-before, size + after)
        inside = np.minimum(starts + kernel, last) - np.maximum(starts, first)
        shape = [1] * len(spatial)
        shape[axis] = count
        counts = counts * np.maximum(inside, 1).astype(np.float32).reshape(shape)
    return counts


OPERATORS: Final[Mapping[str, Operator]] = {"avg_pool": avg_pool, "l2_pool": l2_pool, "max_pool": max_pool}
