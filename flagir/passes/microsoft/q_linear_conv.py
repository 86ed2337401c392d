"""Microsoft's QLinearConv: the standard one, also with channels last."""

from collections.abc import Sequence

import onnx_ir as ir

from flagsplit.flagir.passes.microsoft.layout import channels_first, channels_last
from flagsplit.flagir.passes.microsoft.site import Site


def q_linear_conv(site: Site) -> Sequence[ir.Value | None]:
    """Nine inputs as in the standard: x, w and the result's scale and zero point, and a bias."""
    attributes, rest = site.kept("channels_last"), site.node.inputs[1:]
    if not site.attr_int("channels_last", 0):
        return [site.op("QLinearConv", site.need(0), *rest, **attributes)]
    rank = site.rank(site.need(3))
    value = site.op("QLinearConv", channels_first(site, site.need(0), rank), *rest, **attributes)
    return [channels_last(site, value, rank)]
