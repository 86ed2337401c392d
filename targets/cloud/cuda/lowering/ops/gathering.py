"""Look-ups by index, and writing by index."""

from typing import Any

from flagsplit.targets.cloud.cuda.lowering.site import Kernel, Refused, Site
from flagsplit.targets.cloud.cuda.sdk import torch

_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _from_front(indices: Any, size: int) -> Any:
    indices = indices.long()
    return torch.where(indices < 0, indices + size, indices)


def lower_gather(site: Site) -> Kernel:
    """Slices of an axis; constant indices are made non-negative beforehand."""
    axis, out = site.axis("axis", 0, site.rank(0)), site.out_shape()
    size = site.shape(0)[axis]
    indices = site.value(1).const_value
    fixed = None if indices is None else site.need(1, "indices") % max(size, 1)
    if fixed is not None and fixed.ndim == 0:
        at = int(fixed)
        return lambda x, _: x.select(axis, at)

    def kernel(x: Any, indices: Any) -> Any:
        if indices is None:
            flat = torch.tensor(fixed.reshape(-1).tolist(), dtype=torch.int64, device=x.device)  # type: ignore[union-attr]
        else:
            flat = _from_front(indices, size).reshape(-1)
        if axis == 0 and x.dim() == 2:
            return torch.nn.functional.embedding(flat, x).reshape(out)
        return x.index_select(axis, flat).reshape(out)

    return kernel


def lower_elements(site: Site) -> Kernel:
    """An element for each index, at its own place on the other axes."""
    axis = site.axis("axis", 0, site.rank(0))
    size = site.shape(0)[axis]
    return lambda x, indices: torch.gather(x, axis, _from_front(indices, size))


def lower_nd(site: Site) -> Kernel:
    """Slices by coordinates."""
    shape, out, batch = site.shape(0), site.out_shape(), site.integer("batch_dims", 0)
    depth = site.shape(1)[-1]

    def kernel(x: Any, indices: Any) -> Any:
        x = x.reshape(-1, *x.shape[batch:])
        indices = indices.reshape(x.shape[0], -1, depth)
        rows = torch.arange(x.shape[0], device=x.device)[:, None].expand(indices.shape[:2])
        at = [_from_front(indices[..., axis], shape[batch + axis]) for axis in range(depth)]
        return x[(rows, *at)].reshape(out)

    return kernel


def lower_one_hot(site: Site) -> Kernel:
    """One of two numbers, by whether the position is the index."""
    depth, out_rank = site.ints(1, "depth")[0], len(site.out_shape())
    axis = site.axis("axis", -1, out_rank)

    def kernel(indices: Any, _: Any, values: Any) -> Any:
        at = torch.remainder(indices.unsqueeze(axis).to(torch.int64), depth)
        inside = (indices >= -depth) & (indices < depth)
        shape = [1] * out_rank
        shape[axis] = depth
        hot = (torch.arange(depth, device=indices.device).reshape(shape) == at) & inside.unsqueeze(axis)
        return torch.where(hot, values[1], values[0])

    return kernel


def lower_scatter_elements(site: Site) -> Kernel:
    """Elements written, or taken together with what is there, by index along an axis."""
    axis, kind = site.axis("axis", 0, site.rank(0)), site.text("reduction", "none")
    size = site.shape(0)[axis]

    def kernel(x: Any, indices: Any, updates: Any) -> Any:
        at = _from_front(indices, size)
        if kind == "none":
            return x.scatter(axis, at, updates)
        return x.scatter_reduce(axis, at, updates, _REDUCTIONS[kind])

    return kernel


def lower_scatter_nd(site: Site) -> Kernel:
    """Slices written, or taken together with what is there, by coordinates."""
    shape, kind = site.shape(0), site.text("reduction", "none")
    depth = site.shape(1)[-1]
    inner = 1
    for size in shape[depth:]:
        inner *= size

    def kernel(x: Any, indices: Any, updates: Any) -> Any:
        row = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=x.device)
        for axis in range(depth):
            row = row * shape[axis] + _from_front(indices[..., axis], shape[axis])
        at = row.reshape(-1, 1).expand(-1, inner)
        flat, given = x.reshape(-1, inner), updates.reshape(-1, inner)
        made = flat.scatter(0, at, given) if kind == "none" else flat.scatter_reduce(0, at, given, _REDUCTIONS[kind])
        return made.reshape(shape)

    return kernel


def lower_tensor_scatter(site: Site) -> Kernel:
    """New steps written into a cache, at the place that each sequence has come to."""
    rank = site.rank(0)
    axis, steps = site.axis("axis", -2, rank), site.shape(1)
    if site.rank(1) != rank or axis == 0:
        raise Refused("the axis of a cache is none of its sequences")
    size, circular = site.shape(0)[axis], site.text("mode", "linear") == "circular"

    def kernel(cache: Any, update: Any, start: Any = None) -> Any:
        at = torch.arange(steps[axis], device=cache.device)
        begin = torch.zeros(cache.shape[0], dtype=torch.int64, device=cache.device) if start is None else start.long()
        at = begin[:, None] + at[None]
        at = at % size if circular else at
        shape = [1] * rank
        shape[0], shape[axis] = cache.shape[0], steps[axis]
        return cache.scatter(axis, at.reshape(shape).expand(update.shape), update)

    return kernel
