"""Activations with parameters."""

import math

import numpy as np

from flagsplit.targets.mobile.coreml.lowering.facts import ALL, FLOATS, NUMBERS, NodeFacts
from flagsplit.targets.mobile.coreml.lowering.registry import lowers
from flagsplit.targets.mobile.coreml.lowering.site import Site, Var


@lowers("Elu", dtypes=FLOATS)
def lower_elu(site: Site) -> Var:
    return site.mb.elu(x=site.var(), alpha=site.number(site.real("alpha", 1.0)))


@lowers("LeakyRelu", dtypes=FLOATS)
def lower_leaky_relu(site: Site) -> Var:
    return site.mb.leaky_relu(x=site.var(), alpha=site.number(site.real("alpha", 0.01)))


@lowers("HardSigmoid", dtypes=FLOATS)
def lower_hard_sigmoid(site: Site) -> Var:
    alpha, beta = site.number(site.real("alpha", 0.2)), site.number(site.real("beta", 0.5))
    return site.mb.sigmoid_hard(x=site.var(), alpha=alpha, beta=beta)


@lowers("HardSwish", dtypes=FLOATS)
def lower_hard_swish(site: Site) -> Var:
    gate = site.mb.sigmoid_hard(x=site.var(), alpha=site.number(1 / 6), beta=site.number(0.5))
    return site.mb.mul(x=site.var(), y=gate)


@lowers("Selu", dtypes=FLOATS)
def lower_selu(site: Site) -> Var:
    alpha, gamma = site.real("alpha", 1.67326319217681884765625), site.real("gamma", 1.05070102214813232421875)
    return site.mb.mul(x=site.mb.elu(x=site.var(), alpha=site.number(alpha)), y=site.number(gamma))


@lowers("Celu", dtypes=FLOATS)
def lower_celu(site: Site) -> Var:
    mb, alpha = site.mb, site.number(site.real("alpha", 1.0))
    scaled = mb.elu(x=mb.real_div(x=site.var(), y=alpha), alpha=site.number(1))
    return mb.mul(x=scaled, y=alpha)


@lowers("ThresholdedRelu", dtypes=FLOATS)
def lower_thresholded_relu(site: Site) -> Var:
    """Not MIL's own, which keeps what equals the threshold."""
    mb, x = site.mb, site.var()
    above = mb.greater(x=x, y=site.number(site.real("alpha", 1.0)))
    return mb.select(cond=above, a=x, b=site.number(0))


@lowers("Shrink", dtypes=FLOATS)
def lower_shrink(site: Site) -> Var:
    mb, x = site.mb, site.var()
    bias, edge = site.real("bias", 0.0), site.real("lambd", 0.5)
    down, up = (mb.add(x=x, y=site.number(by)) for by in (-bias, bias))
    inner = mb.select(cond=mb.less(x=x, y=site.number(-edge)), a=up, b=site.number(0))
    return mb.select(cond=mb.greater(x=x, y=site.number(edge)), a=down, b=inner)


@lowers("PRelu", dtypes=NUMBERS)
def lower_prelu(site: Site) -> Var:
    mb, x = site.mb, site.var()
    slope, rank = site.const(1), site.rank()
    per_channel = (1,) * (rank - site.rank(1)) + site.shape(1) if rank >= site.rank(1) else ()
    channels = (1, site.shape()[1], *[1] * (rank - 2)) if rank >= 3 else ()
    if slope is not None and per_channel == channels and site.dtype() in FLOATS:
        return mb.prelu(x=x, alpha=slope.reshape(-1))
    below = mb.less(x=x, y=site.number(0))
    return mb.select(cond=below, a=mb.mul(x=x, y=site.var(1)), b=x)


@lowers("Gelu", dtypes=FLOATS)
def lower_gelu(site: Site) -> Var:
    mode = "TANH_APPROXIMATION" if site.text("approximate", "none") == "tanh" else "EXACT"
    return site.mb.gelu(x=site.var(), mode=mode)


@lowers("Mish", dtypes=FLOATS)
def lower_mish(site: Site) -> Var:
    return site.mb.mul(x=site.var(), y=site.mb.tanh(x=site.mb.softplus(x=site.var())))


@lowers("Clip", dtypes=NUMBERS)
def lower_clip(site: Site) -> Var:
    mb, x = site.mb, site.var()
    low, high = site.const(1), site.const(2)
    bounds = [each.item() for each in (low, high) if each is not None]
    if site.dtype() in FLOATS and len(bounds) == 2 and bounds[0] <= bounds[1] and all(map(math.isfinite, bounds)):
        return mb.clip(x=x, alpha=site.number(bounds[0]), beta=site.number(bounds[1]))
    made = x
    if site.has(1):
        made = mb.maximum(x=made, y=site.var(1))
    if site.has(2):
        made = mb.minimum(x=made, y=site.var(2))
    return mb.identity(x=x) if made is x else made


@lowers("Identity", dtypes=ALL, bytes_too=True)
def lower_identity(site: Site) -> Var:
    return site.mb.identity(x=site.var())


def _trains(facts: NodeFacts) -> str:
    mode = facts.const(2)
    return "it is in training mode" if mode is not None and bool(mode.item()) else ""


@lowers("Dropout", dtypes=FLOATS, const=(2,), why_not=_trains)
def lower_dropout(site: Site) -> tuple[Var, Var]:
    mask = site.mb.const(val=np.ones(site.shape(), bool)) if site.gives(1) else None
    return site.mb.identity(x=site.var()), mask
