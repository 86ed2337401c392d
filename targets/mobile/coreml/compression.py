"""Weights stored in 8 or 4 bits. What they stand for is computed when the package is loaded, or as it runs.

- int8: symmetric, one scale for each output channel.
- int4: symmetric, one scale for each 32 weights of an output channel, the best of a few; 8 bits where channels do not
  divide so.
- lut4: 16 values for each 16 output channels or fewer, the best ones by the mean square, and 4 bits to choose among
  them.

Only large weights of products, convolutions, look-ups and recurrent layers are stored so. The same weights always give
the same bits.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flagsplit.errors import InternalError
from flagsplit.targets.mobile.coreml.sdk import quiet

_LEAST_ELEMENTS = 2048
_BLOCK = 32
_GROUP = 16
_LEVELS = 16
_ROUNDS = 24
_NORMAL = np.array([0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733])
"""The upper half of the 16 levels with the least mean square error for normal numbers (Max, 1960)."""
_SHARES = (1.0, 0.94, 0.88, 0.82, 0.76)
"""Of the largest weight of a block, what the scale reaches to: cutting off the few that are large spares all others."""

_Weight = NDArray[np.floating[Any]]


def compress(program: Any, how: str) -> None:
    """Store the large weights of a program in fewer bits, in place.

    Args:
        program: of coremltools, its passes done.
        how: "full", which changes nothing, "int8", "int4" or "lut4".
    """
    if how == "full":
        return
    replace = {"int8": _int8, "int4": _int4, "lut4": _lut4}.get(how)
    if replace is None:
        raise InternalError(f"no way of storing weights is called {how!r}")
    for function in program.functions.values():
        with quiet(), function:
            for operation, out_axis, in_axis in list(_weights(function)):
                _replace(function, operation, replace(operation, out_axis, in_axis))


def _weights(function: Any) -> Iterator[tuple[Any, int, int]]:
    """The constants to compress, with the axes of their output and input channels."""
    for operation in function.operations:
        if operation.op_type != "const" or not isinstance(operation.outputs[0].val, np.ndarray):
            continue
        var = operation.outputs[0]
        if var.val.dtype.kind != "f" or var.val.size < _LEAST_ELEMENTS or var.val.ndim < 2:
            continue
        axes = {_axes(user, var) for user in var.child_ops}
        found = axes.pop() if len(axes) == 1 and var not in function.outputs else None
        if found is not None:
            yield operation, *found


def _axes(user: Any, var: Any) -> tuple[int, int] | None:
    """Axes of output and input channels of a weight where an operation reads it; None if it is no weight there."""
    rank = var.val.ndim
    reads = [name for name, each in user.inputs.items() if each is var]
    if len(reads) != 1:
        return None
    match (user.op_type, reads[0]):
        case (("conv" | "linear"), "weight") | (("lstm" | "gru"), ("weight_ih" | "weight_hh")):
            return 0, 1
        case ("conv_transpose", "weight"):
            return 1, 0
        case ("matmul", "y"):
            return (rank - 2, rank - 1) if user.transpose_y.val else (rank - 1, rank - 2)
        case ("matmul", "x"):
            return (rank - 1, rank - 2) if user.transpose_x.val else (rank - 2, rank - 1)
        case ("gather", "x") if user.axis.val == 0:
            return 0, 1
        case ("gather_nd", "x") if user.indices.shape[-1] == 1 and user.batch_dims.val == 0:
            return 0, 1
    return None


def _replace(function: Any, operation: Any, new: Any) -> None:
    function.replace_uses_of_var_after_op(
        anchor_op=new.op, old_var=operation.outputs[0], new_var=new, force_replace=True
    )
    function.remove_ops([operation])


def _int8(operation: Any, out_axis: int, _: int) -> Any:
    weight = operation.outputs[0].val
    others = tuple(axis for axis in range(weight.ndim) if axis != out_axis)
    scale = _scale(np.abs(weight).max(axis=others, keepdims=True), 127, weight.dtype)
    data = np.clip(np.rint(weight.astype(np.float32) / scale.astype(np.float32)), -127, 127).astype(np.int8)
    return _scaled(operation, data, scale)


def _int4(operation: Any, out_axis: int, in_axis: int) -> Any:
    from coremltools.converters.mil.mil.types.type_mapping import np_int4_dtype

    weight = operation.outputs[0].val
    if weight.shape[in_axis] % _BLOCK:
        return _int8(operation, out_axis, in_axis)
    blocks = list(weight.shape)
    blocks[in_axis : in_axis + 1] = [weight.shape[in_axis] // _BLOCK, _BLOCK]
    kept = (in_axis, out_axis if out_axis < in_axis else out_axis + 1)
    others = tuple(axis for axis in range(len(blocks)) if axis not in kept)
    parts = weight.reshape(blocks)
    scale: _Weight = np.ones([1] * len(blocks), np.float32)
    least: _Weight = np.full([1] * len(blocks), np.inf, np.float32)
    for share in _SHARES:
        tried = _scale(np.abs(parts).max(axis=others, keepdims=True) * share, 7, weight.dtype).astype(np.float32)
        error = ((np.clip(np.rint(parts / tried), -7, 7) * tried - parts) ** 2).sum(axis=others, keepdims=True)
        better = error < least
        scale, least = np.where(better, tried, scale), np.minimum(error, least)
    data = np.clip(np.rint(parts / scale), -7, 7).astype(np.int8).reshape(weight.shape)
    return _scaled(operation, data.astype(np_int4_dtype), scale.squeeze(in_axis + 1).astype(weight.dtype))


def _scale(largest: _Weight, levels: int, dtype: np.dtype[Any]) -> _Weight:
    scale = (largest.astype(np.float32) / levels).astype(dtype)
    return np.asarray(np.where(scale > 0, scale, np.ones_like(scale)), dtype)


def _scaled(operation: Any, data: NDArray[Any], scale: _Weight) -> Any:
    from coremltools.converters.mil import Builder

    return Builder.constexpr_blockwise_shift_scale(
        data=data, scale=scale, name=f"{operation.name}_stored", before_op=operation
    )


def _lut4(operation: Any, out_axis: int, _: int) -> Any:
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.mil.types.type_mapping import np_uint4_dtype

    weight = operation.outputs[0].val
    channels = np.moveaxis(weight, out_axis, 0)
    groups = channels.shape[0] // next(size for size in range(_GROUP, 0, -1) if channels.shape[0] % size == 0)
    rows = channels.reshape(groups, -1).astype(np.float32)
    tables = np.stack([_best_levels(row) for row in rows])
    chosen = np.stack([np.searchsorted(_borders(table), row) for table, row in zip(tables, rows, strict=True)])
    indices = np.moveaxis(chosen.reshape(channels.shape), 0, out_axis).astype(np.uint8)
    shape = [1] * weight.ndim
    shape[out_axis] = groups
    return Builder.constexpr_lut_to_dense(
        indices=np.ascontiguousarray(indices).astype(np_uint4_dtype),
        lut=tables.astype(weight.dtype).reshape(*shape, _LEVELS, 1),
        name=f"{operation.name}_stored",
        before_op=operation,
    )


def _borders(levels: _Weight) -> _Weight:
    return np.asarray((levels[1:] + levels[:-1]) / 2, levels.dtype)


def _best_levels(row: NDArray[np.float32]) -> NDArray[np.float32]:
    """Lloyd's algorithm in one dimension, on sorted weights, begun at what is best for normal ones."""
    ordered = np.sort(row).astype(np.float64)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    levels = ordered.mean() + ordered.std() * np.concatenate([-_NORMAL[::-1], _NORMAL])
    for _ in range(_ROUNDS):
        ends = np.searchsorted(ordered, _borders(levels))
        ends = np.concatenate([[0], ends, [len(ordered)]])
        counts = np.diff(ends)
        levels = np.where(counts > 0, np.diff(sums[ends]) / np.maximum(counts, 1), levels)
    return np.asarray(np.sort(levels), np.float32)
