"""Normalizations."""

from collections.abc import Sequence

import numpy as np

from flagsplit.targets.mobile.coreml.lowering.facts import FLOATS, NodeFacts
from flagsplit.targets.mobile.coreml.lowering.registry import lowers
from flagsplit.targets.mobile.coreml.lowering.site import Site, Var


@lowers("BatchNormalization", dtypes=FLOATS, why_not=lambda facts: _trains(facts))
def lower_batch_normalization(site: Site) -> Var:
    """With computed statistics, or in other than 1 to 3 dimensions, by arithmetic."""
    mb, epsilon = site.mb, site.number(site.real("epsilon", 1e-5))
    if all(site.is_const(at) for at in range(1, 5)) and 3 <= site.rank() <= 5:
        gamma, beta, mean, variance = (site.var(at) for at in range(1, 5))
        return mb.batch_norm(x=site.var(), mean=mean, variance=variance, gamma=gamma, beta=beta, epsilon=epsilon)
    shape = [1, site.shape()[1], *[1] * (site.rank() - 2)]
    gamma, beta, mean, variance = (site.reshape(site.var(at), shape) for at in range(1, 5))
    scale = mb.mul(x=gamma, y=_inverse_root(site, variance, epsilon))
    return mb.add(x=mb.mul(x=mb.sub(x=site.var(), y=mean), y=scale), y=beta)


def _trains(facts: NodeFacts) -> str:
    if facts.integer("training_mode", 0):
        return "it is in training mode"
    return "" if facts.rank() >= 2 else "its operand is of rank below 2"


def _inverse_root(site: Site, x: Var, epsilon: "object") -> Var:
    return site.mb.rsqrt(x=x, epsilon=epsilon)


def _centred(site: Site, x: Var, axes: list[int], epsilon: float) -> tuple[Var, Var, Var]:
    """x without its mean and of variance 1, its mean, and the inverse of its deviation."""
    mb = site.mb
    mean = mb.reduce_mean(x=x, axes=axes, keep_dims=True)
    apart = mb.sub(x=x, y=mean)
    variance = mb.reduce_mean(x=mb.square(x=apart), axes=axes, keep_dims=True)
    inverse = _inverse_root(site, variance, site.number(epsilon))
    return mb.mul(x=apart, y=inverse), mean, inverse


@lowers("LayerNormalization", dtypes=FLOATS)
def lower_layer_normalization(site: Site) -> "Var | tuple[Var, Var | None, Var | None]":
    mb, axes = site.mb, list(range(site.axis(-1), site.rank()))
    epsilon = site.real("epsilon", 1e-5)
    fits = all(site.is_const(at) and site.shape(at) == site.shape()[axes[0] :] for at in (1, 2) if site.has(at))
    if fits and not site.gives(1) and not site.gives(2):
        beta = {"beta": site.var(2)} if site.has(2) else {}
        return mb.layer_norm(x=site.var(), axes=axes, gamma=site.var(1), epsilon=site.number(epsilon), **beta)
    made, mean, inverse = _centred(site, site.var(), axes, epsilon)
    made = mb.mul(x=made, y=site.var(1))
    if site.has(2):
        made = mb.add(x=made, y=site.var(2))
    kept = [site.cast(var, site.out_dtype(at)) if site.gives(at) else None for at, var in ((1, mean), (2, inverse))]
    return made, kept[0], kept[1]


@lowers("RMSNormalization", dtypes=FLOATS)
def lower_rms_normalization(site: Site) -> Var:
    mb, axes = site.mb, list(range(site.axis(-1), site.rank()))
    mean = mb.reduce_mean(x=mb.square(x=site.var()), axes=axes, keep_dims=True)
    inverse = _inverse_root(site, mean, site.number(site.real("epsilon", 1e-5)))
    return mb.mul(x=mb.mul(x=site.var(), y=inverse), y=site.var(1))


@lowers("InstanceNormalization", dtypes=FLOATS)
def lower_instance_normalization(site: Site) -> Var:
    mb, epsilon = site.mb, site.real("epsilon", 1e-5)
    if site.is_const(1) and site.is_const(2) and site.rank() in (3, 4):
        return mb.instance_norm(x=site.var(), gamma=site.var(1), beta=site.var(2), epsilon=site.number(epsilon))
    made, _, _ = _centred(site, site.var(), list(range(2, site.rank())), epsilon)
    return _per_channel(site, made)


def _per_channel(site: Site, x: Var) -> Var:
    shape = [1, site.shape()[1], *[1] * (site.rank() - 2)]
    scale, bias = (site.reshape(site.var(at), shape) for at in (1, 2))
    return site.mb.add(x=site.mb.mul(x=x, y=scale), y=bias)


@lowers("GroupNormalization", dtypes=FLOATS)
def lower_group_normalization(site: Site) -> Var:
    shape, groups = site.shape(), site.integer("num_groups")
    grouped = site.reshape(site.var(), (shape[0], groups, int(np.prod(shape[1:])) // groups))
    made, _, _ = _centred(site, grouped, [2], site.real("epsilon", 1e-5))
    return _per_channel(site, site.reshape(made, shape))


@lowers("MeanVarianceNormalization", dtypes=FLOATS)
def lower_mean_variance(site: Site) -> Var:
    """ONNX adds 1e-9 to the deviation, not to the variance."""
    mb, axes = site.mb, [axis % site.rank() for axis in site.ints("axes", [0, 2, 3])]
    apart = mb.sub(x=site.var(), y=mb.reduce_mean(x=site.var(), axes=axes, keep_dims=True))
    variance = mb.reduce_mean(x=mb.square(x=apart), axes=axes, keep_dims=True)
    return mb.real_div(x=apart, y=mb.add(x=mb.sqrt(x=variance), y=site.number(1e-9)))


@lowers("LpNormalization", dtypes=FLOATS)
def lower_lp_normalization(site: Site) -> Var:
    """Of nothing but zeros ONNX gives zeros."""
    mb, axes = site.mb, [site.axis(-1)]
    norm = mb.reduce_l1_norm if site.integer("p", 2) == 1 else mb.reduce_l2_norm
    size = norm(x=site.var(), axes=axes, keep_dims=True)
    none = mb.equal(x=size, y=site.number(0))
    return mb.real_div(x=site.var(), y=mb.select(cond=none, a=site.number(1), b=size))


@lowers("LRN", dtypes=FLOATS)
def lower_lrn(site: Site) -> Var:
    """The channels around each one, as slices of the padded squares; ONNX has the odd one in front if size is even."""
    mb, size, channels = site.mb, site.integer("size"), site.shape()[1]
    before = (size - 1) // 2
    pads: Sequence[int] = [0, 0, before, size - 1 - before, *[0] * 2 * (site.rank() - 2)]
    squares = mb.pad(x=mb.square(x=site.var()), pad=list(pads), mode="constant", constant_val=site.number(0))
    total = None
    for at in range(size):
        part = site.cut(squares, 1, at, at + channels)
        total = part if total is None else mb.add(x=total, y=part)
    scaled = mb.mul(x=total, y=site.number(site.real("alpha", 1e-4) / size))
    base = mb.add(x=scaled, y=site.number(site.real("bias", 1.0)))
    return mb.mul(x=site.var(), y=mb.pow(x=base, y=site.number(-site.real("beta", 0.75))))
