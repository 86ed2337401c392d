"""Taking tensors apart and putting them together."""

import numpy as np
from numpy.typing import NDArray

from flagsplit.targets.mobile.coreml.lowering.facts import FLOATS, NodeFacts
from flagsplit.targets.mobile.coreml.lowering.registry import lowers
from flagsplit.targets.mobile.coreml.lowering.site import Site, Var

_END = 1 << 31


@lowers("Concat", why_not=lambda facts: "its operands are scalars" if not facts.rank() else "")
def lower_concat(site: Site) -> Var:
    each = site.all_vars()
    if len(each) == 1:
        return site.mb.identity(x=each[0])
    return site.mb.concat(values=each, axis=site.axis(0))


@lowers("Split", const=(1,))
def lower_split(site: Site) -> tuple[Var, ...]:
    mb, axis = site.mb, site.axis(0)
    sizes = [site.out_shape(at)[axis] for at in range(site.outputs)]
    if len(sizes) == 1:
        return (mb.identity(x=site.var()),)
    return tuple(mb.split(x=site.var(), split_sizes=sizes, axis=axis))


def _odd_slice(facts: NodeFacts) -> str:
    return "a step is 0" if 0 in facts.const_ints(4) else ""


@lowers("Slice", const=(1, 2, 3, 4), why_not=_odd_slice)
def lower_slice(site: Site) -> Var:
    """Sizes are known, so all bounds are written as they are reached; beyond the front only a mask can say it."""
    shape, rank = site.shape(), site.rank()
    starts, ends = site.const_ints(1), site.const_ints(2)
    axes = [axis % rank for axis in site.const_ints(3, range(len(starts)))]
    strides = site.const_ints(4, [1] * len(starts))
    begin, end, stride, masks = [0] * rank, list(shape), [1] * rank, [False] * rank
    for axis, first, last, step in zip(axes, starts, ends, strides, strict=True):
        step = max(-_END + 1, min(step, _END - 1))
        reached = range(*slice(first, last, step).indices(shape[axis]))
        begin[axis], end[axis], stride[axis] = reached[0], reached[-1] + (1 if step > 0 else -1), step
        masks[axis] = end[axis] < 0
        if len(reached) == 1:
            end[axis], stride[axis], masks[axis] = begin[axis] + 1, 1, False
    if begin == [0] * rank and end == list(shape) and set(stride) == {1}:
        return site.mb.identity(x=site.var())
    return site.mb.slice_by_index(
        x=site.var(),
        begin=begin,
        end=[max(each, 0) for each in end],
        stride=stride,
        **({"end_mask": masks} if any(masks) else {}),
    )


def _pads(facts: NodeFacts) -> list[tuple[int, int]]:
    """How much is put before and behind along each axis; below 0 is taken away."""
    given = facts.const_ints(1)
    axes = [axis % facts.rank() for axis in facts.const_ints(3, range(facts.rank()))]
    found = [(0, 0)] * facts.rank()
    for at, axis in enumerate(axes):
        found[axis] = (given[at], given[at + len(axes)])
    return found


def _odd_pad(facts: NodeFacts) -> str:
    if not facts.rank():
        return "it pads a scalar"
    if facts.text("mode", "constant") == "constant":
        return ""
    kept = [size + min(a, 0) + min(b, 0) for size, (a, b) in zip(facts.shape(), _pads(facts), strict=True)]
    return "it takes away all elements" if min(kept) < 1 else ""


@lowers("Pad", const=(1, 2, 3), why_not=_odd_pad)
def lower_pad(site: Site) -> Var:
    mode, pads, x = site.text("mode", "constant"), _pads(site), site.var()
    if mode == "constant":
        return _constant_pad(site, x, pads)
    names = {"reflect": "reflect", "edge": "replicate"}
    last_two = site.rank() >= 3 and all(pair == (0, 0) for pair in pads[:-2])
    small = all(0 <= by < size for size, pair in zip(site.shape(), pads, strict=True) for by in pair)
    if mode in names and last_two and small and site.dtype() in FLOATS:
        return site.mb.pad(x=x, pad=[by for pair in pads for by in pair], mode=names[mode])
    for axis, (before, behind) in enumerate(pads):
        if (before, behind) != (0, 0):
            x = site.take(x, _sources(site.shape()[axis], before, behind, mode), axis)
    return site.mb.identity(x=x) if x is site.var() else x


def _sources(size: int, before: int, behind: int, mode: str) -> NDArray[np.int64]:
    kept = np.arange(size)[max(-before, 0) : size - max(-behind, 0)]
    return np.pad(kept, (max(before, 0), max(behind, 0)), mode=mode)  # type: ignore[call-overload,no-any-return]


def _constant_pad(site: Site, x: Var, pads: list[tuple[int, int]]) -> Var:
    """Floats with MIL's own operator, integers and bools by putting constants beside them."""
    mb, filler = site.mb, site.const(2)
    number = 0 if filler is None else filler.item()
    for axis, (before, behind) in enumerate(pads):
        x = site.cut(x, axis, max(-before, 0), x.shape[axis] - max(-behind, 0))
    more = [(max(before, 0), max(behind, 0)) for before, behind in pads]
    if not any(by for pair in more for by in pair):
        return mb.identity(x=x)
    if site.dtype() in FLOATS:
        flat = [by for pair in more for by in pair]
        return mb.pad(x=x, pad=flat, mode="constant", constant_val=site.number(number))
    for axis, pair in enumerate(more):
        sides = []
        for by in pair:
            shape = list(x.shape)
            shape[axis] = by
            sides.append([site.numbers(np.full(shape, number))] if by else [])
        if sides[0] or sides[1]:
            x = mb.concat(values=[*sides[0], x, *sides[1]], axis=axis)
    return x


@lowers("ReverseSequence")
def lower_reverse_sequence(site: Site) -> Var:
    batch, time = site.integer("batch_axis", 1), site.integer("time_axis", 0)
    return site.mb.reverse_sequence(x=site.var(), lengths=site.var(1), seq_axis=time, batch_axis=batch)


@lowers("DepthToSpace", dtypes=FLOATS)
def lower_depth_to_space(site: Site) -> Var:
    size = site.integer("blocksize")
    if site.text("mode", "DCR") == "CRD":
        return site.mb.pixel_shuffle(x=site.var(), upscale_factor=size)
    return site.mb.depth_to_space(x=site.var(), block_size=size)


@lowers("SpaceToDepth", dtypes=FLOATS)
def lower_space_to_depth(site: Site) -> Var:
    return site.mb.space_to_depth(x=site.var(), block_size=site.integer("blocksize"))
