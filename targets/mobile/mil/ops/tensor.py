"""Operators that make tensors, or rank and pad what is in them."""

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from flagsplit.targets.mobile.mil.arguments import Arguments, Operator
from flagsplit.targets.mobile.mil.types import STORAGE, Array

_PAD_MODES: Final[Mapping[str, Any]] = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}


def band_part(a: Arguments) -> Array:
    """The innermost matrices with zeros outside of a band; a negative bound keeps all on its side."""
    x, lower, upper = a.tensor("x"), a.integer("lower", -1), a.integer("upper", -1)
    row, column = np.arange(x.shape[-2])[:, None], np.arange(x.shape[-1])
    kept = ((lower < 0) | (row - column <= lower)) & ((upper < 0) | (column - row <= upper))
    return np.where(kept, x, x.dtype.type(0))


def cumsum(a: Arguments) -> Array:
    """Running sums along an axis, from either end, with or without the element itself."""
    x, axis = a.tensor("x"), a.integer("axis", 0)
    if a.flag("reverse", False):
        x = np.flip(x, axis)
    result = np.cumsum(x, axis=axis, dtype=x.dtype)
    if a.flag("exclusive", False):
        # Shifted rather than subtracted, which would not be exact.
        shifted = np.roll(result, 1, axis)
        shifted[(*[slice(None)] * (axis % x.ndim), slice(0, 1))] = 0
        result = shifted
    return np.flip(result, axis) if a.flag("reverse", False) else result


def fill(a: Arguments) -> Array:
    """A tensor of one value."""
    shape = a.room(a.integers("shape"))
    return np.full(shape, a.number("value", 0.0), STORAGE[a.dtype("value") if a.has("value") else a.output_dtype()])


def fill_like(a: Arguments) -> Array:
    """A tensor of one value, shaped like another."""
    shape = a.room(a.tensor("ref_tensor").shape)
    return np.full(shape, a.number("value", 0.0), STORAGE[a.dtype("value") if a.has("value") else a.output_dtype()])


def range_1d(a: Arguments) -> Array:
    """Numbers from `start` to before `end`, `step` apart."""
    dtype = STORAGE[a.dtype("start")]
    read = a.integer if dtype.kind in "iu" else a.number
    start, end, step = read("start"), read("end"), read("step")
    (count,) = a.room((max(0, math.ceil((end - start) / step)),))
    return (start + step * np.arange(count)).astype(dtype)


def shape(a: Arguments) -> Array:
    """The sizes of a tensor."""
    return np.array(a.tensor("x").shape, STORAGE[a.output_dtype()])


def tile(a: Arguments) -> Array:
    """`x` repeated `reps` times along each axis."""
    x, reps = a.tensor("x"), a.integers("reps")
    if len(reps) != x.ndim or min(reps, default=0) < 0:
        raise a.refuse(f"expected {x.ndim} repetitions of 0 and more; it has {reps}")
    a.room([size * rep for size, rep in zip(x.shape, reps, strict=True)])
    return np.tile(x, reps)


def pad(a: Arguments) -> Array:
    """The last axes padded by a value, by reflection, or by repeating the edge."""
    x, amounts = a.tensor("x"), a.integers("pad")
    mode = a.choice("mode", tuple(_PAD_MODES), "constant")
    axes = len(amounts) // 2
    if len(amounts) % 2 or axes > x.ndim or min(amounts, default=0) < 0:
        raise a.refuse(f"pads {amounts} do not fit x of shape {list(x.shape)}")
    widths = [(0, 0)] * (x.ndim - axes) + [(amounts[2 * i], amounts[2 * i + 1]) for i in range(axes)]
    a.room([size + sum(width) for size, width in zip(x.shape, widths, strict=True)])
    if mode == "constant":
        return np.pad(x, widths, constant_values=x.dtype.type(a.number("constant_val", 0.0)))
    if any(max(width) > size - (mode == "reflect") for width, size in zip(widths, x.shape, strict=True) if any(width)):
        raise a.refuse(f"{mode} cannot pad x of shape {list(x.shape)} by {amounts}")
    return np.pad(x, widths, mode=_PAD_MODES[mode])


def one_hot(a: Arguments) -> Array:
    """`on_value` where the index along the new axis is the one given, else `off_value`."""
    indices, size = a.tensor("indices"), a.integer("one_hot_vector_size")
    axis = a.integer("axis", -1) % (indices.ndim + 1)
    dtype = STORAGE[a.output_dtype()]
    result_shape = a.room((*indices.shape[:axis], size, *indices.shape[axis:]))
    wanted = np.arange(size).reshape(-1, *[1] * (indices.ndim - axis))
    chosen = np.expand_dims(indices, axis) == wanted
    values = dtype.type(a.number("on_value", 1)), dtype.type(a.number("off_value", 0))
    return np.where(chosen, *values).reshape(result_shape)


def non_zero(a: Arguments) -> Array:
    """The index of each element that is not 0, one a row."""
    return np.argwhere(a.tensor("x")).astype(np.int32)


def _order(x: Array, axis: int, *, ascending: bool) -> Array:
    """The indices that sort `x`; of equal elements the first comes first."""
    if ascending:
        return np.argsort(x, axis=axis, kind="stable")
    # Sorted backwards and turned around, so that equal ones keep their order.
    backwards = np.argsort(np.flip(x, axis), axis=axis, kind="stable")
    return x.shape[axis] - 1 - np.flip(backwards, axis)


def argsort(a: Arguments) -> Array:
    """The indices that sort `x` along an axis, the largest first unless `ascending`."""
    x = a.tensor("x")
    return _order(x, a.integer("axis", -1), ascending=a.flag("ascending", False)).astype(np.int32)


def topk(a: Arguments) -> Array | tuple[Array, ...]:
    """The `k` largest, or smallest, elements along an axis and where they are."""
    x, k, axis = a.tensor("x"), a.integer("k", 1), a.integer("axis", -1)
    count = x.shape[axis] if k == -1 else k
    if not 0 <= count <= x.shape[axis]:
        raise a.refuse(f"expected k of at most {x.shape[axis]}; it is {k}")
    order = np.take(_order(x, axis, ascending=a.flag("ascending", False)), np.arange(count), axis=axis)
    values = np.take_along_axis(x, order, axis)
    if not a.flag("return_indices", True):
        return values
    dtype = a.choice("output_indices_dtype", ("int32", "uint16"), "int32")
    return values, order.astype(STORAGE[dtype])


OPERATORS: Final[Mapping[str, Operator]] = {
    "argsort": argsort,
    "band_part": band_part,
    "cumsum": cumsum,
    "fill": fill,
    "fill_like": fill_like,
    "non_zero": non_zero,
    "one_hot": one_hot,
    "pad": pad,
    "range_1d": range_1d,
    "shape": shape,
    "tile": tile,
    "topk": topk,
}
