"""Operators that resize, crop and resample the last two axes, or read them at given coordinates.

Where a sample lies between elements, it is interpolated linearly axis by axis. Two operators for the nearest element
differ in where they look: `upsample_nearest_neighbor` at `i * in / out`, `resize_nearest_neighbor` (and `resize` in its
default mode) at the middle of each output element, `(i + 0.5) * in / out`, both rounded down.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from flagsplit.targets.mobile.mil.arguments import IOS17, Arguments, Operator
from flagsplit.targets.mobile.mil.types import Array

SAMPLING_MODES: Final = ("DEFAULT", "STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "OFFSET_CORNERS", "UNALIGN_CORNERS")
_PADDING_MODES: Final = ("constant", "border", "reflection", "symmetric")
_COORDINATES: Final = ("unnormalized", "normalized_minus_one_to_one", "normalized_zero_to_one")
_CORNERS: Final[Mapping[str, tuple[int, int, int, int]]] = {
    "CORNERS_HEIGHT_FIRST": (0, 1, 2, 3),
    "CORNERS_WIDTH_FIRST": (1, 0, 3, 2),
}


def grid(mode: str, size: float, count: int) -> Array:
    """Where `count` samples lie on an axis of `size` elements: the "grid points" of `resize_bilinear`."""
    at = np.arange(count, dtype=np.float64)
    if mode == "ALIGN_CORNERS" and count == 1:
        return np.array([(size - 1) / 2])
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        return at * ((size - 1) / max(count - 1, 1))
    if mode == "OFFSET_CORNERS":
        return (at + 0.5) * (max(1.0, size - 1) / count)
    spacing = size / max(count, 1)
    points = at * spacing if mode == "DEFAULT" else (at + 0.5) * spacing - 0.5
    return np.clip(points, 0, max(size - 1, 0))


def _interpolate(x: Array, points: Array, axis: int) -> Array:
    """`x` read at fractional `points` along an axis; points beyond the ends read the ends."""
    points = np.clip(points, 0, x.shape[axis] - 1)
    below = np.floor(points).astype(np.int64)
    above = np.minimum(below + 1, x.shape[axis] - 1)
    shape = [1] * x.ndim
    shape[axis] = -1
    share = (points - below).astype(np.float32).reshape(shape)
    return np.take(x, below, axis) * (1 - share) + np.take(x, above, axis) * share


def _spatial(a: Arguments) -> Array:
    x = a.tensor("x")
    if x.ndim < 3 or 0 in x.shape:
        raise a.refuse(f"expected at least 3 axes, none of them empty; x has the shape {list(x.shape)}")
    return x


def _scaled(a: Arguments, x: Array) -> tuple[int, int]:
    factors = a.number("scale_factor_height", 1.0), a.number("scale_factor_width", 1.0)
    sizes = [math.floor(factor * size) for factor, size in zip(factors, x.shape[-2:], strict=True)]
    a.room((*x.shape[:-2], *sizes))
    return sizes[0], sizes[1]


def _target(a: Arguments, x: Array, default: int | None = None) -> tuple[int, int]:
    sizes = a.integer("target_size_height", default), a.integer("target_size_width", default)
    a.room((*x.shape[:-2], *sizes))
    return sizes


def upsample_nearest_neighbor(a: Arguments) -> Array:
    """The element at `i * in / out`, rounded down, on each of the last two axes."""
    x = _spatial(a)
    for axis, count in zip((-2, -1), _scaled(a, x), strict=True):
        x = np.take(x, np.arange(count) * x.shape[axis] // max(count, 1), axis)
    return x


def resize_nearest_neighbor(a: Arguments) -> Array:
    """The element at `(i + 0.5) * in / out`, rounded down, on each of the last two axes."""
    x = _spatial(a)
    for axis, count in zip((-2, -1), _target(a, x), strict=True):
        x = _middle(x, count, axis)
    return x


def _middle(x: Array, count: int, axis: int) -> Array:
    return np.take(x, (2 * np.arange(count) + 1) * x.shape[axis] // max(2 * count, 1), axis)


def upsample_bilinear(a: Arguments) -> Array:
    """Interpolated to sizes that are multiples of those of `x`."""
    x = _spatial(a)
    aligned = a.flag("align_corners", True)
    halves = a.flag("half_pixel_centers", not aligned)
    if aligned and halves:
        raise a.refuse("corners cannot be aligned and pixels have half centers")
    mode = "STRICT_ALIGN_CORNERS" if aligned else "UNALIGN_CORNERS" if halves else "DEFAULT"
    return _bilinear(x, _scaled(a, x), mode)


def resize_bilinear(a: Arguments) -> Array:
    """Interpolated to stated sizes."""
    x = _spatial(a)
    return _bilinear(x, _target(a, x, 1), a.choice("sampling_mode", SAMPLING_MODES, "DEFAULT"))


def _bilinear(x: Array, sizes: Sequence[int], mode: str) -> Array:
    for axis, count in zip((-2, -1), sizes, strict=True):
        x = _interpolate(x, grid(mode, x.shape[axis], count), axis)
    return x


def resize(a: Arguments) -> Array:
    """The last `resized_dims` axes resized to the last sizes in `shape`; 0 leaves an axis as it is."""
    x, shape, count = a.tensor("x"), a.integers("shape"), a.integer("resized_dims")
    if not 0 < count <= min(len(shape), x.ndim) or 0 in x.shape:
        raise a.refuse(f"{count} sizes of {shape} do not fit x of shape {list(x.shape)}")
    mode = a.choice("sampling_mode", SAMPLING_MODES, "DEFAULT")
    nearest = a.choice("interpolation_mode", ("LINEAR", "NEAREST_NEIGHBOR"), "LINEAR") == "NEAREST_NEIGHBOR"
    sizes = [wanted or size for wanted, size in zip(shape[-count:], x.shape[-count:], strict=True)]
    a.room((*x.shape[:-count], *sizes))
    kind = x.dtype
    for axis, wanted in zip(range(-count, 0), sizes, strict=True):
        if not nearest:
            x = _interpolate(x, grid(mode, x.shape[axis], wanted), axis)
        elif mode == "DEFAULT":
            x = _middle(x, wanted, axis)
        else:
            points = np.floor(grid(mode, x.shape[axis], wanted) + 0.5).astype(np.int64)
            x = np.take(x, np.clip(points, 0, x.shape[axis] - 1), axis)
    return x.astype(kind, copy=False)


def crop(a: Arguments) -> Array:
    """The last two axes with some elements left out at their ends."""
    x, height, width = _spatial(a), a.integers("crop_height"), a.integers("crop_width")
    cuts: list[Any] = [...]
    for size, amounts in zip(x.shape[-2:], (height, width), strict=True):
        if len(amounts) != 2 or min(amounts) < 0 or sum(amounts) > size:
            raise a.refuse(f"{amounts} cannot be cropped from an axis of {size}")
        cuts.append(slice(amounts[0], size - amounts[1]))
    return x[tuple(cuts)]


def crop_resize(a: Arguments) -> Array:
    """Boxes of images, each resized by interpolation; what lies outside of the image is `pad_value`."""
    x = a.tensor("x")
    if x.ndim != 4 or 0 in x.shape:
        raise a.refuse(f"expected images of 4 axes; x has the shape {list(x.shape)}")
    order = _CORNERS.get(mode := a.text("box_coordinate_mode", "CORNERS_HEIGHT_FIRST"))
    if order is None:
        raise a.refuse(f"boxes in the mode {mode!r} are not part of the interpreter, only {', '.join(_CORNERS)}")
    modern = a.opset >= IOS17
    boxes, images = _boxes(a, x, modern=modern)
    sizes = a.integer("target_height", 1), a.integer("target_width", 1)
    a.room((len(boxes), x.shape[1], *sizes) if modern else (len(boxes), len(images[0]), x.shape[1], *sizes))
    boxes = boxes.astype(np.float64) * a.number("spatial_scale", 1.0)
    if a.flag("normalized_coordinates", False):
        boxes = boxes * np.array([x.shape[2 + axis % 2] - 1 for axis in order])
    sampling = a.choice("sampling_mode", SAMPLING_MODES, "DEFAULT")
    parts = []
    for box, chosen in zip(boxes[:, order], images, strict=True):
        points = [
            box[axis] + _in_box(sampling, float(box[axis + 2] - box[axis]), count) for axis, count in enumerate(sizes)
        ]
        part = _interpolate(_interpolate(x[chosen], points[0], 2), points[1], 3)
        outside = [(at < 0) | (at > size - 1) for at, size in zip(points, x.shape[2:], strict=True)]
        part = np.where(outside[0][:, None] | outside[1], x.dtype.type(a.number("pad_value", 0.0)), part)
        parts.append(part[0] if modern else part)
    if not parts:
        raise a.refuse("expected at least one box")
    return np.stack(parts)


def _in_box(mode: str, length: float, count: int) -> Array:
    """Grid points in a box of `length`, which is negative where its corners are swapped."""
    points = grid(mode, abs(length) + 1, count)
    return np.negative(points) if length < 0 else points


def _boxes(a: Arguments, x: Array, *, modern: bool) -> tuple[Array, list[list[int]]]:
    """Boxes, one a row, and the images that each is cut from."""
    if modern:
        boxes = a.tensor("boxes")
        chosen = a.integers("box_indices", range(len(boxes)))
        images = [[index] for index in chosen]
    else:
        rois = a.tensor("roi").reshape(-1, a.tensor("roi").size // max(len(a.tensor("roi")), 1))
        with_index = rois.shape[1] == 5
        boxes = rois[:, 1:] if with_index else rois
        images = [[int(row[0])] if with_index else list(range(x.shape[0])) for row in rois]
    if boxes.ndim != 2 or boxes.shape[1] != 4 or len(images) != len(boxes):
        raise a.refuse(f"expected boxes of 4 coordinates; they have the shape {list(boxes.shape)}")
    if any(not 0 <= index < x.shape[0] for row in images for index in row):
        raise a.refuse(f"a box names an image that is not among {x.shape[0]}")
    return boxes, images


def resample(a: Arguments) -> Array:
    """`x` [B, C, H, W] read at `coordinates` [B, H2, W2, (x, y)]."""
    mode = a.choice("coordinates_mode", _COORDINATES)
    return _resampled(a, a.tensor("coordinates").astype(np.float64), mode, aligned=a.flag("align_corners"))


def affine(a: Arguments) -> Array:
    """`x` read at the places to which a matrix takes each place of the output."""
    a.choice("coordinates_mode", ("normalized_minus_one_to_one",))
    if not a.flag("align_corners"):
        raise a.refuse("corners that are not aligned are not part of the operator")
    x, matrix = a.tensor("x"), a.tensor("transform_matrix").astype(np.float64)
    sizes = a.integer("output_height"), a.integer("output_width")
    a.room((*x.shape[:2], *sizes))
    rows, columns = (np.linspace(-1, 1, size) if size > 1 else np.zeros(size) for size in sizes)
    y, across = np.meshgrid(rows, columns, indexing="ij")
    places = np.stack([across, y, np.ones_like(y)], axis=-1)
    coordinates = np.einsum("hwk,bik->bhwi", places, matrix.reshape(-1, 2, 3))
    coordinates = np.broadcast_to(coordinates, (x.shape[0], *coordinates.shape[1:]))
    return _resampled(a, coordinates, "normalized_minus_one_to_one", aligned=True)


def _resampled(a: Arguments, coordinates: Array, mode: str, *, aligned: bool) -> Array:
    x = a.tensor("x")
    if x.ndim != 4 or coordinates.ndim != 4 or coordinates.shape[::3] != (x.shape[0], 2) or 0 in x.shape:
        raise a.refuse(f"coordinates of shape {list(coordinates.shape)} do not fit x of shape {list(x.shape)}")
    a.room((*x.shape[:2], *coordinates.shape[1:3]))
    padding = a.choice("padding_mode", _PADDING_MODES)
    nearest = a.choice("sampling_mode", ("bilinear", "nearest")) == "nearest"
    columns, rows = (
        _elements(coordinates[..., axis], size, mode, aligned=aligned)
        for axis, size in enumerate((x.shape[3], x.shape[2]))
    )
    if nearest:
        return _read(a, x, np.rint(rows), np.rint(columns), padding)
    top, left = np.floor(rows), np.floor(columns)
    down, right = ((rows - top)[:, None].astype(np.float32), (columns - left)[:, None].astype(np.float32))
    return (
        _read(a, x, top, left, padding) * (1 - down) * (1 - right)
        + _read(a, x, top, left + 1, padding) * (1 - down) * right
        + _read(a, x, top + 1, left, padding) * down * (1 - right)
        + _read(a, x, top + 1, left + 1, padding) * down * right
    )


def _elements(coordinates: Array, size: int, mode: str, *, aligned: bool) -> Array:
    """Coordinates counted in elements."""
    if mode == "unnormalized":
        return coordinates
    share = (coordinates + 1) / 2 if mode == "normalized_minus_one_to_one" else coordinates
    return share * (size - 1) if aligned else share * size - 0.5


def _read(a: Arguments, x: Array, rows: Array, columns: Array, padding: str) -> Array:
    """`x` at whole rows and columns [B, H2, W2], inside or not."""
    batch = np.arange(x.shape[0])[:, None, None]
    inside = (rows >= 0) & (rows < x.shape[2]) & (columns >= 0) & (columns < x.shape[3])
    row, column = (_folded(at, size, padding) for at, size in ((rows, x.shape[2]), (columns, x.shape[3])))
    values = np.moveaxis(x[batch, :, row, column], -1, 1)
    if padding != "constant":
        return values
    return np.where(inside[:, None], values, x.dtype.type(a.number("padding_value", 0.0)))


def _folded(at: Array, size: int, padding: str) -> Array:
    """Indices brought inside: at the nearest edge, or mirrored."""
    # Far beyond what can be mirrored exactly; also takes care of NaN and infinity.
    whole = np.clip(np.nan_to_num(at, nan=0.0, posinf=1e9, neginf=-1e9), -1e9, 1e9).astype(np.int64)
    if padding == "reflection" and size > 1:
        turn = whole % (2 * (size - 1))
        return np.minimum(turn, 2 * (size - 1) - turn)
    if padding == "symmetric":
        turn = whole % (2 * size)
        return np.minimum(turn, 2 * size - 1 - turn)
    return np.clip(whole, 0, size - 1)


OPERATORS: Final[Mapping[str, Operator]] = {
    "affine": affine,
    "crop": crop,
    "crop_resize": crop_resize,
    "resample": resample,
    "resize": resize,
    "resize_bilinear": resize_bilinear,
    "resize_nearest_neighbor": resize_nearest_neighbor,
    "upsample_bilinear": upsample_bilinear,
    "upsample_nearest_neighbor": upsample_nearest_neighbor,
}
