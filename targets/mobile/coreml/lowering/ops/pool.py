"""Pools. What MIL's pools do not do is done by slices of the input, one for each place in a window."""

import itertools
import math
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from flagsplit.targets.mobile.coreml.lowering.facts import FLOATS, NodeFacts
from flagsplit.targets.mobile.coreml.lowering.ops.windows import Windows
from flagsplit.targets.mobile.coreml.lowering.registry import lowers
from flagsplit.targets.mobile.coreml.lowering.site import NP_TYPES, Site, Var

_MOST_SLICES = 256
"""How many places a window may have that is pooled by slices."""


def _windows(facts: NodeFacts) -> Windows:
    return Windows.of(facts, facts.ints("kernel_shape"))


def _by_slices(facts: NodeFacts) -> bool:
    """Whether MIL has no pool for it."""
    windows = _windows(facts)
    wide = any(max(pair) >= width for pair, width in zip(windows.pads, windows.kernel, strict=True))
    overhang = windows.overhang(facts.shape()[2:])
    far = any(by + pair[1] >= width for by, pair, width in zip(overhang, windows.pads, windows.kernel, strict=True))
    return max(windows.dilations) > 1 or wide or far or (facts.op == "MaxPool" and facts.gives(1))


def _odd_pool(facts: NodeFacts) -> str:
    if not 3 <= facts.rank() <= 5:
        return f"it is in {facts.rank() - 2} dimensions; Core ML goes from 1 to 3"
    if _by_slices(facts) and math.prod(facts.ints("kernel_shape")) > _MOST_SLICES:
        return f"its windows are dilated, give indices or lie in the padding, and have over {_MOST_SLICES} elements"
    return ""


@lowers("MaxPool", dtypes=FLOATS, why_not=_odd_pool)
def lower_max_pool(site: Site) -> "Var | tuple[Var, Var]":
    mb, windows = site.mb, _windows(site)
    if not _by_slices(site):
        return mb.max_pool(x=site.var(), **_arguments(windows, site))
    lowest = float(np.finfo(NP_TYPES[site.dtype()]).min)
    slices = _slices(site, site.var(), windows, lowest)
    if not site.gives(1):
        return reduce(lambda x, y: mb.maximum(x=x, y=y), slices)
    places = _places(site, windows)
    best, where = slices[0], mb.const(val=places[0])
    where = site.broadcast(where, site.out_shape())
    for values, place in zip(slices[1:], places[1:], strict=True):
        better = mb.greater(x=values, y=best)
        best = mb.maximum(x=best, y=values)
        where = mb.select(cond=better, a=np.broadcast_to(place, site.out_shape()).copy(), b=where)
    return best, where


@lowers("AveragePool", dtypes=FLOATS, why_not=_odd_pool)
def lower_average_pool(site: Site) -> Var:
    """Padding counts if the node says so; what only `ceil_mode` adds never does."""
    mb, windows = site.mb, _windows(site)
    inside = bool(site.integer("count_include_pad", 0))
    overhangs = any(windows.overhang(site.shape()[2:]))
    if not _by_slices(site) and not (inside and overhangs):
        return mb.avg_pool(x=site.var(), exclude_padding_from_average=not inside, **_arguments(windows, site))
    total = reduce(lambda x, y: mb.add(x=x, y=y), _slices(site, site.var(), windows, 0.0))
    counts = [_counted(site, windows, at, inside) for at in range(len(windows.kernel))]
    counted = reduce(np.multiply.outer, counts)
    return mb.real_div(x=total, y=site.numbers(counted[None, None]))


@lowers("LpPool", dtypes=FLOATS, why_not=lambda facts: _odd_pool(facts))
def lower_lp_pool(site: Site) -> Var:
    mb, windows, power = site.mb, _windows(site), site.integer("p", 2)
    raised = mb.abs(x=site.var()) if power == 1 else mb.pow(x=mb.abs(x=site.var()), y=site.number(power))
    if _by_slices(site):
        total = reduce(lambda x, y: mb.add(x=x, y=y), _slices(site, raised, windows, 0.0))
    else:
        mean = mb.avg_pool(x=raised, exclude_padding_from_average=False, **_arguments(windows, site))
        total = mb.mul(x=mean, y=site.number(math.prod(windows.kernel)))
    return total if power == 1 else mb.pow(x=total, y=site.number(1 / power))


@lowers("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", dtypes=FLOATS)
def lower_global(site: Site) -> Var:
    mb, axes = site.mb, list(range(2, site.rank()))
    if site.op == "GlobalAveragePool":
        return mb.reduce_mean(x=site.var(), axes=axes, keep_dims=True)
    if site.op == "GlobalMaxPool":
        return mb.reduce_max(x=site.var(), axes=axes, keep_dims=True)
    power = site.integer("p", 2)
    raised = mb.pow(x=mb.abs(x=site.var()), y=site.number(power))
    return mb.pow(x=mb.reduce_sum(x=raised, axes=axes, keep_dims=True), y=site.number(1 / power))


def _arguments(windows: Windows, site: Site) -> "dict[str, object]":
    """MIL's ceil_mode takes symmetric pads only; a longer pad behind reaches the same windows."""
    more = windows.overhang(site.shape()[2:])
    pads = [by for (before, behind), far in zip(windows.pads, more, strict=True) for by in (before, behind + far)]
    return {
        "kernel_sizes": list(windows.kernel),
        "strides": list(windows.strides),
        "pad_type": "custom",
        "pad": pads,
    }


def _slices(site: Site, x: Var, windows: Windows, filler: float) -> list[Var]:
    """For each place in a window, that element of every window."""
    mb = site.mb
    more = windows.overhang(site.shape()[2:])
    pads = [0, 0, 0, 0]
    for (before, behind), far in zip(windows.pads, more, strict=True):
        pads += [before, behind + far]
    if any(pads):
        x = mb.pad(x=x, pad=pads, mode="constant", constant_val=site.number(filler))
    found = []
    for place in itertools.product(*map(range, windows.kernel)):
        begin = [0, 0, *[at * by for at, by in zip(place, windows.dilations, strict=True)]]
        reach = [
            first + (count - 1) * stride + 1
            for first, count, stride in zip(begin[2:], windows.outputs, windows.strides, strict=True)
        ]
        end = [*x.shape[:2], *reach]
        found.append(mb.slice_by_index(x=x, begin=begin, end=end, stride=[1, 1, *windows.strides]))
    return found


def _along(windows: Windows, axis: int) -> NDArray[np.int64]:
    """The coordinate in the input of each place of each window along an axis: [places, windows]."""
    starts = np.arange(windows.outputs[axis]) * windows.strides[axis] - windows.pads[axis][0]
    return np.arange(windows.kernel[axis])[:, None] * windows.dilations[axis] + starts


def _counted(site: Site, windows: Windows, axis: int, inside: bool) -> NDArray[np.int64]:
    where, size = _along(windows, axis), site.shape()[2 + axis]
    before, behind = windows.pads[axis] if inside else (0, 0)
    return np.asarray(((where >= -before) & (where < size + behind)).sum(0), np.int64)


def _places(site: Site, windows: Windows) -> list[NDArray[np.int32]]:
    """For each place in a window, its index in the flat input, for every window."""
    sizes, batch = site.shape()[2:], math.prod(site.shape()[:2])
    order = range(len(sizes)) if not site.integer("storage_order", 0) else range(len(sizes))[::-1]
    weights = dict.fromkeys(order, 0)
    step = 1
    for axis in reversed(list(order)):
        weights[axis], step = step, step * sizes[axis]
    along = [_along(windows, axis) * weights[axis] for axis in range(len(sizes))]
    planes = (np.arange(batch) * step).reshape(*site.shape()[:2], *[1] * len(sizes))
    found = []
    for place in itertools.product(*map(range, windows.kernel)):
        flat = reduce(np.add.outer, [each[at] for each, at in zip(along, place, strict=True)])
        found.append((planes + flat).astype(np.int32))
    return found
