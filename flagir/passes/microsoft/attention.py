"""Attention and QAttention: self-attention with the projections of query, key and value in one matrix."""

from collections.abc import Sequence

import onnx_ir as ir

from flagsplit.flagir.passes.microsoft import matmul_integer
from flagsplit.flagir.passes.microsoft.attention_core import Heads, attend
from flagsplit.flagir.passes.microsoft.site import Site


def attention(site: Site) -> Sequence[ir.Value | None]:
    """Inputs: input, weights, bias, mask, past, bias of the scores, length of the past."""
    projected = site.op("MatMul", site.need(0), site.need(1))
    bias = site.input(2)
    if bias is not None:
        projected = site.op("Add", projected, bias)
    if site.input(6) is not None:
        site.refuse("a past of a length of its own", "export the model without a shared buffer for past and present")
    return _self_attention(site, projected, site.input(3), site.input(4), site.input(5))


def q_attention(site: Site) -> Sequence[ir.Value | None]:
    """Inputs: input, weights, bias, both scales, mask, both zero points, past."""
    left, right = (site.need(0), site.input(6)), (site.need(1), site.input(7))
    projected = matmul_integer.product(site, left, right, (site.need(3), site.need(4)), site.need(2))
    return _self_attention(site, projected, site.input(5), site.input(8), None)


def _self_attention(
    site: Site, projected: ir.Value, mask: ir.Value | None, past: ir.Value | None, bias: ir.Value | None
) -> Sequence[ir.Value | None]:
    for name in ("do_rotary", "past_present_share_buffer"):
        if site.attr_int(name, 0):
            site.refuse(f"{name} set", "export the model without it")
    query, key, value = _split(site, projected)
    earlier = None
    if past is not None:
        halves = [site.op("Gather", past, site.constant(half), axis=0) for half in (0, 1)]
        earlier = (halves[0], halves[1])
    found = attend(site, Heads(query, key, value, earlier, mask, bias), present=site.wants(1))
    if len(found) == 1:
        return [found[0], None]
    pair = [site.op("Unsqueeze", half, site.constant([0])) for half in found[1:]]
    return [found[0], site.op("Concat", *pair, axis=0)]


def _split(site: Site, projected: ir.Value) -> Sequence[ir.Value]:
    sizes = site.node.attributes.get_ints("qkv_hidden_sizes")
    if sizes:
        return site.ops("Split", 3, projected, site.constant(list(sizes)), axis=-1)
    return site.ops("Split", 3, projected, axis=-1, num_outputs=3)
