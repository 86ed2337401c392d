"""Operators that read or write at places given by a tensor of indices.

Up to iOS 16 a negative index counts from the end. Since iOS 17 it is out of bounds, like one that is too large, and
what happens then is undefined: a program whose result would depend on that is refused.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from flagsplit.targets.mobile.mil.arguments import IOS17, Arguments, Operator
from flagsplit.targets.mobile.mil.types import Array

_UPDATES: Final[Mapping[str, Callable[..., Any] | None]] = {
    "update": None,
    "add": np.add.at,
    "sub": np.subtract.at,
    "mul": np.multiply.at,
    "div": np.divide.at,
    "max": np.maximum.at,
    "min": np.minimum.at,
}


def _checked(a: Arguments, indices: Array, size: int | Array) -> Array:
    """Indices that count from the start, all of them below `size`."""
    wide = indices.astype(np.int64)
    if a.opset < IOS17:
        wide = np.where(wide < 0, wide + size, wide)
    if wide.size and bool(np.any((wide < 0) | (wide >= size))):
        raise a.refuse(f"an index of {int(indices.min())} to {int(indices.max())} lies outside of size {size}")
    return wide


def gather(a: Arguments) -> Array:
    """Slices of `x` along an axis, by index; the first `batch_dims` axes of both go together."""
    x, axis, batch = a.tensor("x"), a.integer("axis", 0), a.integer("batch_dims", 0)
    axis += x.ndim if axis < 0 else 0
    indices = _checked(a, a.tensor("indices"), x.shape[axis])
    if not 0 <= batch <= min(axis, indices.ndim) or x.shape[:batch] != indices.shape[:batch]:
        raise a.refuse(f"indices of shape {list(indices.shape)} do not fit x {list(x.shape)} with batch_dims {batch}")
    shape = a.room((*x.shape[:axis], *indices.shape[batch:], *x.shape[axis + 1 :]))
    if batch == 0:
        return np.take(x, indices, axis=axis)
    places = itertools.product(*map(range, x.shape[:batch]))
    parts = [np.take(x[place], indices[place], axis=axis - batch) for place in places]
    return np.stack(parts).reshape(shape) if parts else np.zeros(shape, x.dtype)


def gather_along_axis(a: Arguments) -> Array:
    """Of each line along an axis, the elements that the same line of `indices` names."""
    x, axis = a.tensor("x"), a.integer("axis", 0)
    indices = _checked(a, a.tensor("indices"), x.shape[axis])
    a.room(indices.shape)
    return np.take_along_axis(x, indices, axis)


def _nd_places(a: Arguments, shape: tuple[int, ...], indices: Array, batch: int) -> tuple[Array, ...]:
    """Index arrays for the axes that the last axis of `indices` names, batch axes first."""
    depth = indices.shape[-1]
    if batch < 0 or batch + depth > len(shape) or indices.shape[:batch] != shape[:batch]:
        raise a.refuse(f"indices of shape {list(indices.shape)} do not fit {list(shape)} with batch_dims {batch}")
    checked = _checked(a, indices, np.array(shape[batch : batch + depth], np.int64))
    batches = np.meshgrid(*map(np.arange, indices.shape[:-1]), indexing="ij")[:batch]
    return (*batches, *np.moveaxis(checked, -1, 0))


def gather_nd(a: Arguments) -> Array:
    """Slices of `x`, each at the place that a row of `indices` names."""
    x, indices, batch = a.tensor("x"), a.tensor("indices"), a.integer("batch_dims", 0)
    places = _nd_places(a, x.shape, indices, batch)
    a.room((*indices.shape[:-1], *x.shape[batch + indices.shape[-1] :]))
    # No places at all name the whole of x, once for each row.
    return x[places] if places else np.broadcast_to(x, (*indices.shape[:-1], *x.shape)).copy()


def _put(a: Arguments, data: Array, places: tuple[Any, ...], updates: Array) -> Array:
    mode = a.choice("mode", tuple(_UPDATES), "add")
    result = data.copy()
    update = _UPDATES[mode]
    if update is None:
        result[places] = updates
    elif mode == "div" and data.dtype.kind in "iu":
        wide = data.astype(np.float64)
        update(wide, places, updates)
        result = np.trunc(wide).astype(data.dtype)
    else:
        update(result, places, updates)
    return result


def scatter(a: Arguments) -> Array:
    """`data` with slices along an axis replaced or changed by those of `updates`."""
    data, updates, axis = a.tensor("data"), a.tensor("updates"), a.integer("axis", 0)
    axis += data.ndim if axis < 0 else 0
    indices = _checked(a, a.tensor("indices"), data.shape[axis])
    if updates.shape != (*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :]):
        raise a.refuse(f"updates of shape {list(updates.shape)} do not fit data {list(data.shape)}")
    return _put(a, data, (*[slice(None)] * axis, indices), updates)


def scatter_along_axis(a: Arguments) -> Array:
    """`data` with elements of each line along an axis replaced or changed."""
    data, updates, axis = a.tensor("data"), a.tensor("updates"), a.integer("axis", 0)
    axis += data.ndim if axis < 0 else 0
    indices = _checked(a, a.tensor("indices"), data.shape[axis])
    if indices.shape != updates.shape or indices.ndim != data.ndim:
        raise a.refuse(f"updates of shape {list(updates.shape)} do not fit indices {list(indices.shape)}")
    places = list(np.meshgrid(*map(np.arange, indices.shape), indexing="ij"))
    places[axis] = indices
    return _put(a, data, tuple(places), updates)


def scatter_nd(a: Arguments) -> Array:
    """`data` with the slices replaced or changed that the rows of `indices` name."""
    data, indices, updates = a.tensor("data"), a.tensor("indices"), a.tensor("updates")
    places = _nd_places(a, data.shape, indices, 0)
    if updates.shape != (*indices.shape[:-1], *data.shape[indices.shape[-1] :]):
        raise a.refuse(f"updates of shape {list(updates.shape)} do not fit indices {list(indices.shape)}")
    return _put(a, data, places, updates)


OPERATORS: Final[Mapping[str, Operator]] = {
    "gather": gather,
    "gather_along_axis": gather_along_axis,
    "gather_nd": gather_nd,
    "scatter": scatter,
    "scatter_along_axis": scatter_along_axis,
    "scatter_nd": scatter_nd,
}
