"""Gelu, BiasGelu, FastGelu and QuickGelu."""

from collections.abc import Sequence

import onnx_ir as ir

from flagsplit.flagir.passes.microsoft.site import Site


def gelu(site: Site) -> Sequence[ir.Value | None]:
    """Microsoft's Gelu is the standard one without approximation."""
    return [site.op("Gelu", site.need(0))]


def bias_gelu(site: Site) -> Sequence[ir.Value | None]:
    """Gelu(A + B)."""
    return [site.op("Gelu", site.op("Add", site.need(0), site.need(1)))]


def fast_gelu(site: Site) -> Sequence[ir.Value | None]:
    """Gelu of X + bias, approximated by tanh."""
    value, bias = site.need(0), site.input(1)
    if bias is not None:
        value = site.op("Add", value, bias)
    return [site.op("Gelu", value, approximate="tanh")]


def quick_gelu(site: Site) -> Sequence[ir.Value | None]:
    """X * Sigmoid(alpha * X)."""
    value, alpha = site.need(0), site.attr_float("alpha", 1.702)
    scaled = value if alpha == 1.0 else site.op("Mul", value, site.like(alpha, value))
    return [site.op("Mul", value, site.op("Sigmoid", scaled))]
