"""Operators that the standard has by now under the same name."""

from collections.abc import Sequence

import onnx_ir as ir

from flagsplit.flagir.passes.microsoft.site import Site


def same(site: Site) -> Sequence[ir.Value | None]:
    """GatherND, LayerNormalization and Trilu: the same inputs, the same attributes."""
    return site.ops(site.node.op_type, len(site.node.outputs), *site.node.inputs, **site.kept())


def pad(site: Site) -> Sequence[ir.Value | None]:
    """Pad, whose sizes may be a matrix of one row here."""
    sizes = site.need(1)
    if site.rank(sizes) != 1:
        sizes = site.op("Reshape", sizes, site.constant([-1]))
    value = site.input(2)
    value = value if value is None else site.scalar(value)
    return [site.op("Pad", site.need(0), sizes, value, **site.kept())]


def unique(site: Site) -> Sequence[ir.Value | None]:
    """Unique: elements in the order of their first occurrence, the place of each input among them, how many of each."""
    values, _, places, counts = site.ops("Unique", 4, site.need(0), sorted=0)
    return [values, places, counts]
