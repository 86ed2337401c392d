"""Operators that only give the same elements another shape, all of which is known."""

import numpy as np

from flagsplit.targets.mobile.coreml.lowering.facts import NodeFacts
from flagsplit.targets.mobile.coreml.lowering.registry import lowers
from flagsplit.targets.mobile.coreml.lowering.site import MIL_NAMES, NP_TYPES, Site, Var


@lowers("Reshape", "Squeeze", "Unsqueeze", const=(1,), bytes_too=True)
@lowers("Flatten", bytes_too=True)
def lower_reshape(site: Site) -> Var:
    made = site.reshape(site.var(), site.out_shape())
    return site.mb.identity(x=made) if made is site.var() else made


@lowers("Transpose", bytes_too=True)
def lower_transpose(site: Site) -> Var:
    perm = site.ints("perm", range(site.rank())[::-1])
    made = site.transpose(site.var(), perm)
    return site.mb.identity(x=made) if made is site.var() else made


@lowers("Shape", "Size")
def lower_shape(site: Site) -> Var:
    """Constants, as all shapes are fixed."""
    if site.op == "Size":
        return site.mb.const(val=np.int32(np.prod(site.shape(), dtype=np.int64)))
    sizes = site.shape()[site.integer("start", 0) :]
    if "end" in site.node.attributes:
        sizes = site.shape()[slice(site.integer("start", 0), site.integer("end"))]
    return site.mb.const(val=np.asarray(sizes, np.int32))


@lowers("Expand", const=(1,), bytes_too=True)
def lower_expand(site: Site) -> Var:
    made = site.broadcast(site.var(), site.out_shape())
    return site.mb.identity(x=made) if made is site.var() else made


@lowers("Tile", const=(1,))
def lower_tile(site: Site) -> Var:
    reps = site.const_ints(1)
    return site.mb.tile(x=site.var(), reps=reps) if reps else site.mb.identity(x=site.var())


@lowers("ConstantOfShape", const=(0,))
def lower_constant_of_shape(site: Site) -> Var:
    given = site.node.attributes.get("value")
    number = 0 if given is None else given.as_tensor().numpy().reshape(-1)[0]
    return site.mb.const(val=site.cast_const(np.full(site.out_shape(), number, NP_TYPES[site.out_dtype()])))


@lowers("EyeLike")
def lower_eye_like(site: Site) -> Var:
    rows, columns = site.shape()
    return site.mb.const(val=np.eye(rows, columns, site.integer("k", 0), NP_TYPES[site.out_dtype()]))


@lowers("Range", const=(0, 1, 2))
def lower_range(site: Site) -> Var:
    start, limit, step = (site.const(at) for at in range(3))
    assert start is not None
    assert limit is not None
    assert step is not None
    numbers = np.arange(start.item(), limit.item(), step.item())
    return site.mb.const(val=numbers[: site.out_shape()[0]].astype(NP_TYPES[site.out_dtype()]))


def _odd_diagonal(facts: NodeFacts) -> str:
    return "its operand is of rank below 2" if facts.rank() < 2 else ""


@lowers("Trilu", const=(1,), why_not=_odd_diagonal)
def lower_trilu(site: Site) -> Var:
    mb, (rows, columns) = site.mb, site.shape()[-2:]
    beside = (site.const_ints(1) or [0])[0]
    ones = np.ones((rows, columns), bool)
    kept = np.triu(ones, beside) if site.integer("upper", 1) else np.tril(ones, beside)
    kept = kept.reshape([1] * (site.rank() - 2) + [rows, columns])
    if MIL_NAMES[site.dtype()] == "bool":
        return mb.logical_and(x=site.var(), y=kept)
    return mb.select(cond=kept, a=site.var(), b=site.number(0))
