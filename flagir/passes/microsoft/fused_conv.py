"""FusedConv: a convolution, the sum with another tensor, and an activation."""

from collections.abc import Sequence

import onnx_ir as ir

from flagsplit.flagir.passes.microsoft.activation import activate
from flagsplit.flagir.passes.microsoft.site import Site


def fused_conv(site: Site) -> Sequence[ir.Value | None]:
    """activation(Conv(X, W, B) + Z)."""
    attributes = site.kept("activation", "activation_params")
    value = site.op("Conv", site.need(0), site.need(1), site.input(2), **attributes)
    other = site.input(3)
    if other is not None:
        value = site.op("Add", value, other)
    name = site.node.attributes.get_string("activation") or ""
    parameters = tuple(site.node.attributes.get_floats("activation_params") or ())
    return [activate(site, value, name, parameters)]
