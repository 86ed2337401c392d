"""EmbedLayerNormalization: the sum of a word's, a position's and a segment's vector, normalized."""

from collections.abc import Sequence

import onnx_ir as ir

from flagsplit.flagir.passes.microsoft.site import Site


def embed_layer_normalization(site: Site) -> Sequence[ir.Value | None]:
    """Inputs: ids, segment ids, word, position and segment tables, gamma, beta, mask, position ids."""
    ids, segments = site.need(0), site.input(1)
    total = site.op("Add", site.op("Gather", site.need(2), ids), _positions(site, ids))
    if segments is not None:
        total = site.op("Add", total, site.op("Gather", site.need(4), segments))
    epsilon = site.attr_float("epsilon", 1e-12)
    value = site.op("LayerNormalization", total, site.need(5), site.need(6), axis=-1, epsilon=epsilon)
    return [value, _mask_index(site, ids) if site.wants(1) else None, total if site.wants(2) else None]


def _positions(site: Site, ids: ir.Value) -> ir.Value:
    """The vectors of the given positions, else of 0, 1, 2, …"""
    table, given = site.need(3), site.input(8)
    if given is not None:
        return site.op("Gather", table, given)
    length = site.op("Shape", ids, start=1, end=2)
    return site.op("Slice", table, site.constant([0]), length, site.constant([0]))


def _mask_index(site: Site, ids: ir.Value) -> ir.Value:
    """How many words of each row count; without a mask ONNX Runtime writes zeros."""
    mask = site.input(7)
    if mask is None:
        return site.op("ConstantOfShape", site.op("Shape", ids, start=0, end=1), value=_ZERO)
    one = site.constant(1, ir.DataType.INT32)
    counted = site.op("Cast", site.op("Equal", mask, one), to=int(ir.DataType.INT32))
    return site.op("ReduceSum", counted, site.constant([1]), keepdims=0)


_ZERO = ir.AttrTensor("value", ir.tensor([0], dtype=ir.DataType.INT32))
