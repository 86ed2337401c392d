"""Functions of one number that Core ML has under another name or needs a line for."""

import numpy as np

from flagsplit.targets.mobile.coreml.lowering.facts import FLOATS, INTEGERS, NUMBERS
from flagsplit.targets.mobile.coreml.lowering.registry import lowers
from flagsplit.targets.mobile.coreml.lowering.site import Site, Var

_SAME = {
    "Acos": "acos",
    "Asin": "asin",
    "Atan": "atan",
    "Atanh": "atanh",
    "Ceil": "ceil",
    "Cos": "cos",
    "Cosh": "cosh",
    "Erf": "erf",
    "Exp": "exp",
    "Floor": "floor",
    "Round": "round",
    "Sigmoid": "sigmoid",
    "Sin": "sin",
    "Sinh": "sinh",
    "Softplus": "softplus",
    "Softsign": "softsign",
    "Sqrt": "sqrt",
    "Tan": "tan",
    "Tanh": "tanh",
}


@lowers(*_SAME, dtypes=FLOATS)
def lower_same(site: Site) -> Var:
    return getattr(site.mb, _SAME[site.op])(x=site.var())


@lowers("Abs", dtypes=NUMBERS)
def lower_abs(site: Site) -> Var:
    return site.mb.abs(x=site.var())


@lowers("Sign", dtypes=NUMBERS)
def lower_sign(site: Site) -> Var:
    return site.mb.sign(x=site.var())


@lowers("BitwiseNot", dtypes=INTEGERS)
def lower_bitwise_not(site: Site) -> Var:
    """-x - 1, in two's complement."""
    return site.mb.sub(x=np.int32(-1), y=site.var())


@lowers("Neg", dtypes=NUMBERS)
def lower_neg(site: Site) -> Var:
    return site.mb.mul(x=site.var(), y=site.number(-1))


@lowers("Relu", dtypes=NUMBERS)
def lower_relu(site: Site) -> Var:
    if site.dtype() in INTEGERS:
        return site.mb.maximum(x=site.var(), y=np.int32(0))
    return site.mb.relu(x=site.var())


@lowers("Reciprocal", dtypes=FLOATS)
def lower_reciprocal(site: Site) -> Var:
    return site.mb.real_div(x=site.number(1), y=site.var())


@lowers("Log", dtypes=FLOATS)
def lower_log(site: Site) -> Var:
    return site.mb.log(x=site.var(), epsilon=site.number(0))


@lowers("Acosh", dtypes=FLOATS)
def lower_acosh(site: Site) -> Var:
    """log(x + sqrt(x - 1) sqrt(x + 1)), which does not cancel near 1 as sqrt(x x - 1) does."""
    mb, x = site.mb, site.var()
    below, above = (mb.sqrt(x=mb.add(x=x, y=site.number(one))) for one in (-1, 1))
    return mb.log(x=mb.add(x=x, y=mb.mul(x=below, y=above)), epsilon=site.number(0))


@lowers("Asinh", dtypes=FLOATS)
def lower_asinh(site: Site) -> Var:
    """Of the size, as the logarithm cancels below zero."""
    mb, x = site.mb, site.var()
    size = mb.abs(x=x)
    root = mb.sqrt(x=mb.add(x=mb.square(x=size), y=site.number(1)))
    return mb.mul(x=mb.sign(x=x), y=mb.log(x=mb.add(x=size, y=root), epsilon=site.number(0)))


@lowers("IsNaN", dtypes=FLOATS)
def lower_isnan(site: Site) -> Var:
    return site.mb.not_equal(x=site.var(), y=site.var())


@lowers("IsInf", dtypes=FLOATS)
def lower_isinf(site: Site) -> Var:
    mb, x = site.mb, site.var()
    above, below = site.integer("detect_positive", 1), site.integer("detect_negative", 1)
    if above and below:
        return mb.equal(x=mb.abs(x=x), y=site.number(np.inf))
    if not above and not below:
        return mb.less(x=mb.abs(x=x), y=site.number(0))
    return mb.equal(x=x, y=site.number(np.inf if above else -np.inf))
