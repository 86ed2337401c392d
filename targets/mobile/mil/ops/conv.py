"""Convolution and transposed convolution over one to three spatial axes, as products of matrices."""

import itertools
import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from flagsplit.targets.mobile.mil.arguments import Arguments, Operator
from flagsplit.targets.mobile.mil.ops.windows import Window, padded, read_window, shifted, view_windows
from flagsplit.targets.mobile.mil.types import Array, check_room

# Columns are laid out for as many rows of places at a time as keep them below this.
_MAX_COLUMN_ELEMENTS: Final = 1 << 25


def conv(a: Arguments) -> Array:
    """Convolution of `x` [n, C_in, *D] with `weight` [C_out, C_in / groups, *K]."""
    return convolve(a, a.tensor("weight"))


def convolve(a: Arguments, weight: Array) -> Array:
    """See `conv`; with a weight that need not be as it is stored."""
    x, groups = a.tensor("x"), a.integer("groups", 1)
    if weight.ndim != x.ndim or groups < 1 or x.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        raise a.refuse(
            f"a weight of shape {list(weight.shape)} in {groups} groups does not fit x of shape {list(x.shape)}"
        )
    window = read_window(a, x, weight.shape[2:])
    places = window.sizes(x.shape[2:])
    shape = a.room((x.shape[0], weight.shape[0], *places))
    x = padded(a, x, window.pads)
    if weight.shape[1] == 1 and groups > 1:
        result = _depthwise(x, weight, window, places)
    else:
        result = _grouped(x, weight, window, groups, places)
    bias = a.optional("bias")
    if bias is not None:
        result += bias.reshape(-1, *[1] * len(places))
    return result.reshape(shape)


def _depthwise(x: Array, weight: Array, window: Window, places: tuple[int, ...]) -> Array:
    """One input channel for each group: a sum over the elements of the kernel."""
    groups = x.shape[1]
    ones = [1] * len(places)
    kernels = weight.reshape(groups, -1, *window.kernel)
    result = np.zeros((x.shape[0], groups, kernels.shape[1], *places), x.dtype)
    for offset in itertools.product(*map(range, window.kernel)):
        place: Any = (slice(None), slice(None), *offset)
        factor = kernels[place].reshape(groups, -1, *ones)
        result += shifted(x, offset, window, places)[:, :, None] * factor
    return result.reshape(x.shape[0], -1, *places)


def _grouped(x: Array, weight: Array, window: Window, groups: int, places: tuple[int, ...]) -> Array:
    batch, depth = x.shape[0], weight.shape[1]
    outs = weight.shape[0] // groups
    matrix = weight.reshape(groups, outs, -1)
    if all(size == 1 for size in window.kernel):
        columns: Array = shifted(x, [0] * len(places), window, places).reshape(batch, groups, depth, -1)
        return np.matmul(matrix, columns).reshape(batch, -1, *places)
    result = np.empty((batch, groups, outs, *places), x.dtype)
    axes = len(places)
    windows = view_windows(x, window).reshape(batch, groups, depth, *places, *window.kernel)
    # [n, groups, depth, *kernel, *places]
    windows = np.moveaxis(windows, range(3 + axes, 3 + 2 * axes), range(3, 3 + axes))
    row = groups * matrix.shape[-1] * math.prod(places[1:])
    rows = max(1, _MAX_COLUMN_ELEMENTS // max(1, row))
    for one, start in itertools.product(range(batch), range(0, places[0], rows)):
        part: Any = (one, *[slice(None)] * (2 + axes), slice(start, start + rows))
        columns = windows[part].reshape(groups, matrix.shape[-1], -1)
        product = np.matmul(matrix, columns)
        result[one, :, :, start : start + rows] = product.reshape(groups, outs, -1, *places[1:])
    return result.reshape(batch, -1, *places)


def conv_transpose(a: Arguments) -> Array:
    """Transposed convolution of `x` [n, C_in, *D] with `weight` [C_in, C_out / groups, *K]."""
    x, weight, groups = a.tensor("x"), a.tensor("weight"), a.integer("groups", 1)
    if weight.ndim != x.ndim or groups < 1 or weight.shape[0] != x.shape[1] or x.shape[1] % groups:
        raise a.refuse(
            f"a weight of shape {list(weight.shape)} in {groups} groups does not fit x of shape {list(x.shape)}"
        )
    window = read_window(a, x, weight.shape[2:])
    channels = weight.shape[1] * groups
    full = tuple(
        (size - 1) * stride + reach
        for size, stride, reach in zip(x.shape[2:], window.strides, window.reach, strict=True)
    )
    before, sizes = _crops(a, x, window, full)
    shape = a.room((x.shape[0], channels, *sizes))
    # A stated output may reach beyond what the kernel touches: there it is 0.
    canvas = tuple(max(size, start + out) for size, start, out in zip(full, before, sizes, strict=True))
    check_room((x.shape[0], channels, *canvas), "float32", a.where)
    result = np.zeros((x.shape[0], groups, weight.shape[1], *canvas), x.dtype)
    columns = x.reshape(x.shape[0], groups, -1, math.prod(x.shape[2:]))
    kernels = weight.reshape(groups, -1, weight.shape[1], *window.kernel)
    for offset in itertools.product(*map(range, window.kernel)):
        place: Any = (..., *offset)
        matrix = np.swapaxes(kernels[place], 1, 2)
        cuts = [
            slice(at * dilation, at * dilation + (size - 1) * stride + 1, stride)
            for at, dilation, size, stride in zip(offset, window.dilations, x.shape[2:], window.strides, strict=True)
        ]
        product = np.matmul(matrix, columns)
        result[(slice(None), slice(None), slice(None), *cuts)] += product.reshape(*product.shape[:3], *x.shape[2:])
    kept = tuple(slice(start, start + size) for start, size in zip(before, sizes, strict=True))
    result = result.reshape(x.shape[0], channels, *canvas)[(slice(None), slice(None), *kept)]
    bias = a.optional("bias")
    if bias is not None:
        result = result + bias.reshape(-1, *[1] * len(sizes))
    return result.reshape(shape)


def _crops(a: Arguments, x: Array, window: Window, full: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Where the output starts in the full one, and its sizes."""
    axes = len(full)
    pad_type = a.text("pad_type", "valid").lower()
    before = [0] * axes
    sizes = list(full)
    if pad_type in ("same", "same_lower"):
        sizes = [size * stride for size, stride in zip(x.shape[2:], window.strides, strict=True)]
        cut = [max(0, whole - size) for whole, size in zip(full, sizes, strict=True)]
        before = [(size + (pad_type == "same_lower")) // 2 for size in cut]
    elif pad_type == "custom":
        before = [pad[0] for pad in window.pads]
        sizes = [whole - sum(pad) for whole, pad in zip(full, window.pads, strict=True)]
    if a.has("output_shape"):
        stated = a.integers("output_shape")
        if len(stated) != axes + 2:
            raise a.refuse(f"expected output_shape to have {axes + 2} sizes; it is {stated}")
        sizes = stated[2:]
    return before, sizes


OPERATORS: Final[Mapping[str, Operator]] = {"conv": conv, "conv_transpose": conv_transpose}
