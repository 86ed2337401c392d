"""Operators that only move elements, or make tensors of known sizes."""

from typing import Any

import numpy as np

from flagsplit.targets.cloud.cuda.lowering.site import Kernel, Refused, Site, as_dtype
from flagsplit.targets.cloud.cuda.sdk import torch


def lower_reshape(site: Site) -> Kernel:
    """The same elements in order, of the shape that inference found."""
    shape = site.out_shape()
    if site.given(1):
        site.const(1)
    return lambda x, *_: x.reshape(shape)


def lower_transpose(site: Site) -> Kernel:
    """Axes in another order."""
    order = site.integers("perm") or list(range(site.rank(0)))[::-1]
    return lambda x: x.permute(order)


def lower_expand(site: Site) -> Kernel:
    """Broadcast to a shape."""
    shape = site.out_shape()
    site.const(1)
    return lambda x, *_: torch.broadcast_to(x, shape)


def lower_concat(site: Site) -> Kernel:
    """Tensors one after another."""
    axis = site.axis("axis", 0, site.rank(0))
    return lambda *x: torch.cat(x, axis)


def lower_split(site: Site) -> Kernel:
    """A tensor in parts."""
    axis = site.axis("axis", 0, site.rank(0))
    site.const(1)
    sizes = [site.out_shape(index)[axis] for index in range(len(site.node.outputs))]
    return lambda x, *_: torch.split(x, sizes, axis)


def lower_slice(site: Site) -> Kernel:
    """Parts of axes, forwards or backwards."""
    shape = site.shape(0)
    starts, ends = site.ints(1, "start"), site.ints(2, "end")
    axes = site.ints(3, "axes") if site.given(3) else list(range(len(starts)))
    steps = site.ints(4, "steps") if site.given(4) else [1] * len(starts)
    cuts = [
        (axis % len(shape), range(*slice(start, _end(end, step), step).indices(shape[axis])))
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True)
    ]

    def kernel(x: Any, *_: Any) -> Any:
        for axis, at in cuts:
            x = _along(x, axis, at)
        return x

    return kernel


def _end(end: int, step: int) -> int | None:
    return None if step < 0 and end < -(2**31) + 2 else end


def _along(x: Any, axis: int, at: range) -> Any:
    """Those positions of an axis."""
    if at.step > 0 or not at:
        low, high = (at.start, at.stop) if at else (0, 0)
        index = [slice(None)] * axis + [slice(low, max(low, high), max(1, at.step))]
        return x[tuple(index)]
    back = [slice(None)] * axis + [slice(at[-1], at[0] + 1, -at.step)]
    return torch.flip(x[tuple(back)], (axis,))


def lower_tile(site: Site) -> Kernel:
    """A tensor several times along its axes."""
    repeats = site.ints(1, "repeats")
    return lambda x, _: x.repeat(repeats)


def lower_pad(site: Site) -> Kernel:
    """Elements around a tensor: a number, its edge, its mirror image, or its other end. Negative ones cut."""
    rank, mode = site.rank(0), site.text("mode", "constant")
    pads = site.ints(1, "pads")
    axes = [each % rank for each in site.ints(3, "axes")] if site.given(3) else list(range(rank))
    value = site.need(2, "value").reshape(-1)[0].item() if site.given(2) else 0
    by_axis = [(axis, pads[at], pads[at + len(axes)]) for at, axis in enumerate(axes)]
    if mode != "constant":
        maps = [(axis, _mirrored(site.shape(0)[axis], low, high, mode)) for axis, low, high in by_axis if low or high]

        def gathered(x: Any, *_: Any) -> Any:
            for axis, index in maps:
                x = x.index_select(axis, torch.tensor(index, device=x.device))
            return x

        return gathered
    flat = [0] * (2 * rank)
    for axis, low, high in by_axis:
        flat[2 * (rank - 1 - axis)], flat[2 * (rank - 1 - axis) + 1] = low, high
    return lambda x, *_: torch.nn.functional.pad(x, flat, value=value)


def _mirrored(size: int, low: int, high: int, mode: str) -> list[int]:
    """Which element stands at each position of a padded axis."""
    at = np.arange(-low, size + high)
    if mode == "edge":
        found = np.clip(at, 0, size - 1)
    elif mode == "wrap":
        found = at % size
    else:
        turn = max(1, 2 * (size - 1))
        found = np.abs((at + size - 1) % turn - (size - 1)) if size > 1 else at * 0
    return [int(each) for each in found]


def lower_constant_of_shape(site: Site) -> Kernel:
    """One number everywhere."""
    shape, dtype = site.out_shape(), site.out_dtype()
    site.need(0, "shape")
    tensor = site.attributes.get_tensor("value")
    value = 0 if tensor is None else tensor.numpy().reshape(-1)[0].item()
    return lambda *_: torch.full(shape, value, dtype=as_dtype(dtype))


def lower_eye_like(site: Site) -> Kernel:
    """Ones on a diagonal."""
    (rows, columns), dtype, diagonal = site.shape(0), site.out_dtype(), site.integer("k", 0)

    def kernel(x: Any) -> Any:
        down, across = torch.arange(rows, device=x.device), torch.arange(columns, device=x.device)
        return (down[:, None] + diagonal == across[None]).to(as_dtype(dtype))

    return kernel


def lower_depth_to_space(site: Site) -> Kernel:
    """Channels to blocks of pixels."""
    batch, channels, height, width = site.shape(0)
    block = site.integer("blocksize", 1)
    column = site.text("mode", "DCR") == "CRD"
    inside = (channels // block**2, block, block) if column else (block, block, channels // block**2)
    order = (0, 1, 4, 2, 5, 3) if column else (0, 3, 4, 1, 5, 2)
    return lambda x: x.reshape(batch, *inside, height, width).permute(order).reshape(site.out_shape())


def lower_space_to_depth(site: Site) -> Kernel:
    """Blocks of pixels to channels."""
    batch, channels, height, width = site.shape(0)
    block = site.integer("blocksize", 1)
    cut = (batch, channels, height // block, block, width // block, block)
    return lambda x: x.reshape(cut).permute(0, 3, 5, 1, 2, 4).reshape(site.out_shape())


def lower_trilu(site: Site) -> Kernel:
    """One triangle of matrices, the rest 0."""
    diagonal = site.ints(1, "k")[0] if site.given(1) else 0
    name = "triu" if site.integer("upper", 1) else "tril"
    return lambda x, *_: getattr(torch, name)(x, diagonal)


def lower_reverse_sequence(site: Site) -> Kernel:
    """The first elements of each sequence turned round."""
    time, batch = site.integer("time_axis", 0), site.integer("batch_axis", 1)
    steps, rank = site.shape(0)[time], site.rank(0)

    def kernel(x: Any, lengths: Any) -> Any:
        at = torch.arange(steps, device=x.device)[:, None]
        index = torch.where(at < lengths[None], lengths[None] - 1 - at, at)
        index = index if time < batch else index.t()
        shape = [1] * rank
        shape[time], shape[batch] = x.shape[time], x.shape[batch]
        return torch.gather(x, time, index.reshape(shape).expand(x.shape))

    return kernel


def lower_range(site: Site) -> Kernel:
    """Numbers at equal distances."""
    start, stop, step = (site.need(index, "bounds").reshape(-1)[0].item() for index in range(3))
    dtype = site.out_dtype()
    return lambda *_: torch.arange(start, stop, step, dtype=as_dtype(dtype))


def lower_shape(site: Site) -> Kernel:
    """What is known of the sizes."""
    shape = site.shape(0)
    first, last = site.integer("start", 0), site.integer("end", len(shape))
    found: Any = list(shape[first:last]) if site.node.op_type == "Shape" else int(np.prod(shape))
    return lambda x: torch.tensor(found, dtype=torch.int64, device=x.device)


def lower_center_crop_pad(site: Site) -> Kernel:
    """A tensor cut or padded with zeros around its middle."""
    rank, out, shape = site.rank(0), site.out_shape(), site.shape(0)
    site.need(1, "shape")
    flat = [0] * (2 * rank)
    for axis, (came, wanted) in enumerate(zip(shape, out, strict=True)):
        if wanted == came:
            continue
        low = (wanted - came) // 2 if wanted > came else -((came - wanted) // 2)
        flat[2 * (rank - 1 - axis)], flat[2 * (rank - 1 - axis) + 1] = low, wanted - came - low
    return lambda x, _: torch.nn.functional.pad(x, flat)


def refuse_dynamic(site: Site) -> Kernel:
    """Sizes that depend on data."""
    raise Refused(f"how much {site.node.op_type} gives depends on data; a compiled program has fixed shapes")
