"""Resizing: with MIL's own operators where they mean the same, else by constant matrices and indices."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from flagsplit.targets.mobile.coreml.lowering.facts import FLOATS, NUMBERS, NodeFacts
from flagsplit.targets.mobile.coreml.lowering.ops.interpolation import (
    AxisResize,
    Interpolation,
    is_agreed,
    nearest_of,
    weights_of,
)
from flagsplit.targets.mobile.coreml.lowering.registry import lowers
from flagsplit.targets.mobile.coreml.lowering.site import Site, Var

_BILINEAR = {"half_pixel": "UNALIGN_CORNERS", "asymmetric": "DEFAULT", "align_corners": "STRICT_ALIGN_CORNERS"}


def _how(facts: NodeFacts) -> Interpolation:
    return Interpolation(
        mode=facts.text("mode", "nearest"),
        coordinates=facts.text("coordinate_transformation_mode", "half_pixel"),
        nearest=facts.text("nearest_mode", "round_prefer_floor"),
        cubic=facts.real("cubic_coeff_a", -0.75),
        antialias=bool(facts.integer("antialias", 0)),
        exclude_outside=bool(facts.integer("exclude_outside", 0)),
        outside=facts.real("extrapolation_value", 0.0),
    )


def _axes(facts: NodeFacts) -> dict[int, AxisResize]:
    """Only those on which something happens."""
    rank, how = facts.rank(), facts.text("coordinate_transformation_mode", "half_pixel")
    axes = [axis % rank for axis in facts.ints("axes", range(rank))]
    scales, region = facts.const(2), facts.const(1)
    found = {}
    for at, axis in enumerate(axes):
        size, wanted = facts.shape()[axis], facts.out_shape()[axis]
        scale = wanted / size if scales is None or not scales.size else float(scales.reshape(-1)[at])
        if facts.has(3) and facts.text("keep_aspect_ratio_policy", "stretch") != "stretch":
            scale = _kept_ratio(facts, axes)
        start, end = 0.0, 1.0
        if how == "tf_crop_and_resize" and region is not None and region.size:
            start, end = float(region.reshape(-1)[at]), float(region.reshape(-1)[at + len(axes)])
        if size != wanted or scale != 1 or (start, end) != (0.0, 1.0):
            found[axis] = AxisResize(size, wanted, scale, start, end)
    return found


def _kept_ratio(facts: NodeFacts, axes: list[int]) -> float:
    sizes = facts.const_ints(3)
    ratios = [wanted / facts.shape()[axis] for wanted, axis in zip(sizes, axes, strict=True)]
    return min(ratios) if facts.text("keep_aspect_ratio_policy") == "not_larger" else max(ratios)


def _odd_mode(facts: NodeFacts) -> str:
    if not facts.rank():
        return "its operand is a scalar"
    if not all(is_agreed(axis, _how(facts)) for axis in _axes(facts).values()):
        return (
            "its scales give no whole sizes: ONNX and ONNX Runtime disagree then on what aligned corners are; "
            "give it sizes in place of scales"
        )
    whole = facts.dtype() not in FLOATS
    return "it is of integers" if whole and facts.text("mode", "nearest") != "nearest" else ""


@lowers("Resize", dtypes=NUMBERS, const=(1, 2, 3), why_not=_odd_mode)
def lower_resize(site: Site) -> Var:
    axes, how = _axes(site), _how(site)
    if not axes:
        return site.mb.identity(x=site.var())
    if site.rank() == 4 and set(axes) <= {2, 3} and site.dtype() in FLOATS:
        made = _natively(site, axes, how)
        if made is not None:
            return made
    return _by_indices(site, axes, how) if how.mode == "nearest" else _by_matrices(site, axes, how)


def _natively(site: Site, axes: Mapping[int, AxisResize], how: Interpolation) -> Var | None:
    """MIL's operators, where they mean the same; None where not."""
    mb, sizes = site.mb, site.out_shape()[2:]
    exact = all(axis.is_whole for axis in axes.values())
    if how.mode == "nearest":
        times = [wanted // size for wanted, size in zip(sizes, site.shape()[2:], strict=True)]
        repeats = all(
            (nearest_of(axis, how) == np.arange(axis.wanted) // max(axis.wanted // axis.size, 1)).all()
            for axis in axes.values()
        ) and all(wanted % size == 0 for wanted, size in zip(sizes, site.shape()[2:], strict=True))
        if not repeats:
            return None
        return mb.upsample_nearest_neighbor(
            x=site.var(), scale_factor_height=np.float32(times[0]), scale_factor_width=np.float32(times[1])
        )
    if how.mode != "linear" or how.antialias or how.exclude_outside or not exact or min(sizes) < 2:
        return None
    coordinates = "half_pixel" if how.coordinates == "pytorch_half_pixel" else how.coordinates
    if coordinates == "half_pixel_symmetric":
        coordinates = "half_pixel"
    mode = _BILINEAR.get(coordinates)
    if mode is None or min(site.shape()[2:]) < 2:
        return None
    return mb.resize_bilinear(x=site.var(), target_size_height=sizes[0], target_size_width=sizes[1], sampling_mode=mode)


def _by_indices(site: Site, axes: Mapping[int, AxisResize], how: Interpolation) -> Var:
    x = site.var()
    for axis, resize in axes.items():
        found = nearest_of(resize, how)
        x = _outside(site, site.take(x, np.maximum(found, 0), axis), axis, found < 0, how)
    return x


def _outside(site: Site, x: Var, axis: int, rows: NDArray[np.bool_], how: Interpolation) -> Var:
    """What lies outside of the region of interest gets one value."""
    if not rows.any():
        return x
    shape = [1] * site.rank()
    shape[axis] = -1
    return site.mb.select(cond=rows.reshape(shape), a=site.number(how.outside), b=x)


def _by_matrices(site: Site, axes: Mapping[int, AxisResize], how: Interpolation) -> Var:
    """The last axis from the right, the one before from the left, others after a transposition."""
    mb, x, rank = site.mb, site.var(), site.rank()
    missing = {}
    for axis, resize in axes.items():
        matrix = weights_of(resize, how)
        rows = np.asarray(np.isnan(matrix).any(1))
        missing[axis] = rows
        matrix = site.numbers(np.where(rows[:, None], 0, matrix))
        if axis == rank - 1:
            flat = site.reshape(x, (1, *x.shape)) if rank == 1 else x
            x = mb.matmul(x=flat, y=matrix, transpose_y=True)
            x = site.reshape(x, x.shape[1:]) if rank == 1 else x
        elif axis == rank - 2:
            x = mb.matmul(x=matrix, y=x)
        else:
            perm = [*(at for at in range(rank) if at != axis), axis]
            x = mb.matmul(x=mb.transpose(x=x, perm=perm), y=matrix, transpose_y=True)
            x = mb.transpose(x=x, perm=list(np.argsort(perm)))
    for axis, rows in missing.items():
        x = _outside(site, x, axis, rows, how)
    return x
