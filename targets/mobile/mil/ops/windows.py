"""What convolutions and pools share: padding, output sizes, sliding windows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from flagsplit.targets.mobile.mil.arguments import Arguments
from flagsplit.targets.mobile.mil.types import Array, check_room

PAD_TYPES: Final = ("valid", "custom", "same", "same_lower")
_SPATIAL: Final = (1, 2, 3)


@dataclass(frozen=True)
class Window:
    """How a window slides over the spatial axes of a tensor of shape [n, C, *D].

    Attributes:
        kernel: sizes of the window.
        strides, dilations: steps of the window, and between its elements.
        pads: elements before and after each axis.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]

    @property
    def reach(self) -> tuple[int, ...]:
        """Elements from the window's first to its last, on each axis."""
        return tuple((size - 1) * dilation + 1 for size, dilation in zip(self.kernel, self.dilations, strict=True))

    def sizes(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """How many places the window takes on each axis."""
        return tuple(
            (size + sum(pads) - reach) // stride + 1
            for size, pads, reach, stride in zip(spatial, self.pads, self.reach, self.strides, strict=True)
        )


def read_window(a: Arguments, x: Array, kernel: Sequence[int]) -> Window:
    """The window that the parameters of a convolution or pool describe.

    Raises:
        BundleError: they do not fit the tensor, or each other.
    """
    axes = x.ndim - 2
    if axes not in _SPATIAL or len(kernel) != axes:
        raise a.refuse(f"expected 1 to 3 spatial axes; x has the shape {list(x.shape)}, the kernel {list(kernel)}")
    strides = a.integers("strides", [1] * axes)
    dilations = a.integers("dilations", [1] * axes)
    if len(strides) != axes or len(dilations) != axes or min(*kernel, *strides, *dilations) < 1:
        raise a.refuse(f"strides {strides}, dilations {dilations} and kernel {list(kernel)} do not fit {axes} axes")
    # Some writers have it in capitals.
    pad_type = a.text("pad_type", "valid").lower()
    if pad_type not in PAD_TYPES:
        raise a.refuse(f"expected pad_type to be one of {', '.join(PAD_TYPES)}; it is {pad_type!r}")
    window = Window(tuple(kernel), tuple(strides), tuple(dilations), ((0, 0),) * axes)
    return Window(window.kernel, window.strides, window.dilations, _pads(a, pad_type, window, x.shape[2:]))


def _pads(a: Arguments, pad_type: str, window: Window, spatial: Sequence[int]) -> tuple[tuple[int, int], ...]:
    axes = len(spatial)
    if pad_type == "valid":
        return ((0, 0),) * axes
    if pad_type == "custom":
        pad = a.integers("pad", [0] * 2 * axes)
        if len(pad) != 2 * axes or min(pad) < 0:
            raise a.refuse(f"expected {2 * axes} pads of 0 and more; it has {pad}")
        return tuple((pad[2 * axis], pad[2 * axis + 1]) for axis in range(axes))
    pads = []
    for size, reach, stride in zip(spatial, window.reach, window.strides, strict=True):
        total = max(0, (math.ceil(size / stride) - 1) * stride + reach - size)
        less, more = total // 2, total - total // 2
        pads.append((less, more) if pad_type == "same" else (more, less))
    return tuple(pads)


def padded(a: Arguments, x: Array, pads: Sequence[tuple[int, int]], value: float = 0.0) -> Array:
    """`x` with its spatial axes padded by `value`."""
    if not any(map(any, pads)):
        return x
    shape = (*x.shape[:2], *(size + sum(pad) for size, pad in zip(x.shape[2:], pads, strict=True)))
    check_room(shape, "float32", a.where)
    result = np.full(shape, value, x.dtype)
    inner = tuple(slice(pad[0], pad[0] + size) for pad, size in zip(pads, x.shape[2:], strict=True))
    result[(slice(None), slice(None), *inner)] = x
    return result


def view_windows(x: Array, window: Window) -> Array:
    """A view of shape [n, C, *places, *kernel] of a tensor that is padded already."""
    axes = len(window.kernel)
    view = sliding_window_view(x, window.reach, axis=tuple(range(2, 2 + axes)))
    steps = [slice(None, None, stride) for stride in window.strides]
    inner = [slice(None, None, dilation) for dilation in window.dilations]
    result: Array = view[(slice(None), slice(None), *steps, *inner)]
    return result


def shifted(x: Array, offset: Sequence[int], window: Window, places: Sequence[int]) -> Array:
    """A view of the element at `offset` of the kernel, for every place of the window: shape [n, C, *places]."""
    cuts = [
        slice(at * dilation, at * dilation + (count - 1) * stride + 1, stride)
        for at, dilation, stride, count in zip(offset, window.dilations, window.strides, places, strict=True)
    ]
    result: Array = x[(slice(None), slice(None), *cuts)]
    return result
