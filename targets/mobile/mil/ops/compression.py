"""Quantized values, and weights that are stored compressed."""

import math
from collections.abc import Mapping
from typing import Final

import numpy as np

from flagsplit.targets.mobile.mil.arguments import IOS18, Arguments, Operator
from flagsplit.targets.mobile.mil.constants import unpack
from flagsplit.targets.mobile.mil.ops.elementwise import CAST_TYPES
from flagsplit.targets.mobile.mil.types import STORAGE, SUB_BYTE_BITS, Array, check_room


def _along(a: Arguments, name: str, data: Array) -> Array:
    """A scalar, or a vector along `axis` of `data`, of a shape that broadcasts."""
    value = a.tensor(name)
    if value.ndim == 0 or value.size == 1:
        return value.reshape(())
    axis = a.integer("axis")
    if value.ndim != 1 or not -data.ndim <= axis < data.ndim or value.size != data.shape[axis]:
        raise a.refuse(f"{name} of shape {list(value.shape)} does not fit axis {axis} of {list(data.shape)}")
    shape = [1] * data.ndim
    shape[axis] = -1
    return value.reshape(shape)


def quantize(a: Arguments) -> Array:
    """`clip(round(input / scale) + zero_point)`; halves are rounded to even."""
    data = a.tensor("input")
    target = a.choice("output_dtype", ("int8", "uint8"))
    limits = np.iinfo(target)
    result = np.round(data / _along(a, "scale", data))
    if a.has("zero_point"):
        result = result + _along(a, "zero_point", data).astype(np.float32)
    return np.clip(result, limits.min, limits.max).astype(STORAGE[target])


def dequantize(a: Arguments) -> Array:
    """`scale * (input - zero_point)`."""
    data = a.tensor("input")
    return _shifted(a, data, "zero_point") * _along(a, "scale", data)


def constexpr_affine_dequantize(a: Arguments) -> Array:
    """`scale * (quantized_data - zero_point)`."""
    data = a.tensor("quantized_data")
    return _shifted(a, data, "zero_point") * _along(a, "scale", data)


def _shifted(a: Arguments, data: Array, name: str) -> Array:
    wide = data.astype(np.float32)
    return wide - _along(a, name, data).astype(np.float32) if a.has(name) else wide


def constexpr_cast(a: Arguments) -> Array:
    """`source_val` of another type."""
    return a.tensor("source_val").astype(STORAGE[CAST_TYPES[a.choice("output_dtype", ("fp16", "fp32"))]])


def _stated_shape(a: Arguments) -> tuple[int, ...]:
    return a.room(a.integers("shape"))


def constexpr_lut_to_dense(a: Arguments) -> Array:
    """Values looked up in a table, or vectors of them; tables may differ from block to block."""
    if a.opset >= IOS18:
        return _looked_up(a, a.tensor("indices"), "indices")
    lut, shape = a.tensor("lut"), _stated_shape(a)
    bits = (lut.size - 1).bit_length()
    count = math.prod(shape)
    packed = a.tensor("indices")
    if lut.ndim != 1 or lut.size != 1 << bits or bits > 8 or packed.size != -(-count * bits // 8):
        raise a.refuse(f"{packed.size} bytes of indices do not fit a table of {lut.size} and the shape {list(shape)}")
    return lut[unpack(packed.reshape(-1), bits, count, signed=False)].reshape(shape)


def _looked_up(a: Arguments, indices: Array, name: str) -> Array:
    lut = a.tensor("lut")
    if lut.ndim != indices.ndim + 2 or 0 in lut.shape:
        raise a.refuse(f"a table of shape {list(lut.shape)} does not fit indices of shape {list(indices.shape)}")
    bits = SUB_BYTE_BITS.get(a.dtype(name), 8)
    if lut.shape[-2] != 1 << bits:
        raise a.refuse(f"a table of {lut.shape[-2]} values does not fit indices of {bits} bits")
    vector = lut.shape[-1]
    axis = a.integer("vector_axis", 0) % indices.ndim if vector > 1 else 0
    check_room((*indices.shape, vector), a.dtype("lut"), a.where)
    places = [
        at // (size // tables)
        for at, size, tables in zip(
            np.meshgrid(*map(np.arange, indices.shape), indexing="ij", sparse=True),
            _divisible(a, indices.shape, lut.shape[:-2]),
            lut.shape[:-2],
            strict=True,
        )
    ]
    values: Array = lut[(*places, indices)]
    moved = np.moveaxis(values, -1, axis + 1)
    return moved.reshape(*indices.shape[:axis], indices.shape[axis] * vector, *indices.shape[axis + 1 :])


def _divisible(a: Arguments, shape: tuple[int, ...], blocks: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) != len(blocks) or any(not count or size % count for size, count in zip(shape, blocks, strict=True)):
        raise a.refuse(f"the shape {list(shape)} cannot be cut into {list(blocks)} blocks")
    return shape


def constexpr_sparse_to_dense(a: Arguments) -> Array:
    """Values where the mask has a bit, 0 elsewhere."""
    if a.opset >= IOS18:
        return _dense(a, a.tensor("mask"), a.tensor("nonzero_data"))
    shape = _stated_shape(a)
    packed, count = a.tensor("mask").reshape(-1), math.prod(shape)
    if packed.size != -(-count // 8):
        raise a.refuse(f"{packed.size} bytes of mask do not fit the shape {list(shape)}")
    return _dense(a, unpack(packed, 1, count, signed=False).reshape(shape), a.tensor("nonzero_data"))


def _dense(a: Arguments, mask: Array, values: Array) -> Array:
    if np.count_nonzero(mask) != values.size or values.ndim != 1:
        raise a.refuse(f"{values.size} values do not fit a mask with {np.count_nonzero(mask)} bits")
    result = np.zeros(mask.shape, values.dtype)
    result[mask != 0] = values
    return result


def constexpr_blockwise_shift_scale(a: Arguments) -> Array:
    """`scale * (data - offset)`, each scale and offset for a block."""
    return _shift_scaled(a, a.tensor("data"))


def _shift_scaled(a: Arguments, data: Array) -> Array:
    wide = data.astype(np.float32)
    if a.has("offset"):
        wide = wide - _repeated(a, "offset", data.shape).astype(np.float32)
    return wide * _repeated(a, "scale", data.shape)


def _repeated(a: Arguments, name: str, shape: tuple[int, ...]) -> Array:
    value = a.tensor(name)
    _divisible(a, shape, value.shape)
    for axis, size in enumerate(shape):
        value = np.repeat(value, size // value.shape[axis], axis)
    return value


def constexpr_lut_to_sparse(a: Arguments) -> tuple[Array, Array]:
    """A mask and the values of its bits, looked up in a table."""
    mask = a.tensor("indices_mask")
    dense = _looked_up(a, _dense(a, mask, a.tensor("indices_nonzero_data")), "indices_nonzero_data")
    vector = a.tensor("lut").shape[-1]
    if vector > 1:
        mask = np.repeat(mask, vector, a.integer("vector_axis", 0))
    return mask, dense[mask != 0]


def constexpr_sparse_blockwise_shift_scale(a: Arguments) -> tuple[Array, Array]:
    """A mask and the values of its bits, shifted and scaled."""
    mask = a.tensor("data_mask")
    return mask, _shift_scaled(a, _dense(a, mask, a.tensor("nonzero_data")))[mask != 0]


OPERATORS: Final[Mapping[str, Operator]] = {
    "constexpr_affine_dequantize": constexpr_affine_dequantize,
    "constexpr_blockwise_shift_scale": constexpr_blockwise_shift_scale,
    "constexpr_cast": constexpr_cast,
    "constexpr_lut_to_dense": constexpr_lut_to_dense,
    "constexpr_lut_to_sparse": constexpr_lut_to_sparse,
    "constexpr_sparse_blockwise_shift_scale": constexpr_sparse_blockwise_shift_scale,
    "constexpr_sparse_to_dense": constexpr_sparse_to_dense,
    "dequantize": dequantize,
    "quantize": quantize,
}
