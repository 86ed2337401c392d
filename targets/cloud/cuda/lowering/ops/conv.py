"""Convolutions and their transposes over one to three axes."""

from typing import Any

from flagsplit.targets.cloud.cuda.lowering.ops.windows import Windows, windows_of
from flagsplit.targets.cloud.cuda.lowering.site import Kernel, Refused, Site, widened
from flagsplit.targets.cloud.cuda.sdk import torch

_MOST_TAPS = 5


def lower(site: Site) -> Kernel:
    """Conv; padding that is not the same on both sides is a step of its own."""
    shape = site.shape(0)
    window = windows_of(site, site.shape(1)[2:], shape[2:])
    groups, name = site.integer("group", 1), f"conv{len(shape) - 2}d"
    if min(window.low + window.high) < 0:
        raise Refused("PyTorch takes no negative padding of a convolution")
    plane, padded = len(shape) == 4, any(window.low + window.high)
    if plane and site.style.products and groups == 1 and set(window.kernel + window.strides) == {1} and not padded:
        return _product
    if plane and site.style.shifts and groups == shape[1] == site.shape(1)[0] > 1 and max(window.kernel) <= _MOST_TAPS:
        return _shifted(window, site.out_shape()[2:])

    def kernel(x: Any, weights: Any, bias: Any = None) -> Any:
        if not window.even:
            x = torch.nn.functional.pad(x, window.flat_pads)
        padding = window.low if window.even else 0
        run = getattr(torch.nn.functional, name)
        return run(x, weights, bias, window.strides, padding, window.dilations, groups)

    return kernel


def _product(x: Any, weights: Any, bias: Any = None) -> Any:
    """Each pixel's channels times the weights."""
    made = torch.nn.functional.linear(x.permute(0, 2, 3, 1), weights.flatten(1), bias)
    return made.permute(0, 3, 1, 2)


def _shifted(window: Windows, out: tuple[int, ...]) -> Kernel:
    """Sums of shifted pictures, each times its weight of the channel."""

    def kernel(x: Any, weights: Any, bias: Any = None) -> Any:
        padded, total = torch.nn.functional.pad(x, window.flat_pads), None
        for row in range(window.kernel[0]):
            for column in range(window.kernel[1]):
                part = padded
                for axis, at in ((2, row), (3, column)):
                    start, step = at * window.dilations[axis - 2], window.strides[axis - 2]
                    stop = start + (out[axis - 2] - 1) * step + 1
                    part = part[:, :, start:stop:step] if axis == 2 else part[:, :, :, start:stop:step]
                term = widened(part) * widened(weights[:, 0, row, column].reshape(1, -1, 1, 1))
                total = term if total is None else total + term
        return total if bias is None else total + widened(bias).reshape(1, -1, 1, 1)

    return kernel


def lower_integer(site: Site) -> Kernel:
    """ConvInteger, exact in float64."""
    shape = site.shape(0)
    window = windows_of(site, site.shape(1)[2:], shape[2:])
    groups, name = site.integer("group", 1), f"conv{len(shape) - 2}d"

    def kernel(x: Any, weights: Any, zero_x: Any = None, zero_w: Any = None) -> Any:
        x, weights = x.double(), weights.double()
        x = x if zero_x is None else x - zero_x.double()
        weights = weights if zero_w is None else weights - zero_w.double().reshape(-1, *[1] * (weights.dim() - 1))
        x = torch.nn.functional.pad(x, window.flat_pads)
        run = getattr(torch.nn.functional, name)
        return run(x, weights, None, window.strides, 0, window.dilations, groups).to(torch.int32)

    return kernel


def lower_transpose(site: Site) -> Kernel:
    """ConvTranspose; what padding and given sizes take off is cut from the whole result."""
    shape, out = site.shape(0), site.out_shape()[2:]
    kernel_shape = site.shape(1)[2:]
    rank = len(kernel_shape)
    if not 1 <= rank <= 3:
        raise Refused(f"PyTorch slides windows over 1 to 3 axes, came {rank}")
    strides = tuple(site.integers("strides") or [1] * rank)
    dilations = tuple(site.integers("dilations") or [1] * rank)
    groups, name = site.integer("group", 1), f"conv_transpose{rank}d"
    extra = site.integers("output_padding") or [0] * rank
    reach = [(kernel_shape[at] - 1) * dilations[at] + 1 for at in range(rank)]
    whole = [(shape[2 + at] - 1) * strides[at] + reach[at] for at in range(rank)]
    low = _cut_before(site, whole, out, extra)

    def kernel(x: Any, weights: Any, bias: Any = None) -> Any:
        made = getattr(torch.nn.functional, name)(x, weights, None, strides, 0, 0, groups, dilations)
        flat: list[int] = []
        for at in reversed(range(rank)):
            flat += [-low[at], out[at] + low[at] - whole[at]]
        made = torch.nn.functional.pad(made, flat) if any(flat) else made
        return made if bias is None else made + bias.reshape(1, -1, *[1] * rank)

    return kernel


def _cut_before(site: Site, whole: list[int], out: tuple[int, ...], extra: list[int]) -> list[int]:
    """How much goes at the start of each axis."""
    auto, pads, rank = site.text("auto_pad", "NOTSET"), site.integers("pads"), len(out)
    if auto == "NOTSET" and not site.integers("output_shape"):
        return pads[:rank] or [0] * rank
    total = [whole[at] + extra[at] - out[at] for at in range(rank)]
    if auto == "VALID":
        return [0] * rank
    return [max(0, each // 2 if auto == "SAME_UPPER" else each - each // 2) for each in total]
