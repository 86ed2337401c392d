"""Normalizations. Their statistics are computed in float32 at least."""

from typing import Any

from flagsplit.targets.cloud.cuda.lowering.site import Kernel, Refused, Site, widened
from flagsplit.targets.cloud.cuda.rowwise import calls
from flagsplit.targets.cloud.cuda.sdk import torch


def lower_batch(site: Site) -> Kernel:
    """By given means and variances of the channels."""
    epsilon, rank = site.number("epsilon", 1e-5), site.rank(0)
    if site.integer("training_mode", 0):
        raise Refused("it normalizes by its own batch in training mode only, which is not for inference")

    def kernel(x: Any, scale: Any, bias: Any, mean: Any, variance: Any) -> Any:
        shape = [1, -1, *[1] * (rank - 2)]
        factor = widened(scale) * torch.rsqrt(widened(variance) + epsilon)
        offset = widened(bias) - widened(mean) * factor
        return widened(x) * factor.reshape(shape) + offset.reshape(shape)

    return kernel


def lower_instance(site: Site) -> Kernel:
    """By each channel's own mean and variance."""
    epsilon = site.number("epsilon", 1e-5)

    def kernel(x: Any, scale: Any, bias: Any) -> Any:
        shape = [1, -1, *[1] * (x.dim() - 2)]
        made = _centered(widened(x), list(range(2, x.dim())), epsilon)
        return made * scale.reshape(shape) + bias.reshape(shape)

    return kernel


def lower_group(site: Site) -> Kernel:
    """By the mean and variance of groups of channels."""
    groups, epsilon = site.integer("num_groups", 1), site.number("epsilon", 1e-5)

    def kernel(x: Any, scale: Any, bias: Any) -> Any:
        wide = widened(x)
        return torch.nn.functional.group_norm(wide, groups, scale.to(wide.dtype), bias.to(wide.dtype), epsilon)

    return kernel


def lower_layer(site: Site) -> Kernel:
    """By the mean and variance of the last axes; also gives the mean and the reciprocal deviation."""
    shape = site.shape(0)
    axis, epsilon = site.axis("axis", -1, len(shape)), site.number("epsilon", 1e-5)
    if site.style.rows and axis == len(shape) - 1 and len(site.node.outputs) == 1:
        return lambda x, scale, bias=None: calls.norm(x, scale, bias, epsilon, centers=True)
    if (
        len(site.node.outputs) == 1
        and site.shape(1) == shape[axis:]
        and (not site.given(2) or site.shape(2) == shape[axis:])
    ):
        return lambda x, scale, bias=None: torch.nn.functional.layer_norm(x, shape[axis:], scale, bias, epsilon)

    def kernel(x: Any, scale: Any, bias: Any = None) -> Any:
        wide, axes = widened(x), list(range(axis, len(shape)))
        mean = wide.mean(axes, keepdim=True)
        inverse = torch.rsqrt(((wide - mean) ** 2).mean(axes, keepdim=True) + epsilon)
        made = (wide - mean) * inverse * scale
        return (made if bias is None else made + bias, mean, inverse)[: max(1, len(site.node.outputs))]

    return kernel


def lower_rms(site: Site) -> Kernel:
    """By the root of the mean square of the last axes."""
    rank = site.rank(0)
    axis, epsilon = site.axis("axis", -1, rank), site.number("epsilon", 1e-5)
    if site.style.rows and axis == rank - 1:
        return lambda x, scale: calls.norm(x, scale, None, epsilon, centers=False)

    def kernel(x: Any, scale: Any) -> Any:
        wide, axes = widened(x), list(range(axis, rank))
        return wide * torch.rsqrt((wide * wide).mean(axes, keepdim=True) + epsilon) * scale

    return kernel


def lower_local_response(site: Site) -> Kernel:
    """By the squares of neighboring channels."""
    size, alpha = site.integer("size", 1), site.number("alpha", 1e-4)
    beta, bias = site.number("beta", 0.75), site.number("bias", 1.0)

    def kernel(x: Any) -> Any:
        wide = widened(x)
        low = (size - 1) // 2
        flat = wide.reshape(wide.shape[0], 1, wide.shape[1], -1)
        squares = torch.nn.functional.pad(flat * flat, (0, 0, low, size - 1 - low))
        total = squares.unfold(2, size, 1).sum(-1).reshape(wide.shape)
        return wide / (bias + alpha / size * total) ** beta

    return kernel


def lower_lp(site: Site) -> Kernel:
    """By the norm along an axis; where it is 0, 0."""
    axis, order = site.axis("axis", -1, site.rank(0)), site.integer("p", 2)

    def kernel(x: Any) -> Any:
        wide = widened(x)
        norm = torch.sum(torch.abs(wide) ** order, axis, keepdim=True) ** (1.0 / order)
        return torch.where(norm == 0, torch.zeros_like(wide), wide / norm)

    return kernel


def lower_mean_variance(site: Site) -> Kernel:
    """By mean and variance over axes."""
    axes = site.integers("axes", (0, 2, 3))
    return lambda x: _centered(widened(x), axes, 1e-9, root_first=True)


def _centered(x: Any, axes: list[int], epsilon: float, *, root_first: bool = False) -> Any:
    mean = x.mean(axes, keepdim=True)
    variance = ((x - mean) ** 2).mean(axes, keepdim=True)
    return (x - mean) / (torch.sqrt(variance) + epsilon if root_first else torch.sqrt(variance + epsilon))
