"""Reductions over axes, and running ones."""

from collections.abc import Callable
from typing import Any

from flagsplit.targets.cloud.cuda.lowering.site import Kernel, Refused, Site, as_dtype, widened
from flagsplit.targets.cloud.cuda.sdk import torch

_Reduce = Callable[[Any, list[int], bool], Any]


def _extreme(name: str, empty: float) -> _Reduce:
    def reduce(x: Any, axes: list[int], keep: bool) -> Any:
        if x.numel() == 0:
            shape = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
            made = torch.full(
                shape, empty if x.is_floating_point() else (x.dtype == torch.bool and empty > 0), device=x.device
            )
            return (
                made.to(x.dtype)
                if keep
                else made.to(x.dtype).reshape([s for a, s in enumerate(shape) if a not in axes])
            )
        if x.dtype == torch.bool:
            return getattr(torch, name)(x.to(torch.uint8), axes, keepdim=keep)
        return getattr(torch, name)(x, axes, keepdim=keep)

    return reduce


def _product(x: Any, axes: list[int], keep: bool) -> Any:
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keepdim=keep)
    return x


def _log_sum_exp(x: Any, axes: list[int], keep: bool) -> Any:
    if x.numel() == 0:
        return torch.log(torch.sum(x, axes, keepdim=keep))
    return torch.logsumexp(x if x.is_floating_point() else x.double(), axes, keepdim=keep)


_FUNCTIONS: dict[str, _Reduce] = {
    "ReduceL1": lambda x, axes, keep: torch.sum(torch.abs(x), axes, keepdim=keep),
    "ReduceL2": lambda x, axes, keep: torch.sqrt(
        torch.sum((x * x).to(x.dtype if x.is_floating_point() else torch.float64), axes, keepdim=keep)
    ),
    "ReduceLogSum": lambda x, axes, keep: torch.log(torch.sum(x, axes, keepdim=keep)),
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceMax": _extreme("amax", float("-inf")),
    "ReduceMean": lambda x, axes, keep: torch.mean(x if x.is_floating_point() else x.double(), axes, keepdim=keep),
    "ReduceMin": _extreme("amin", float("inf")),
    "ReduceProd": _product,
    "ReduceSum": lambda x, axes, keep: torch.sum(x, axes, keepdim=keep),
    "ReduceSumSquare": lambda x, axes, keep: torch.sum(x * x, axes, keepdim=keep),
}


def lower(site: Site) -> Kernel:
    """The reduction of the operator's name; those that add up do so in float32 at least."""
    rank, function = site.rank(0), _FUNCTIONS[site.node.op_type]
    axes = [each % rank for each in site.ints(1, "axes")] if site.given(1) else []
    keep, out = bool(site.integer("keepdims", 1)), site.out_dtype()
    if not axes and site.integer("noop_with_empty_axes", 0):
        alone: dict[str, Callable[[Any], Any]] = {
            "ReduceL1": lambda x: torch.abs(x),
            "ReduceL2": lambda x: torch.abs(x),
            "ReduceLogSum": lambda x: torch.log(x),
            "ReduceSumSquare": lambda x: x * x,
        }
        return lambda x, *_: alone.get(site.node.op_type, lambda x: x)(x)
    over = axes or list(range(rank))

    def kernel(x: Any, *_: Any) -> Any:
        if x.dim() == 0:
            return function(widened(x).reshape(1), [0], False).to(as_dtype(out))
        return function(widened(x), over, keep).to(as_dtype(out))

    return kernel


def lower_arg(site: Site) -> Kernel:
    """Where the largest or smallest is; the first of several, or the last."""
    axis, keep = site.axis("axis", 0, site.rank(0)), bool(site.integer("keepdims", 1))
    last, name = site.integer("select_last_index", 0), site.node.op_type.lower()
    size = site.shape(0)[axis]

    def kernel(x: Any) -> Any:
        if last:
            return size - 1 - getattr(torch, name)(torch.flip(x, (axis,)), axis, keepdim=keep)
        return getattr(torch, name)(x, axis, keepdim=keep)

    return kernel


def lower_running(site: Site) -> Kernel:
    """CumSum and CumProd, from either end, with or without the element itself."""
    axis = site.ints(1, "axis")[0] % site.rank(0)
    backwards, without = site.integer("reverse", 0), site.integer("exclusive", 0)
    name, first = ("cumsum", 0) if site.node.op_type == "CumSum" else ("cumprod", 1)
    out = site.out_dtype()

    def kernel(x: Any, _: Any) -> Any:
        x = widened(x)
        x = torch.flip(x, (axis,)) if backwards else x
        if without:
            start = torch.full_like(x.narrow(axis, 0, 1), first)
            x = torch.cat([start, x.narrow(axis, 0, x.shape[axis] - 1)], axis)
        x = getattr(torch, name)(x, axis)
        return (torch.flip(x, (axis,)) if backwards else x).to(as_dtype(out))

    return kernel


def lower_topk(site: Site) -> Kernel:
    """The largest or smallest of an axis, in order; of equal ones the first come first."""
    axis, many = site.axis("axis", -1, site.rank(0)), site.ints(1, "k")[0]
    largest = bool(site.integer("largest", 1))
    if site.dtype(0) == "bool":
        raise Refused("PyTorch sorts no bools")

    def kernel(x: Any, _: Any) -> Any:
        values, places = torch.sort(x, dim=axis, descending=largest, stable=True)
        return values.narrow(axis, 0, many), places.narrow(axis, 0, many)

    return kernel
