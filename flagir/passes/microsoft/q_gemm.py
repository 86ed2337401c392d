"""QGemm: a general product of quantized matrices."""

from collections.abc import Sequence

import onnx_ir as ir

from flagsplit.flagir.passes.microsoft.quantize import quantized, real
from flagsplit.flagir.passes.microsoft.site import Site


def q_gemm(site: Site) -> Sequence[ir.Value | None]:
    """Inputs: A and B, each with scale and zero point; C, in steps of both; the result's scale and zero point."""
    right, turned = site.need(3), site.attr_int("transB", 0)
    if site.dims(site.need(4)) in ((), (1,)):
        matrix = real(site, 3)
    else:
        matrix = site.op("DequantizeLinear", right, site.need(4), site.input(5), axis=0 if turned else 1)
    bias = site.input(6)
    if bias is not None:
        steps = site.op("Mul", site.need(1), site.need(4))
        bias = site.op("Mul", site.op("Cast", bias, to=int(ir.DataType.FLOAT)), steps)
    alpha = site.attr_float("alpha", 1.0)
    names = {"transA": site.attr_int("transA", 0), "transB": turned}
    value = site.op("Gemm", real(site, 0), matrix, bias, alpha=alpha, beta=alpha, **names)
    return [value if site.input(7) is None else quantized(site, value, 7)]
