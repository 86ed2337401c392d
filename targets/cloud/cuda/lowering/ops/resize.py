"""Resize: along each axis a constant map from input to output positions, and GridSample."""

from collections.abc import Callable
from typing import Any

import numpy as np

from flagsplit.targets.cloud.cuda.lowering.site import Kernel, Refused, Site, as_dtype, widened
from flagsplit.targets.cloud.cuda.sdk import torch
from flagsplit.targets.resampling import Doubles, nearest, sample_places, weights


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


def _step(axis: int, matrix: Doubles) -> Callable[[Any], Any]:
    out, size = matrix.shape
    single = bool(np.all((matrix != 0).sum(1) == 1) and np.all(matrix.max(1) == 1))
    index = [int(each) for each in matrix.argmax(1)]
    if single and out % size == 0 and index == [at // (out // size) for at in range(out)]:
        return lambda x: x.repeat_interleave(out // size, axis)
    if single:
        return lambda x: x.index_select(axis, torch.tensor(index, device=x.device))

    def product(x: Any) -> Any:
        wide = widened(x)
        counts = torch.tensor(matrix.tolist(), dtype=wide.dtype, device=x.device)
        return torch.matmul(wide.movedim(axis, -1), counts.t()).movedim(-1, axis)

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


def _axis_map(site: Site, size: int, out: int, scale: float) -> Doubles:
    """A matrix of shape [out, size]."""
    mode, transformation = site.text("mode", "nearest"), site.text("coordinate_transformation_mode", "half_pixel")
    places = sample_places(transformation, size, out, scale)
    if places is None:
        raise Refused(f"it resizes with fixed coordinates, came mode {transformation!r}")
    if mode == "nearest":
        made = np.zeros((out, size))
        made[np.arange(out), nearest(places, size, site.text("nearest_mode", "round_prefer_floor"))] = 1
        return made
    narrow = min(scale, 1.0) if site.integer("antialias", 0) else 1.0
    cubic = site.number("cubic_coeff_a", -0.75) if mode == "cubic" else None
    return weights(places, size, narrow, cubic, outside=bool(site.integer("exclude_outside", 0)))


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
