"""Resize: along each axis a constant map from input to output positions, and GridSample."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flagsplit.targets.cloud.cuda.lowering.site import Kernel, Refused, Site, as_dtype, widened
from flagsplit.targets.cloud.cuda.sdk import torch

_Doubles = NDArray[np.float64]
_ROUND: dict[str, Callable[[_Doubles], _Doubles]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def lower(site: Site) -> Kernel:
    """Nearest is a look-up, by whole factors a repetition; the rest are products with constant matrices."""
    shape, out = site.shape(0), site.out_shape()
    if not site.is_float(0) and site.text("mode", "nearest") != "nearest":
        raise Refused("whole numbers are resized by the nearest only")
    maps = {
        axis: _axis_map(site, shape[axis], out[axis], scale)
        for axis, scale in _scales(site, shape, out).items()
        if scale != 1 or shape[axis] != out[axis]
    }
    for index in (1, 2, 3):
        site.const(index)
    steps = [(axis, _step(axis, matrix)) for axis, matrix in maps.items()]
    dtype = site.out_dtype()
    return lambda x, *_: _applied(x, [step for _, step in steps]).to(as_dtype(dtype))


def _applied(x: Any, steps: list[Callable[[Any], Any]]) -> Any:
    for step in steps:
        x = step(x)
    return x


def _step(axis: int, matrix: _Doubles) -> Callable[[Any], Any]:
    out, size = matrix.shape
    single = bool(np.all((matrix != 0).sum(1) == 1) and np.all(matrix.max(1) == 1))
    index = [int(each) for each in matrix.argmax(1)]
    if single and out % size == 0 and index == [at // (out // size) for at in range(out)]:
        return lambda x: x.repeat_interleave(out // size, axis)
    if single:
        return lambda x: x.index_select(axis, torch.tensor(index, device=x.device))

    def product(x: Any) -> Any:
        wide = widened(x)
        weights = torch.tensor(matrix.tolist(), dtype=wide.dtype, device=x.device)
        return torch.matmul(wide.movedim(axis, -1), weights.t()).movedim(-1, axis)

    return product


def _scales(site: Site, shape: tuple[int, ...], out: tuple[int, ...]) -> dict[int, float]:
    """The scale of each axis that the node names."""
    rank = len(shape)
    axes = [axis % rank for axis in site.integers("axes", range(rank))]
    given = site.need(2, "scales") if site.given(2) else None
    if given is not None and given.size:
        scales = [float(each) for each in given.reshape(-1)]
        uneven = any(out[axis] != shape[axis] * each for axis, each in zip(axes, scales, strict=True))
        if uneven and site.text("coordinate_transformation_mode", "half_pixel") == "align_corners":
            raise Refused("where corners align, scales must give whole sizes: ONNX and its runtimes differ on the rest")
        return dict(zip(axes, scales, strict=True))
    policy = site.text("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return {axis: out[axis] / shape[axis] for axis in axes}
    each = [size / shape[axis] for axis, size in zip(axes, site.ints(3, "sizes"), strict=True)]
    return dict.fromkeys(axes, min(each) if policy == "not_larger" else max(each))


def _axis_map(site: Site, size: int, out: int, scale: float) -> _Doubles:
    """A matrix of shape [out, size]."""
    mode = site.text("mode", "nearest")
    where = _coordinates(site.text("coordinate_transformation_mode", "half_pixel"), size, out, scale)
    made = np.zeros((out, size))
    if mode == "nearest":
        rounded = _ROUND[site.text("nearest_mode", "round_prefer_floor")](where)
        made[np.arange(out), np.clip(rounded.astype(int), 0, size - 1)] = 1
        return made
    narrow = min(scale, 1.0) if site.integer("antialias", 0) else 1.0
    outside = bool(site.integer("exclude_outside", 0))
    cubic = site.number("cubic_coeff_a", -0.75) if mode == "cubic" else None
    for row, place in enumerate(where):
        places, weights = _taps(float(place), narrow, cubic)
        if outside:
            weights = np.where((places < 0) | (places >= size), 0, weights)
            weights = weights / weights.sum()
        np.add.at(made[row], np.clip(places, 0, size - 1), weights)
    return made


def _coordinates(mode: str, size: int, out: int, scale: float) -> _Doubles:
    at = np.arange(out, dtype=np.float64)
    if mode == "align_corners":
        return at * (size - 1) / (out - 1) if out > 1 else at * 0
    if mode == "asymmetric":
        return at / scale
    if mode == "pytorch_half_pixel" and out == 1:
        return at * 0
    if mode in ("half_pixel", "pytorch_half_pixel"):
        return (at + 0.5) / scale - 0.5
    if mode == "half_pixel_symmetric":
        return size / 2 * (1 - out / (scale * size)) + (at + 0.5) / scale - 0.5
    raise Refused(f"it resizes with fixed coordinates, came mode {mode!r}")


def _taps(place: float, narrow: float, cubic: float | None) -> tuple[NDArray[np.int64], _Doubles]:
    """Positions around a place, and what each counts; below 1, `narrow` widens the filter against aliasing."""
    low = math.floor(place)
    reach = 1 if cubic is None else 2
    first = math.floor(-reach / narrow) + 1
    offsets = np.arange(first, reach + 1 - first if narrow < 1 else reach + 1)
    distance = np.abs((offsets - (place - low)) * narrow)
    weights = np.clip(1 - distance, 0, 1) if cubic is None else _cubic(distance, cubic)
    return low + offsets, weights / weights.sum()


def _cubic(x: _Doubles, a: float) -> _Doubles:
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def lower_grid_sample(site: Site) -> Kernel:
    """Pictures sampled at computed places."""
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(kind := site.text("mode", "linear"), kind)
    padding, corners = site.text("padding_mode", "zeros"), bool(site.integer("align_corners", 0))
    if site.rank(0) not in (4, 5) or (mode == "bicubic" and site.rank(0) == 5):
        raise Refused("PyTorch samples pictures and volumes, no cubic in volumes")

    def kernel(x: Any, grid: Any) -> Any:
        wide = widened(x)
        return torch.nn.functional.grid_sample(wide, grid.to(wide.dtype), mode, padding, corners)

    return kernel


def lower_affine_grid(site: Site) -> Kernel:
    """The places that an affine map takes each pixel from."""
    size, corners = site.ints(1, "size"), bool(site.integer("align_corners", 0))
    return lambda theta, _: torch.nn.functional.affine_grid(theta, size, corners)
