"""Operators that move elements about, all of them: none is left out, none comes twice."""

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from flagsplit.targets.mobile.mil.arguments import IOS17, Arguments, Operator
from flagsplit.targets.mobile.mil.types import Array, check_room


def reshape(a: Arguments) -> Array:
    """`x` in another shape: -1 takes what is left, 0 the size that `x` has there."""
    x, wanted = a.tensor("x"), a.integers("shape")
    shape = _without_zeros(a, x.shape, wanted)
    if shape.count(-1) > 1 or any(size < -1 for size in shape):
        raise a.refuse(f"expected sizes, at most one of them -1; the shape is {wanted}")
    if -1 in shape:
        rest = math.prod(size for size in shape if size != -1)
        shape[shape.index(-1)] = x.size // rest if rest else 0
    return x.reshape(a.room(shape))


def _without_zeros(a: Arguments, given: Sequence[int], wanted: Sequence[int]) -> list[int]:
    if 0 not in wanted:
        return list(wanted)
    # Before iOS 17 both must have one rank; since then sizes are counted from the last.
    if a.opset < IOS17 and len(given) != len(wanted):
        raise a.refuse(f"0 in the shape {list(wanted)} needs x to have {len(wanted)} axes; it has {len(given)}")
    offset = len(given) - len(wanted)
    return [
        size if size != 0 else given[axis + offset] if 0 <= axis + offset < len(given) else 1
        for axis, size in enumerate(wanted)
    ]


def reshape_like(a: Arguments) -> Array:
    """`x` in a shape put together from parts of the shapes of other tensors."""
    x, shape = a.tensor("x"), list[int]()
    parts = [[int(item.reshape(()).item()) for item in a.tensors(name)] for name in ("begins", "ends", "end_masks")]
    for tensor, begin, end, masked in zip(a.tensors("ref_tensors"), *parts, strict=True):
        shape += tensor.shape[begin:] if masked else tensor.shape[begin:end]
    return x.reshape(a.room(shape))


def expand_dims(a: Arguments) -> Array:
    """Axes of size 1 inserted, at their places in the result."""
    return np.expand_dims(a.tensor("x"), tuple(a.integers("axes")))


def squeeze(a: Arguments) -> Array:
    """Axes of size 1 left out: those named, or all; one that is named but larger stays."""
    x = a.tensor("x")
    named = a.integers("axes", range(x.ndim))
    if any(not -x.ndim <= axis < x.ndim for axis in named):
        raise a.refuse(f"axes {named} are not all axes of {list(x.shape)}")
    return np.squeeze(x, axis=tuple(axis for axis in named if x.shape[axis] == 1))


def transpose(a: Arguments) -> Array:
    """Axes in another order."""
    return np.transpose(a.tensor("x"), a.integers("perm"))


def flatten2d(a: Arguments) -> Array:
    """The axes before `axis` as one, and the others as another."""
    x, axis = a.tensor("x"), a.integer("axis", 1)
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _block(a: Arguments, name: str) -> tuple[Array, int]:
    x, size = a.tensor("x"), a.integer(name)
    if x.ndim != 4 or size < 1:
        raise a.refuse(f"expected 4 axes and a block of 1 and more; x is {list(x.shape)}, the block {size}")
    return x, size


def depth_to_space(a: Arguments) -> Array:
    """Channels to blocks of pixels, where a block's place changes slowest along the channels."""
    x, block = _block(a, "block_size")
    n, depth, height, width = x.shape
    parts = x.reshape(n, block, block, depth // (block * block), height, width)
    return parts.transpose(0, 3, 4, 1, 5, 2).reshape(n, -1, height * block, width * block)


def space_to_depth(a: Arguments) -> Array:
    """The inverse of `depth_to_space`."""
    x, block = _block(a, "block_size")
    n, depth, height, width = x.shape
    parts = x.reshape(n, depth, height // block, block, width // block, block)
    return parts.transpose(0, 3, 5, 1, 2, 4).reshape(n, -1, height // block, width // block)


def pixel_shuffle(a: Arguments) -> Array:
    """Channels to blocks of pixels, where a block's place changes fastest along the channels."""
    x, block = _block(a, "upscale_factor")
    n, depth, height, width = x.shape
    parts = x.reshape(n, depth // (block * block), block, block, height, width)
    return parts.transpose(0, 1, 4, 2, 5, 3).reshape(n, -1, height * block, width * block)


def pixel_unshuffle(a: Arguments) -> Array:
    """The inverse of `pixel_shuffle`."""
    x, block = _block(a, "downscale_factor")
    n, depth, height, width = x.shape
    parts = x.reshape(n, depth, height // block, block, width // block, block)
    return parts.transpose(0, 1, 3, 5, 2, 4).reshape(n, -1, height // block, width // block)


def _spatial_block(a: Arguments, edges: str) -> tuple[Array, int, int, Array]:
    x, block, edge = a.tensor("x"), a.integers("block_shape"), a.tensor(edges)
    if x.ndim != 4 or len(block) != 2 or min(block) < 1 or edge.shape != (2, 2) or edge.min() < 0:
        raise a.refuse(f"expected 4 axes, a block of 2 sizes and 2 x 2 {edges}; x is {list(x.shape)}")
    return x, block[0], block[1], edge


def space_to_batch(a: Arguments) -> Array:
    """Padded with zeros, then each place of a block as a batch of its own."""
    x, high, wide, pads = _spatial_block(a, "paddings")
    n, depth = x.shape[:2]
    widths = [(0, 0), (0, 0), (int(pads[0, 0]), int(pads[0, 1])), (int(pads[1, 0]), int(pads[1, 1]))]
    check_room(tuple(size + sum(pad) for size, pad in zip(x.shape, widths, strict=True)), a.dtype("x"), a.where)
    x = np.pad(x, widths)
    height, width = x.shape[2:]
    parts = x.reshape(n, depth, height // high, high, width // wide, wide)
    return parts.transpose(3, 5, 0, 1, 2, 4).reshape(-1, depth, height // high, width // wide)


def batch_to_space(a: Arguments) -> Array:
    """The inverse of `space_to_batch`, cropped."""
    x, high, wide, crops = _spatial_block(a, "crops")
    n, depth, height, width = x.shape
    parts = x.reshape(high, wide, n // (high * wide), depth, height, width).transpose(2, 3, 4, 0, 5, 1)
    whole = parts.reshape(-1, depth, height * high, width * wide)
    top, bottom, left, right = (int(item) for item in crops.reshape(-1))
    return whole[:, :, top : height * high - bottom, left : width * wide - right]


def reverse(a: Arguments) -> Array:
    """Axes in reverse: those named, or all."""
    x = a.tensor("x")
    return np.flip(x, tuple(a.integers("axes")) if a.has("axes") else None)


def reverse_sequence(a: Arguments) -> Array:
    """Of each item along `batch_axis`, the first `lengths` elements along `seq_axis` in reverse."""
    x, lengths = a.tensor("x"), a.integers("lengths")
    sequence, batch = a.integer("seq_axis", 0), a.integer("batch_axis", 0)
    moved = np.moveaxis(x, (batch, sequence), (0, 1))
    if len(lengths) != moved.shape[0] or any(not 0 <= length <= moved.shape[1] for length in lengths):
        raise a.refuse(f"lengths {lengths} do not fit x of shape {list(x.shape)}")
    result = moved.copy()
    for item, length in enumerate(lengths):
        result[item, :length] = moved[item, :length][::-1]
    return np.moveaxis(result, (0, 1), (batch, sequence))


OPERATORS: Final[Mapping[str, Operator]] = {
    "batch_to_space": batch_to_space,
    "depth_to_space": depth_to_space,
    "expand_dims": expand_dims,
    "flatten2d": flatten2d,
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    "reshape": reshape,
    "reshape_like": reshape_like,
    "reverse": reverse,
    "reverse_sequence": reverse_sequence,
    "space_to_batch": space_to_batch,
    "space_to_depth": space_to_depth,
    "squeeze": squeeze,
    "transpose": transpose,
}
