"""FusedGemm: a general matrix product and an activation."""

from collections.abc import Sequence

import onnx_ir as ir

from flagsplit.flagir.passes.microsoft.activation import activate
from flagsplit.flagir.passes.microsoft.site import Site

_PARAMETERS = ("activation_alpha", "activation_beta", "activation_gamma")


def fused_gemm(site: Site) -> Sequence[ir.Value | None]:
    """activation(alpha * A B + beta * C)."""
    value = site.op("Gemm", site.need(0), site.need(1), site.input(2), **site.kept("activation", *_PARAMETERS))
    name = site.node.attributes.get_string("activation") or ""
    found = (site.node.attributes.get_float(parameter) for parameter in _PARAMETERS)
    return [activate(site, value, name, tuple(number for number in found if number is not None))]
