"""Microsoft's QuantizeLinear and DequantizeLinear, which came before the standard took all types, and their use around
operators that work on quantized tensors."""

from collections.abc import Sequence

import onnx_ir as ir

from flagsplit.flagir.passes.microsoft.site import Site


def quantize_linear(site: Site) -> Sequence[ir.Value | None]:
    """Inputs: x, scale, zero point."""
    return [_along(site, "QuantizeLinear")]


def dequantize_linear(site: Site) -> Sequence[ir.Value | None]:
    """Inputs: x, scale, zero point."""
    return [_along(site, "DequantizeLinear")]


def _along(site: Site, op_type: str) -> ir.Value:
    """Per tensor unless the node has an axis; a scale of one element counts as per tensor with an axis, too."""
    scale, zero = site.need(1), site.input(2)
    if site.node.attributes.get("axis") is not None and site.dims(scale) not in ((), (1,)):
        return site.op(op_type, site.need(0), scale, zero, axis=site.attr_int("axis", 1))
    return site.op(op_type, site.need(0), site.scalar(scale), None if zero is None else site.scalar(zero))


def real(site: Site, at: int, value: ir.Value | None = None) -> ir.Value:
    """Write the dequantization of input `at`, or of `value` in its place; its scale and zero point follow the input."""
    scale, zero = site.scalar(site.need(at + 1)), _zero(site, at + 2, at)
    return site.op("DequantizeLinear", value or site.need(at), scale, zero)


def quantized(site: Site, value: ir.Value, at: int, like: int = 0) -> ir.Value:
    """Write the quantization of a result; its scale is input `at`, the zero point follows.

    Without a zero point the type is that of input `like`.
    """
    return site.op("QuantizeLinear", value, site.scalar(site.need(at)), _zero(site, at + 1, like))


def _zero(site: Site, at: int, like: int) -> ir.Value:
    """A zero point is always written: its type is that of the result, which engines do not all look for elsewhere."""
    given = site.input(at)
    return site.constant(0, site.dtype(site.need(like))) if given is None else site.scalar(given)
