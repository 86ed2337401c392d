"""Pooling of quantized tensors, also with channels last."""

from collections.abc import Sequence

import onnx_ir as ir

from flagsplit.flagir.passes.microsoft.layout import channels_first, channels_last
from flagsplit.flagir.passes.microsoft.quantize import quantized, real
from flagsplit.flagir.passes.microsoft.site import Site


def average_pool(site: Site) -> Sequence[ir.Value | None]:
    """QLinearAveragePool."""
    return [_pooled(site, "AveragePool")]


def global_average_pool(site: Site) -> Sequence[ir.Value | None]:
    """QLinearGlobalAveragePool."""
    return [_pooled(site, "GlobalAveragePool")]


def max_pool(site: Site) -> Sequence[ir.Value | None]:
    """NhwcMaxPool: no scale, a maximum needs none."""
    rank = site.rank(site.need(0))
    value = site.op("MaxPool", channels_first(site, site.need(0), rank), **site.kept())
    return [channels_last(site, value, rank)]


def _pooled(site: Site, op_type: str) -> ir.Value:
    value, attributes = site.need(0), site.kept("channels_last")
    last = site.attr_int("channels_last", 0)
    rank = site.rank(value)
    if last:
        value = channels_first(site, value, rank)
    pooled = quantized(site, site.op(op_type, real(site, 0, value), **attributes), 3)
    return channels_last(site, pooled, rank) if last else pooled
