"""Quantized tensors: to integers and back."""

from typing import Any

from flagsplit.targets.cloud.cuda.lowering.site import Kernel, Refused, Site, as_dtype
from flagsplit.targets.cloud.cuda.sdk import torch

_RANGES = {"uint8": (0, 255), "int8": (-128, 127), "int16": (-32768, 32767)}


def _by_axis(site: Site) -> tuple[int, int]:
    rank = site.rank(0)
    axis = site.axis("axis", 1, rank)
    if site.integer("block_size", 0):
        raise Refused("scales of blocks are not taken")
    return axis, rank


def _spread(x: Any, axis: int, rank: int) -> Any:
    if x.numel() == 1:
        return x.reshape(())
    shape = [1] * rank
    shape[axis] = -1
    return x.reshape(shape)


def lower_quantize(site: Site) -> Kernel:
    """x / scale, rounded, plus the zero point, kept in range."""
    axis, rank = _by_axis(site)
    out = site.out_dtype()
    if out not in _RANGES:
        raise Refused(f"PyTorch quantizes to no {out}")
    low, high = _RANGES[out]

    def kernel(x: Any, scale: Any, zero: Any = None) -> Any:
        made = torch.round(x.float() / _spread(scale.float(), axis, rank))
        made = made if zero is None else made + _spread(zero.float(), axis, rank)
        return torch.clamp(made, low, high).to(as_dtype(out))

    return kernel


def lower_dequantize(site: Site) -> Kernel:
    """(x - zero point) scale."""
    axis, rank = _by_axis(site)

    def kernel(x: Any, scale: Any, zero: Any = None) -> Any:
        wide = x.float() if zero is None else x.float() - _spread(zero.float(), axis, rank)
        return wide * _spread(scale.float(), axis, rank)

    return kernel
