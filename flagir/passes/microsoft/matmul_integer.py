"""MatMulIntegerToFloat and DynamicQuantizeMatMul: an integer matrix product between quantizing and scaling back.

They are written as ONNX Runtime's own quantizer writes them, so that the engine finds the pattern and fuses it again.
"""

from collections.abc import Sequence

import onnx_ir as ir

from flagsplit.flagir.passes.microsoft.site import Site


def matmul_integer_to_float(site: Site) -> Sequence[ir.Value | None]:
    """Inputs: A, B, scale of A, scale of B, zero point of A, zero point of B, bias."""
    left, right = (site.need(0), site.input(4)), (site.need(1), site.input(5))
    return [product(site, left, right, (site.need(2), site.need(3)), site.input(6))]


def dynamic_quantize_matmul(site: Site) -> Sequence[ir.Value | None]:
    """Inputs: A in floating point, B, scale of B, zero point of B, bias."""
    quantized, scale, zero = _quantized(site, site.need(0))
    right = (site.need(1), site.input(3))
    return [product(site, (quantized, zero), right, (scale, site.need(2)), site.input(4))]


def product(
    site: Site,
    left: tuple[ir.Value, ir.Value | None],
    right: tuple[ir.Value, ir.Value | None],
    scales: tuple[ir.Value, ir.Value],
    bias: ir.Value | None,
) -> ir.Value:
    """Write a product of quantized matrices, each with its zero point, scaled back and with a bias."""
    total = site.op("MatMulInteger", left[0], right[0], left[1], right[1])
    floats = site.op("Cast", total, to=int(site.dtype(scales[1])))
    value = site.op("Mul", floats, site.op("Mul", *scales))
    return value if bias is None else site.op("Add", value, bias)


def _quantized(site: Site, value: ir.Value) -> Sequence[ir.Value]:
    """Query, key and value are made of one tensor, which need not be quantized three times."""
    for user in value.consumers():
        if user.op_type == "DynamicQuantizeLinear" and not user.domain and site.is_before(user):
            return user.outputs
    return site.ops("DynamicQuantizeLinear", 3, value)
