"""Activations: functions of one number with parameters."""

from typing import Any

from flagsplit.targets.cloud.cuda.lowering.site import Kernel, Site, widened
from flagsplit.targets.cloud.cuda.rowwise import calls
from flagsplit.targets.cloud.cuda.sdk import torch


def lower_celu(site: Site) -> Kernel:
    """max(0, x) + min(0, a (e^(x/a) - 1))."""
    alpha = site.number("alpha", 1.0)
    return lambda x: torch.nn.functional.celu(x, alpha)


def lower_clip(site: Site) -> Kernel:
    """Between two bounds, each of which may be missing."""
    low, high = (_number(site.const(index)) for index in (1, 2))

    def kernel(x: Any, least: Any = None, most: Any = None) -> Any:
        if low is not None or high is not None:
            x = torch.clamp(x, min=low, max=high)
        x = x if least is None else torch.maximum(x, least)
        return x if most is None else torch.minimum(x, most)

    return kernel


def _number(array: Any) -> int | float | None:
    return None if array is None else array.reshape(-1)[0].item()


def lower_elu(site: Site) -> Kernel:
    """x, or a (e^x - 1) below 0."""
    alpha = site.number("alpha", 1.0)
    return lambda x: torch.nn.functional.elu(x, alpha)


def lower_gelu(site: Site) -> Kernel:
    """x times the normal distribution's cumulative function, or its approximation by tanh."""
    approximate = site.text("approximate", "none")
    return lambda x: torch.nn.functional.gelu(x, approximate=approximate)


def lower_hard_sigmoid(site: Site) -> Kernel:
    """A line between 0 and 1."""
    alpha, beta = site.number("alpha", 0.2), site.number("beta", 0.5)
    return lambda x: torch.clamp(x * alpha + beta, 0, 1)


def lower_hard_swish(_site: Site) -> Kernel:
    """x clip(x + 3, 0, 6) / 6."""
    return lambda x: torch.nn.functional.hardswish(x)


def lower_leaky_relu(site: Site) -> Kernel:
    """x, or a x below 0."""
    alpha = site.number("alpha", 0.01)
    return lambda x: torch.where(x >= 0, x, x * alpha)


def lower_mish(_site: Site) -> Kernel:
    """x tanh(log(1 + e^x))."""
    return lambda x: torch.nn.functional.mish(x)


def lower_prelu(_site: Site) -> Kernel:
    """x, or a slope times x below 0."""
    return lambda x, slope: torch.where(x >= 0, x, x * slope)


def lower_selu(site: Site) -> Kernel:
    """Scaled x, or scaled a (e^x - 1) below 0."""
    alpha = site.number("alpha", 1.67326319217681884765625)
    gamma = site.number("gamma", 1.05070102214813232421875)
    return lambda x: gamma * torch.nn.functional.elu(x, alpha)


def lower_shrink(site: Site) -> Kernel:
    """0 near 0, and moved towards 0 beyond."""
    bias, bound = site.number("bias", 0.0), site.number("lambd", 0.5)
    return lambda x: torch.where(x < -bound, x + bias, torch.where(x > bound, x - bias, torch.zeros_like(x)))


def lower_softplus(_site: Site) -> Kernel:
    """log(1 + e^x)."""
    return lambda x: torch.nn.functional.softplus(widened(x))


def lower_softsign(_site: Site) -> Kernel:
    """x / (1 + |x|)."""
    return lambda x: torch.nn.functional.softsign(x)


def lower_swish(site: Site) -> Kernel:
    """x times the sigmoid of a x."""
    alpha = site.number("alpha", 1.0)
    return lambda x: torch.nn.functional.silu(x) if alpha == 1 else x * torch.sigmoid(x * alpha)


def lower_thresholded_relu(site: Site) -> Kernel:
    """x above a bound, else 0."""
    alpha = site.number("alpha", 1.0)
    return lambda x: torch.where(x > alpha, x, torch.zeros_like(x))


def lower_gate(_site: Site) -> Kernel:
    """silu(a) b, as the pass for steps makes it."""
    return calls.gate
