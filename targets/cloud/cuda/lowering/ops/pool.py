"""Pools over windows, and over all of space."""

from collections.abc import Sequence
from typing import Any

from flagsplit.targets.cloud.cuda.lowering.ops.windows import Windows, windows_of
from flagsplit.targets.cloud.cuda.lowering.site import Kernel, Refused, Site, as_dtype, widened
from flagsplit.targets.cloud.cuda.sdk import torch


def lower_global_average(site: Site) -> Kernel:
    """The mean over space."""
    axes = list(range(2, site.rank(0)))
    return lambda x: torch.mean(x, axes, keepdim=True)


def lower_global_max(site: Site) -> Kernel:
    """The largest over space."""
    axes = list(range(2, site.rank(0)))
    return lambda x: torch.amax(x, axes, keepdim=True)


def lower_global_lp(site: Site) -> Kernel:
    """The norm over space."""
    axes, order = list(range(2, site.rank(0))), site.integer("p", 2)
    return lambda x: torch.sum(torch.abs(widened(x)) ** order, axes, keepdim=True) ** (1.0 / order)


def _pool(site: Site) -> tuple[Windows, list[int]]:
    """The windows, with as much padding after as the last window of each axis needs; and the padding for PyTorch."""
    shape = site.shape(0)
    sizes, out = shape[2:], site.out_shape()[2:]
    window = windows_of(site, tuple(site.integers("kernel_shape")), sizes)
    needed = []
    for at in range(len(sizes)):
        reach = (window.kernel[at] - 1) * window.dilations[at] + 1
        needed.append((out[at] - 1) * window.strides[at] + reach - sizes[at] - window.low[at])
    flat: list[int] = []
    for at in reversed(range(len(sizes))):
        flat += [window.low[at], needed[at]]
    return window, flat


def lower_max(site: Site) -> Kernel:
    """The largest of each window, and where it was."""
    window, flat = _pool(site)
    rank, dtype = len(window.kernel), site.dtype(0)
    where = len(site.node.outputs) > 1 and bool(site.node.outputs[1].name)
    if where:
        return _with_indices(site, window, flat)
    simple = window.even and tuple(flat[::2][::-1]) == window.low and _fits(site, window)

    def kernel(x: Any) -> Any:
        if not x.is_floating_point():
            x = x.float()
        run = getattr(torch.nn.functional, f"max_pool{rank}d")
        if simple:
            return run(x, window.kernel, window.strides, window.low, window.dilations)
        x = torch.nn.functional.pad(x, flat, value=float("-inf"))
        return run(x, window.kernel, window.strides, 0, window.dilations)

    if dtype not in ("float16", "float32", "float64", "bfloat16", "int8", "uint8"):
        raise Refused(f"PyTorch pools no {dtype}")
    return kernel


def _fits(site: Site, window: Windows) -> bool:
    """Whether PyTorch's own padding gives the output's sizes; it pads by no more than half a window."""
    for at, size in enumerate(site.shape(0)[2:]):
        reach = (window.kernel[at] - 1) * window.dilations[at] + 1
        if (size + 2 * window.low[at] - reach) // window.strides[at] + 1 != site.out_shape()[2 + at]:
            return False
        if window.low[at] > window.kernel[at] // 2:
            return False
    return True


def _with_indices(site: Site, window: Windows, flat: Sequence[int]) -> Kernel:
    shape, out = site.shape(0), site.out_shape()
    rank, column = len(window.kernel), site.integer("storage_order", 0)

    def kernel(x: Any) -> Any:
        sizes = shape[2:]
        at = torch.arange(x[0, 0].numel(), device=x.device, dtype=torch.float64)
        if column:
            at = at.reshape(sizes[::-1]).permute(list(range(rank))[::-1])
        at = at.reshape(1, 1, *sizes).expand(x.shape)
        values = _windows(torch.nn.functional.pad(x.double(), flat, value=float("-inf")), window)
        places = _windows(torch.nn.functional.pad(at, flat), window)
        best, first = torch.max(values, -1)
        place = torch.gather(places, -1, first.unsqueeze(-1)).squeeze(-1).long()
        planes = torch.arange(shape[0] * shape[1], device=x.device).reshape(shape[0], shape[1], *[1] * rank)
        return best.to(x.dtype).reshape(out), (place + planes * x[0, 0].numel()).reshape(out)

    return kernel


def _windows(x: Any, window: Windows) -> Any:
    """[batch, channels, *out, elements of a window]."""
    rank = len(window.kernel)
    for at in range(rank):
        reach = (window.kernel[at] - 1) * window.dilations[at] + 1
        x = x.unfold(2 + at, reach, window.strides[at])[..., :: window.dilations[at]]
    return x.flatten(2 + rank)


def lower_average(site: Site) -> Kernel:
    """The mean of each window, with or without the padding in the count."""
    window, flat = _pool(site)
    rank, counted = len(window.kernel), site.integer("count_include_pad", 0)
    plain = window.even and not any(window.low) and max(flat) <= 0 and set(window.dilations) == {1}
    included = bool(counted) and window.even and _fits(site, window) and set(window.dilations) == {1}
    sizes = site.shape(0)[2:]

    def kernel(x: Any) -> Any:
        run = getattr(torch.nn.functional, f"avg_pool{rank}d")
        if plain or included:
            return run(widened(x) if rank == 3 else x, window.kernel, window.strides, window.low)
        wide = widened(x)
        total = _windows(torch.nn.functional.pad(wide, flat), window).sum(-1)
        ones = torch.ones((1, 1, *sizes), dtype=wide.dtype, device=x.device)
        if counted:
            ones = torch.nn.functional.pad(ones, window.flat_pads, value=1.0)
            rest = [more - own for more, own in zip(flat, window.flat_pads, strict=True)]
        else:
            rest = flat
        return total / _windows(torch.nn.functional.pad(ones, rest), window).sum(-1)

    return kernel


def lower_lp(site: Site) -> Kernel:
    """The norm of each window."""
    window, flat = _pool(site)
    order = site.integer("p", 2)

    def kernel(x: Any) -> Any:
        powers = torch.abs(torch.nn.functional.pad(widened(x), flat)) ** order
        return _windows(powers, window).sum(-1) ** (1.0 / order)

    return kernel


def lower_unpool(site: Site) -> Kernel:
    """Elements put back where they were the largest, the rest 0."""
    out, dtype = site.out_shape(), site.out_dtype()
    if site.given(2):
        raise Refused("what MaxUnpool makes of an output shape is in doubt")

    def kernel(x: Any, indices: Any, *_: Any) -> Any:
        whole = torch.zeros(out, dtype=as_dtype(dtype), device=x.device).reshape(-1)
        return whole.scatter(0, indices.reshape(-1), x.reshape(-1)).reshape(out)

    return kernel
