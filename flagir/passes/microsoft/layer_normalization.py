"""The normalizations over the last axes: SkipLayerNormalization and the simplified ones, which are RMSNormalization."""

from collections.abc import Sequence

import onnx_ir as ir

from flagsplit.flagir.passes.microsoft.site import Site

_EPSILON = 1e-5
_SKIP_EPSILON = 1e-12


def skip(site: Site) -> Sequence[ir.Value | None]:
    """LayerNormalization of input + skip + bias; that sum is the fourth output."""
    total = _sum(site, site.input(4))
    found = site.ops(
        "LayerNormalization",
        3 if site.wants(1) or site.wants(2) else 1,
        total,
        site.need(2),
        site.input(3),
        axis=-1,
        epsilon=site.attr_float("epsilon", _SKIP_EPSILON),
    )
    return [*found, *([None] * (3 - len(found))), total if site.wants(3) else None]


def skip_simplified(site: Site) -> Sequence[ir.Value | None]:
    """RMSNormalization of input + skip + bias; that sum is the fourth output."""
    _refuse_statistics(site, 1, 2)
    total = _sum(site, site.input(3))
    value = _rms(site, total, site.need(2), axis=-1, epsilon=site.attr_float("epsilon", _SKIP_EPSILON))
    return [value, None, None, total if site.wants(3) else None]


def simplified(site: Site) -> Sequence[ir.Value | None]:
    """RMSNormalization under the name that ONNX Runtime gave it before the standard had one."""
    _refuse_statistics(site, 1)
    epsilon, axis = site.attr_float("epsilon", _EPSILON), site.attr_int("axis", -1)
    return [_rms(site, site.need(0), site.need(1), axis=axis, epsilon=epsilon), None]


def _sum(site: Site, bias: ir.Value | None) -> ir.Value:
    total = site.op("Add", site.need(0), site.need(1))
    return total if bias is None else site.op("Add", total, bias)


def _rms(site: Site, value: ir.Value, scale: ir.Value, axis: int, epsilon: float) -> ir.Value:
    return site.op("RMSNormalization", value, scale, axis=axis, epsilon=epsilon)


def _refuse_statistics(site: Site, *outputs: int) -> None:
    if any(site.wants(index) for index in outputs):
        site.refuse("statistics of a training step among its outputs", "export the model for inference")
