"""Arithmetic of two numbers, and of any number of them."""

from functools import reduce

import numpy as np

from flagsplit.targets.mobile.coreml.lowering.facts import BOOL, BYTES, FLOATS, INTEGERS, NUMBERS, NodeFacts
from flagsplit.targets.mobile.coreml.lowering.registry import lowers
from flagsplit.targets.mobile.coreml.lowering.site import Site, Var

_SAME = {"Add": "add", "Sub": "sub", "Mul": "mul"}
_VARIADIC = {"Max": "maximum", "Min": "minimum", "Sum": "add", "Mean": "add"}


@lowers(*_SAME, dtypes=NUMBERS)
def lower_same(site: Site) -> Var:
    return getattr(site.mb, _SAME[site.op])(x=site.var(0), y=site.var(1))


@lowers("Div", dtypes=NUMBERS)
def lower_div(site: Site) -> Var:
    """Integers are divided towards zero, by way of their sizes: MIL rounds down."""
    mb, x, y = site.mb, site.var(0), site.var(1)
    if site.dtype() in FLOATS:
        return mb.real_div(x=x, y=y)
    size = mb.floor_div(x=mb.abs(x=x), y=mb.abs(x=y))
    return mb.mul(x=size, y=mb.mul(x=mb.sign(x=x), y=mb.sign(x=y)))


@lowers("Mod", dtypes=NUMBERS)
def lower_mod(site: Site) -> Var:
    """With `fmod` the sign is that of the dividend, else that of the divisor, as MIL's."""
    mb, x, y = site.mb, site.var(0), site.var(1)
    if not site.integer("fmod", 0):
        return mb.mod(x=x, y=y)
    return mb.mul(x=mb.sign(x=x), y=mb.mod(x=mb.abs(x=x), y=mb.abs(x=y)))


def _odd_pow(facts: NodeFacts) -> str:
    return "" if facts.dtype(1) in NUMBERS else "its exponent is no number"


@lowers("Pow", dtypes=NUMBERS, why_not=_odd_pow)
def lower_pow(site: Site) -> Var:
    """A whole base with an exponent that is not goes by way of float32."""
    mb, x, y = site.mb, site.var(0), site.var(1)
    if site.dtype(0) in INTEGERS and site.dtype(1) in FLOATS:
        made = mb.pow(x=mb.cast(x=x, dtype="fp32"), y=mb.cast(x=y, dtype="fp32"))
        return mb.cast(x=made, dtype="int32")
    exponent = site.const(1)
    if exponent is not None and exponent.size == 1 and exponent.item() == 2 and site.rank() >= site.rank(1):
        return mb.square(x=x)
    return mb.pow(x=x, y=site.cast(y, site.dtype(0)))


@lowers(*_VARIADIC, dtypes=NUMBERS, why_not=lambda facts: _whole_mean(facts))
def lower_variadic(site: Site) -> Var:
    mb, each = site.mb, site.all_vars()
    made = reduce(lambda x, y: getattr(mb, _VARIADIC[site.op])(x=x, y=y), each)
    if site.op == "Mean":
        made = mb.mul(x=made, y=site.number(1 / len(each)))
    return mb.identity(x=made) if len(each) == 1 else made


def _whole_mean(facts: NodeFacts) -> str:
    return "it is of integers" if facts.op == "Mean" and facts.dtype() in INTEGERS else ""


_COMPARISONS = {
    "Equal": "equal",
    "Greater": "greater",
    "GreaterOrEqual": "greater_equal",
    "Less": "less",
    "LessOrEqual": "less_equal",
}


@lowers(*_COMPARISONS)
def lower_comparison(site: Site) -> Var:
    x, y = site.as_int(site.var(0)), site.as_int(site.var(1))
    return getattr(site.mb, _COMPARISONS[site.op])(x=x, y=y)


_LOGICAL = {"And": "logical_and", "Or": "logical_or", "Xor": "logical_xor"}


@lowers(*_LOGICAL)
def lower_logical(site: Site) -> Var:
    return getattr(site.mb, _LOGICAL[site.op])(x=site.var(0), y=site.var(1))


@lowers("Not")
def lower_not(site: Site) -> Var:
    return site.mb.logical_not(x=site.var())


@lowers("Where")
def lower_where(site: Site) -> Var:
    """MIL's type rule leaves the condition's shape out, so at least one side is made of full shape."""
    mb, a, b = site.mb, site.var(1), site.var(2)
    if np.broadcast_shapes(site.shape(1), site.shape(2)) != site.out_shape():
        a = site.broadcast(a, site.out_shape())
    return mb.select(cond=site.var(0), a=a, b=b)


@lowers("Cast", "CastLike", bytes_too=True, why_not=lambda facts: _narrows(facts))
def lower_cast(site: Site) -> Var:
    made = site.cast(site.var(), site.out_dtype())
    return site.mb.identity(x=made) if made is site.var() else made


def _narrows(facts: NodeFacts) -> str:
    """Between bytes and int32 nothing happens in a program, so bytes may be widened only."""
    if facts.out_dtype() in BYTES and facts.dtype() not in {facts.out_dtype(), *BOOL}:
        return f"it narrows {facts.dtype().name.lower()} to {facts.out_dtype().name.lower()}"
    return ""
