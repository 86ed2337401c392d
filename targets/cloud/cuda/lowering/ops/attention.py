"""Attention and rotary positions."""

import math
from typing import Any

from flagsplit.targets.cloud.cuda.lowering.site import Kernel, Refused, Site, as_dtype, widened
from flagsplit.targets.cloud.cuda.rowwise import calls
from flagsplit.targets.cloud.cuda.sdk import torch


def lower(site: Site) -> Kernel:
    """softmax(q k^T scale + mask) v, by PyTorch's fused kernels."""
    outputs = [value.name for value in site.node.outputs]
    if any(site.given(index) for index in (4, 5, 6)) or any(outputs[1:]):
        raise Refused("PyTorch's fused attention takes no cache and gives no scores")
    if site.number("softcap", 0.0) or site.integer("softmax_precision", 1) not in (1, 10):
        raise Refused("PyTorch's fused attention bends no scores, and adds up in float32")
    flat = site.rank(0) == 3
    heads = site.integer("q_num_heads", 0) if flat else site.shape(0)[1]
    key_heads = site.integer("kv_num_heads", 0) if flat else site.shape(1)[1]
    causal = bool(site.integer("is_causal", 0))
    if causal and site.given(3):
        raise Refused("PyTorch's fused attention takes no mask beside the causal one")
    if site.given(3) and site.shape(3)[-1] != site.shape(1)[-2]:
        raise Refused("the mask is shorter than the keys")
    out = site.out_shape()
    size = site.shape(0)[-1] // (heads if flat else 1)
    said = site.attributes.get_float("scale")
    scale = said if said else 1.0 / math.sqrt(size)

    def split(x: Any, many: int) -> Any:
        return x.reshape(*x.shape[:2], many, -1).transpose(1, 2) if flat else x

    def kernel(q: Any, k: Any, v: Any, mask: Any = None) -> Any:
        q, k, v = split(q, heads), split(k, key_heads), split(v, key_heads)
        if key_heads != heads:
            k, v = (x.repeat_interleave(heads // key_heads, 1) for x in (k, v))
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.to(q.dtype)
        made = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal and mask is None, scale=scale
        )
        return made.transpose(1, 2).reshape(out) if flat else made

    return kernel


def lower_rotary(site: Site) -> Kernel:
    """Pairs of each head turned by the angle of their position."""
    flat, shape = site.rank(0) == 3, site.shape(0)
    heads = site.integer("num_heads", 0) if flat else shape[1]
    size = shape[2] // heads if flat else shape[3]
    turned = site.integer("rotary_embedding_dim", 0) or size
    woven, out = bool(site.integer("interleaved", 0)), site.out_dtype()

    by_rows = site.style.rows and not flat

    def kernel(x: Any, cosine: Any, sine: Any, positions: Any = None) -> Any:
        if by_rows and positions is None and calls.takes(x) and cosine.shape[-1] == turned // 2:
            return calls.rotary(x, cosine, sine, turned, woven=woven)
        whole = widened(x)
        whole = whole.reshape(shape[0], shape[1], heads, size) if flat else whole.transpose(1, 2)
        rotating, rest = whole[..., :turned], whole[..., turned:]
        if positions is not None:
            cosine, sine = cosine[positions.long()], sine[positions.long()]
        cosine, sine = (widened(each)[..., : turned // 2].unsqueeze(2) for each in (cosine, sine))
        first, second = (rotating[..., ::2], rotating[..., 1::2]) if woven else rotating.chunk(2, -1)
        real, imaginary = cosine * first - sine * second, sine * first + cosine * second
        made = torch.stack([real, imaginary], -1).flatten(-2) if woven else torch.cat([real, imaginary], -1)
        made = torch.cat([made, rest], -1)
        return (made.reshape(shape) if flat else made.transpose(1, 2)).to(as_dtype(out))

    return kernel


def lower_fused(site: Site) -> Kernel:
    """softmax(q k^T scale + mask) v of 3 or 4 axes, as the attention pass makes it."""
    scale, out = site.number("scale", 1.0), site.out_shape()

    def kernel(q: Any, k: Any, v: Any, mask: Any = None) -> Any:
        if q.dim() == 3:
            q, k, v = (each.unsqueeze(0) for each in (q, k, v))
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.to(q.dtype)
        if mask is not None and mask.dim() < 2:
            mask = mask.expand(q.shape[-2], k.shape[-2])
        made = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        return made.reshape(out)

    return kernel


def lower_cached(site: Site) -> Kernel:
    """To the keys that rows have, and to their chunk's, as the pass for steps makes it.

    Queries of heads that share keys come one head after the other: [batch, key heads, heads of one * chunk, size].
    """
    many, out = site.shape(1)[1], site.out_shape()
    chunk = site.shape(3)[2] if site.given(3) else out[2]

    def kernel(q: Any, past_k: Any, past_v: Any, new_k: Any, new_v: Any, lengths: Any) -> Any:
        heads = q.reshape(q.shape[0], many * (q.shape[2] // chunk), chunk, q.shape[3])
        new = None if new_k is None else (new_k, new_v)
        return calls.attention(heads, (past_k, past_v), new, lengths, 1.0).reshape(out)

    return kernel
