"""MultiHeadAttention: attention of projected query, key and value."""

from collections.abc import Sequence

import onnx_ir as ir

from flagsplit.flagir.passes.microsoft.attention_core import Heads, attend
from flagsplit.flagir.passes.microsoft.site import Site

_PACKED = "expected them apart, [batch, length, heads * size] each; save the model with a lower optimization level"


def multi_head_attention(site: Site) -> Sequence[ir.Value | None]:
    """Inputs: query, key, value, bias of the three, mask, bias of the scores, past key, past value, two for buffers."""
    if site.input(1) is None or site.input(2) is None:
        site.refuse("query, key and value packed into one tensor", _PACKED)
    query, key, value = site.need(0), site.need(1), site.need(2)
    ranks = [site.rank(each) for each in (query, key, value)]
    if ranks not in ([3, 3, 3], [3, 4, 4]):
        site.refuse(f"query, key and value of ranks {ranks}", _PACKED)
    if site.input(8) is not None or site.input(9) is not None:
        site.refuse("a past in a shared buffer", "export the model so that past and present are tensors of their own")
    if site.wants(3):
        site.refuse("the scores among its outputs", "export the model without them")
    split = ranks[1] == 4
    query, key, value = _biased(site, query, key, value, split=split)
    past_key, past_value = site.input(6), site.input(7)
    past = (past_key, past_value) if past_key is not None and past_value is not None else None
    if split and past is not None:
        site.refuse("a past beside keys that are split into heads", "save the model with a lower optimization level")
    heads = Heads(query, key, value, past, site.input(4), site.input(5))
    found = attend(site, heads, present=site.wants(1) or site.wants(2))
    return [*found, *([None] * (4 - len(found)))]


def _biased(
    site: Site, query: ir.Value, key: ir.Value, value: ir.Value, *, split: bool
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """With the bias of the projections; keys that are split into heads already have theirs."""
    bias = site.input(3)
    if bias is None:
        return query, key, value
    sizes = [size for each in (query, query, value) if (size := site.dims(each)[-1]) is not None]
    if split or len(sizes) < 3:
        parts = site.ops("Split", 3, bias, axis=0, num_outputs=3)
    else:
        parts = site.ops("Split", 3, bias, site.constant(sizes), axis=0)
    if split:
        return site.op("Add", query, parts[0]), key, value
    return site.op("Add", query, parts[0]), site.op("Add", key, parts[1]), site.op("Add", value, parts[2])
