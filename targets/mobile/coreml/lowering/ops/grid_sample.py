"""Sampling at computed places, by gathering the neighbours of each and weighing them."""

import itertools
from collections.abc import Sequence

import numpy as np

from flagsplit.targets.mobile.coreml.lowering.facts import FLOATS, NodeFacts
from flagsplit.targets.mobile.coreml.lowering.registry import lowers
from flagsplit.targets.mobile.coreml.lowering.site import Site, Var

_CUBIC = -0.75


def _odd_sampling(facts: NodeFacts) -> str:
    mode = facts.text("mode", "linear")
    if facts.rank() not in (4, 5) or facts.dtype(1) != facts.dtype(0):
        return "it samples neither images nor volumes, or at places of another type"
    if mode == "cubic" and (facts.rank() != 4 or facts.text("padding_mode", "zeros") != "zeros"):
        return "its mode is cubic in volumes or with another padding than zeros"
    return ""


@lowers("GridSample", dtypes=FLOATS, why_not=_odd_sampling)
def lower_grid_sample(site: Site) -> Var:
    """The grid names the last axis first."""
    mb, sizes = site.mb, site.shape()[2:]
    batch, channels = site.shape()[:2]
    places = int(np.prod(site.out_shape()[2:]))
    grid = site.reshape(site.var(1), (batch, places, len(sizes)))
    along = []
    for axis, size in enumerate(sizes):
        at = len(sizes) - 1 - axis
        place = site.reshape(site.cut(grid, 2, at, at + 1), (batch, places))
        along.append(_neighbours(site, place, size))
    x = site.reshape(site.var(), (batch, channels, int(np.prod(sizes))))
    total = None
    for corner in itertools.product(*along):
        flat, weight = _flat(site, [index for index, _ in corner], sizes), corner[0][1]
        for _, more in corner[1:]:
            weight = more if weight is None else weight if more is None else mb.mul(x=weight, y=more)
        found = mb.gather(x=x, indices=flat, axis=2, batch_dims=1)
        part = found if weight is None else mb.mul(x=found, y=mb.expand_dims(x=weight, axes=[1]))
        total = part if total is None else mb.add(x=total, y=part)
    return site.reshape(total, site.out_shape())


def _flat(site: Site, indices: Sequence[Var], sizes: Sequence[int]) -> Var:
    mb, flat = site.mb, indices[0]
    for index, size in zip(indices[1:], sizes[1:], strict=True):
        flat = mb.add(x=mb.mul(x=flat, y=np.int32(size)), y=index)
    return flat


def _neighbours(site: Site, place: Var, size: int) -> list[tuple[Var, Var | None]]:
    """The inputs that count along an axis: index, and weight; None for a weight of 1."""
    mb, mode, aligned = site.mb, site.text("mode", "linear"), bool(site.integer("align_corners", 0))
    scale, shift = ((size - 1) / 2, (size - 1) / 2) if aligned else (size / 2, (size - 1) / 2)
    x = mb.add(x=mb.mul(x=place, y=site.number(scale)), y=site.number(shift))
    if mode == "nearest":
        x = mb.round(x=x)
    x = _brought_in(site, x, size, aligned)
    if mode == "nearest":
        return [_weighed(site, mb.round(x=x), None, size)]
    below = mb.floor(x=x)
    rest = mb.sub(x=x, y=below)
    if mode == "linear":
        other = mb.sub(x=site.number(1), y=rest)
        above = mb.add(x=below, y=site.number(1))
        return [_weighed(site, below, other, size), _weighed(site, above, rest, size)]
    return [_weighed(site, mb.add(x=below, y=site.number(by)), _cubic(site, rest, by), size) for by in (-1, 0, 1, 2)]


def _brought_in(site: Site, x: Var, size: int, aligned: bool) -> Var:
    mb, padding = site.mb, site.text("padding_mode", "zeros")
    if padding == "border":
        return mb.clip(x=x, alpha=site.number(0), beta=site.number(size - 1))
    if padding != "reflection":
        return x
    low, high = (0.0, size - 1.0) if aligned else (-0.5, size - 0.5)
    if high <= low:
        return mb.mul(x=x, y=site.number(0))
    span = site.number(high - low)
    far = mb.abs(x=mb.sub(x=x, y=site.number(low)))
    turns = mb.floor(x=mb.real_div(x=far, y=span))
    rest = mb.sub(x=far, y=mb.mul(x=turns, y=span))
    odd = mb.sub(x=turns, y=mb.mul(x=mb.floor(x=mb.mul(x=turns, y=site.number(0.5))), y=site.number(2)))
    back = mb.greater(x=odd, y=site.number(0.5))
    return mb.select(cond=back, a=mb.sub(x=site.number(high), y=rest), b=mb.add(x=site.number(low), y=rest))


def _weighed(site: Site, index: Var, weight: Var | None, size: int) -> tuple[Var, Var | None]:
    """An index within the axis; outside of it the weight is 0 where zeros are padded."""
    mb = site.mb
    inside = mb.clip(x=index, alpha=site.number(0), beta=site.number(size - 1))
    if site.text("padding_mode", "zeros") == "zeros":
        is_in = mb.equal(x=inside, y=index)
        some = site.number(1) if weight is None else weight
        weight = mb.mul(x=site.cast(is_in, site.dtype()), y=some)
    return mb.cast(x=inside, dtype="int32"), weight


def _cubic(site: Site, rest: Var, by: int) -> Var:
    """Of a neighbour whose distance is |by - rest|: a polynomial of it."""
    a = _CUBIC
    near, far = (1.0, 0.0, -(a + 3), a + 2), (-4 * a, 8 * a, -5 * a, a)
    mb = site.mb
    distance = mb.abs(x=mb.sub(x=site.number(by), y=rest))
    coefficients = near if by in (0, 1) else far
    made: Var = site.number(coefficients[3])
    for coefficient in coefficients[2::-1]:
        made = mb.add(x=mb.mul(x=distance, y=made), y=site.number(coefficient))
    return made
