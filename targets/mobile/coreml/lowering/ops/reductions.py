"""Reductions, and where along an axis the largest or smallest lies."""

import numpy as np

from flagsplit.targets.mobile.coreml.lowering.facts import BOOL, FLOATS, INTEGERS, NUMBERS, NodeFacts
from flagsplit.targets.mobile.coreml.lowering.registry import lowers
from flagsplit.targets.mobile.coreml.lowering.site import Site, Var

_OPERATORS = {
    "ReduceL1": "reduce_l1_norm",
    "ReduceL2": "reduce_l2_norm",
    "ReduceLogSum": "",
    "ReduceLogSumExp": "reduce_log_sum_exp",
    "ReduceMax": "reduce_max",
    "ReduceMean": "reduce_mean",
    "ReduceMin": "reduce_min",
    "ReduceProd": "reduce_prod",
    "ReduceSum": "reduce_sum",
    "ReduceSumSquare": "reduce_sum_square",
}
_WHOLE = frozenset(("ReduceL1", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare"))
_OF_BOOL = frozenset(("ReduceMax", "ReduceMin"))


def _odd_type(facts: NodeFacts) -> str:
    if facts.dtype() in INTEGERS and facts.op not in _WHOLE:
        return "it is of integers"
    return "it is of bools" if facts.dtype() in BOOL and facts.op not in _OF_BOOL else ""


@lowers(*_OPERATORS, const=(1,), why_not=_odd_type)
def lower_reduction(site: Site) -> Var:
    mb, x, rank = site.mb, site.as_int(site.var()), site.rank()
    axes = sorted({axis % rank for axis in site.const_ints(1, site.ints("axes"))} if rank else ())
    if not axes and not site.integer("noop_with_empty_axes", 0):
        axes = list(range(rank))
    made = _reduced(site, x, axes)
    return mb.cast(x=made, dtype="bool") if site.dtype() in BOOL else made


def _reduced(site: Site, x: Var, axes: list[int]) -> Var:
    mb, keep = site.mb, bool(site.integer("keepdims", 1))
    if not axes:
        return _of_one(site, x)
    if site.op == "ReduceLogSum":
        return mb.log(x=mb.reduce_sum(x=x, axes=axes, keep_dims=keep), epsilon=site.number(0))
    if site.op == "ReduceLogSumExp":
        return _log_sum_exp(site, x, axes, keep)
    return getattr(mb, _OPERATORS[site.op])(x=x, axes=axes, keep_dims=keep)


def _log_sum_exp(site: Site, x: Var, axes: list[int], keep: bool) -> Var:
    """Around the largest, so that exp cannot overflow."""
    mb = site.mb
    top = mb.reduce_max(x=x, axes=axes, keep_dims=True)
    total = mb.reduce_sum(x=mb.exp(x=mb.sub(x=x, y=top)), axes=axes, keep_dims=True)
    made = mb.add(x=mb.log(x=total, epsilon=site.number(0)), y=top)
    return made if keep else site.reshape(made, site.out_shape())


def _of_one(site: Site, x: Var) -> Var:
    """What reducing each element by itself gives."""
    mb = site.mb
    if site.op in ("ReduceL1", "ReduceL2"):
        return mb.abs(x=x)
    if site.op == "ReduceSumSquare":
        return mb.square(x=x)
    if site.op == "ReduceLogSum":
        return mb.log(x=x, epsilon=site.number(0))
    return mb.identity(x=x)


@lowers("ArgMax", "ArgMin", dtypes=NUMBERS)
def lower_arg(site: Site) -> Var:
    """The last of equals is found as the first from behind."""
    mb, x, axis = site.mb, site.var(), site.axis()
    find = mb.reduce_argmax if site.op == "ArgMax" else mb.reduce_argmin
    keep = bool(site.integer("keepdims", 1))
    if not site.integer("select_last_index", 0):
        return find(x=x, axis=axis, keep_dims=keep)
    found = find(x=mb.reverse(x=x, axes=[axis]), axis=axis, keep_dims=keep)
    return mb.sub(x=np.int32(site.shape()[axis] - 1), y=found)


@lowers("Hardmax", dtypes=FLOATS)
def lower_hardmax(site: Site) -> Var:
    mb, axis = site.mb, site.axis(-1)
    found = mb.reduce_argmax(x=site.var(), axis=axis, keep_dims=True)
    sizes = [1] * site.rank()
    sizes[axis] = site.shape()[axis]
    places = np.arange(site.shape()[axis], dtype=np.int32).reshape(sizes)
    return site.cast(mb.equal(x=found, y=places), site.dtype())


@lowers("TopK", dtypes=NUMBERS, const=(1,))
def lower_top_k(site: Site) -> tuple[Var, Var]:
    size = site.const_ints(1)[0]
    smallest = not site.integer("largest", 1)
    values, places = site.mb.topk(x=site.var(), k=size, axis=site.axis(-1), ascending=smallest)
    return values, places


@lowers("CumSum", dtypes=NUMBERS, const=(1,))
def lower_cum_sum(site: Site) -> Var:
    axis = site.const_ints(1)[0] % site.rank()
    backward, apart = bool(site.integer("reverse", 0)), bool(site.integer("exclusive", 0))
    return site.mb.cumsum(x=site.var(), axis=axis, exclusive=apart, reverse=backward)


@lowers("Softmax", dtypes=FLOATS)
def lower_softmax(site: Site) -> Var:
    return site.mb.softmax(x=site.var(), axis=site.axis(-1))


@lowers("LogSoftmax", dtypes=FLOATS)
def lower_log_softmax(site: Site) -> Var:
    mb, x, axes = site.mb, site.var(), [site.axis(-1)]
    centred = mb.sub(x=x, y=mb.reduce_max(x=x, axes=axes, keep_dims=True))
    total = mb.reduce_sum(x=mb.exp(x=centred), axes=axes, keep_dims=True)
    return mb.sub(x=centred, y=mb.log(x=total, epsilon=site.number(0)))
