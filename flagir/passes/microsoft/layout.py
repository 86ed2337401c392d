"""Channels last: ONNX Runtime moves the channels behind the sizes where its integer kernels like them there."""

import onnx_ir as ir

from flagsplit.flagir.passes.microsoft.site import Site


def channels_first(site: Site, value: ir.Value, rank: int) -> ir.Value:
    """`[batch, sizes, channels]` as `[batch, channels, sizes]`."""
    return site.transpose(value, 0, rank - 1, *range(1, rank - 1))


def channels_last(site: Site, value: ir.Value, rank: int) -> ir.Value:
    """`[batch, channels, sizes]` as `[batch, sizes, channels]`."""
    return site.transpose(value, 0, *range(2, rank), 1)
