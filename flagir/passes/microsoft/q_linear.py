"""The QLinear operators on elements: DequantizeLinear, the standard operator, QuantizeLinear.

That is the form which quantizers write and which engines know how to fuse.
"""

from collections.abc import Sequence

import onnx_ir as ir

from flagsplit.flagir.passes.microsoft.quantize import quantized, real
from flagsplit.flagir.passes.microsoft.site import Site

_AXES_ARE_SINGLE_SINCE = 13


def binary(site: Site) -> Sequence[ir.Value | None]:
    """QLinearAdd and QLinearMul: two tensors, each with scale and zero point, then those of the result."""
    value = site.op(site.node.op_type.removeprefix("QLinear"), real(site, 0), real(site, 3))
    return [quantized(site, value, 6)]


def unary(site: Site) -> Sequence[ir.Value | None]:
    """QLinearSigmoid and QLinearLeakyRelu."""
    value = site.op(site.node.op_type.removeprefix("QLinear"), real(site, 0), **site.kept())
    return [quantized(site, value, 3)]


def softmax(site: Site) -> Sequence[ir.Value | None]:
    """QLinearSoftmax; up to opset 12 it went over all axes that follow."""
    value, axis = real(site, 0), site.attr_int("axis", -1)
    if site.attr_int("opset", 0) < _AXES_ARE_SINGLE_SINCE and axis not in (-1, site.rank(value) - 1):
        site.refuse(f"the meaning of opset 12 and axis {axis}", "export the model with opset 13 or newer")
    return [quantized(site, site.op("Softmax", value, axis=axis), 3)]


def where(site: Site) -> Sequence[ir.Value | None]:
    """QLinearWhere: condition, two tensors, the scale and zero point of the result."""
    value = site.op("Where", site.need(0), real(site, 1), real(site, 4))
    return [quantized(site, value, 7, like=1)]


def concat(site: Site) -> Sequence[ir.Value | None]:
    """QLinearConcat: scale and zero point of the result, then the tensors, each with its own."""
    parts = [real(site, at) for at in range(2, len(site.node.inputs), 3)]
    return [quantized(site, site.op("Concat", *parts, axis=site.attr_int("axis", 1)), 0, like=2)]
