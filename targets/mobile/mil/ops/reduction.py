"""Reductions over one or more axes."""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from flagsplit.targets.mobile.mil.arguments import Arguments, Operator
from flagsplit.targets.mobile.mil.types import STORAGE, Array

Axes = tuple[int, ...] | None


def _over_axes(function: Callable[[Array, Axes], Array]) -> Operator:
    """An operator out of a function that keeps the axes it reduces."""

    def run(a: Arguments) -> Array:
        x = a.tensor("x")
        axes = tuple(a.integers("axes")) if a.has("axes") else None
        result = np.asarray(function(x, axes)).astype(x.dtype, copy=False)
        return result if a.flag("keep_dims", False) else np.squeeze(result, axis=axes)

    return run


def _index(function: Callable[[Array, int], Array]) -> Operator:
    def run(a: Arguments) -> Array:
        x, axis = a.tensor("x"), a.integer("axis", -1)
        dtype = a.choice("output_dtype", ("int32", "uint16"), "int32")
        result = np.asarray(function(x, axis)).astype(STORAGE[dtype])
        return np.expand_dims(result, axis) if a.flag("keep_dims", False) else result

    return run


def _log_sum_exp(x: Array, axes: Axes) -> Array:
    most = np.max(x, axis=axes, keepdims=True)
    result: Array = np.log(np.sum(np.exp(x - most), axis=axes, keepdims=True)) + most
    return result


OPERATORS: Final[Mapping[str, Operator]] = {
    "reduce_argmax": _index(lambda x, axis: np.argmax(x, axis=axis)),
    "reduce_argmin": _index(lambda x, axis: np.argmin(x, axis=axis)),
    "reduce_l1_norm": _over_axes(lambda x, axes: np.sum(np.abs(x), axis=axes, keepdims=True)),
    "reduce_l2_norm": _over_axes(lambda x, axes: np.sqrt(np.sum(np.square(x), axis=axes, keepdims=True))),
    "reduce_log_sum": _over_axes(lambda x, axes: np.log(np.sum(x, axis=axes, keepdims=True))),
    "reduce_log_sum_exp": _over_axes(_log_sum_exp),
    "reduce_max": _over_axes(lambda x, axes: np.max(x, axis=axes, keepdims=True)),
    "reduce_mean": _over_axes(lambda x, axes: np.mean(x, axis=axes, keepdims=True)),
    "reduce_min": _over_axes(lambda x, axes: np.min(x, axis=axes, keepdims=True)),
    "reduce_prod": _over_axes(lambda x, axes: np.prod(x, axis=axes, keepdims=True)),
    "reduce_sum": _over_axes(lambda x, axes: np.sum(x, axis=axes, keepdims=True)),
    "reduce_sum_square": _over_axes(lambda x, axes: np.sum(np.square(x), axis=axes, keepdims=True)),
}
