"""What lowerings call: the kernels on a GPU, and the same written in PyTorch on the CPU.

Without Triton, which PyTorch brings along on Linux, a GPU gets PyTorch's own kernels too: right, but a stream's tokens
then depend on how many others there are.
"""

import importlib.util
from functools import cache
from importlib import import_module
from typing import Any

from flagsplit.targets.cloud.cuda.sdk import torch

_TILE = 64
_QUERIES, _KEYS = 16, 64
_NARROW = 4096
"""Products with fewer columns are divided into narrower blocks: there are few, and all multiprocessors have work."""


@cache
def has_kernels() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def takes(x: Any) -> bool:
    """Whether the kernels compute with such a tensor."""
    return x.is_cuda and has_kernels() and x.dtype in (torch.float16, torch.bfloat16, torch.float32)


def linear(x: Any, weights: Any, bias: Any = None, residual: Any = None) -> Any:
    """x [.., k] weights [n, k]^T + bias [n] + residual [.., n]."""
    if not takes(x):
        made = torch.nn.functional.linear(x, weights, bias)
        return made if residual is None else made + residual
    x, weights = x.contiguous(), weights.contiguous()
    n, k = weights.shape
    rows = x.numel() // k
    out = torch.empty((*x.shape[:-1], n), dtype=x.dtype, device=x.device)
    block_n = 32 if n <= _NARROW else 64
    block_k = 64 if x.dtype == torch.float32 or k <= 64 else 128
    grid = (_parts(n, block_n), _parts(rows, _TILE))
    _kernels().linear_kernel[grid](
        x, weights, x if bias is None else bias, x if residual is None else residual.contiguous(), out, rows, n, k,
        has_bias=bias is not None, has_residual=residual is not None, tile=_TILE, block_n=block_n, block_k=block_k,
        num_warps=4, num_stages=2 if x.dtype == torch.float32 else 4,
    )  # fmt: skip
    return out


def norm(x: Any, scale: Any, bias: Any, epsilon: float, *, centers: bool) -> Any:
    """Rows by their root mean square, or by mean and variance, over the last axis."""
    if not takes(x):
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        wide = wide - wide.mean(-1, keepdim=True) if centers else wide
        made = wide * torch.rsqrt((wide * wide).mean(-1, keepdim=True) + epsilon) * scale
        return (made if bias is None else made + bias).to(x.dtype)
    x = x.contiguous()
    out, width = torch.empty_like(x), x.shape[-1]
    _kernels().norm_kernel[(x.numel() // width,)](
        x, scale, scale if bias is None else bias, out, width, epsilon,
        centers=centers, has_bias=bias is not None, block=_power(width),
    )  # fmt: skip
    return out


def attention(q: Any, past: tuple[Any, Any], new: tuple[Any, Any] | None, lengths: Any, scale: float) -> Any:
    """Each query to the first keys of the past, and to those of the chunk up to its own.

    Args:
        q: [batch, heads, chunk, size].
        past: keys and values [batch, key heads, room, size].
        new: of the chunk, [batch, key heads, chunk, size].
        lengths: [batch], how many keys of the past there are.
        scale: of the products.

    Returns:
        [batch, heads, chunk, size].
    """
    batch, heads, chunk, size = q.shape
    key_heads = past[0].shape[1]
    group = heads // key_heads
    if not takes(q):
        return _attention(q, past, new, lengths, scale)
    q, past = _rows(q), (past[0].contiguous(), past[1].contiguous())
    k, v = (q, q) if new is None else (_rows(new[0]), _rows(new[1]))
    out = torch.empty((batch, heads, chunk, size), dtype=q.dtype, device=q.device)
    _kernels().attention_kernel[(batch * key_heads, _parts(chunk * group, _QUERIES))](
        q, *past, k, v, lengths, out, *q.stride()[:3], *past[0].stride()[:2], *k.stride()[:3], *v.stride()[:3],
        key_heads, chunk, size, scale,
        group=group, has_new=new is not None, tile=_QUERIES, block=_KEYS, width=_power(size), num_warps=4,
    )  # fmt: skip
    return out


def rotary(x: Any, cosine: Any, sine: Any, turned: int, *, woven: bool) -> Any:
    """Pairs of heads [batch, heads, chunk, size] turned by angles [batch, chunk, turned / 2]."""
    x = _rows(x)
    batch, heads, chunk, size = x.shape
    out = torch.empty((batch, heads, chunk, size), dtype=x.dtype, device=x.device)
    _kernels().rotary_kernel[(batch * chunk, heads)](
        x, cosine.contiguous(), sine.contiguous(), out, heads, chunk, *x.stride()[:3],
        size=size, turned=turned, woven=woven, block=_power(size), num_warps=1,
    )  # fmt: skip
    return out


def gate(a: Any, b: Any) -> Any:
    """silu(a) b, both of one shape."""
    if not takes(a):
        return torch.nn.functional.silu(a) * b
    a, b = (each if _is_even(each) else each.contiguous() for each in (a, b))
    out, width = torch.empty(a.shape, dtype=a.dtype, device=a.device), a.shape[-1]
    _kernels().gate_kernel[(a.numel() // width, _parts(width, 1024))](
        a, b, out, width, a.stride(-2), b.stride(-2), block=1024, num_warps=4
    )
    return out


def append(keys: Any, values: Any, new: tuple[Any, Any], rows: Any | None, lengths: Any) -> None:
    """Write keys and values of a chunk into arrays [rows, key heads, room, size], in place, behind what rows have."""
    k, v = new
    batch, heads, chunk, size = k.shape
    if not takes(k):
        rows = torch.arange(batch, device=k.device) if rows is None else rows
        places = lengths[:, None] + torch.arange(chunk, device=k.device)
        for array, each in ((keys, k), (values, v)):
            array[rows[:, None], :, places] = each.transpose(1, 2)
        return
    k, v = _rows(k), _rows(v)
    _kernels().append_kernel[(batch * chunk, heads)](
        keys, values, k, v, lengths if rows is None else rows, lengths, *keys.stride()[:2],
        *k.stride()[:3], *v.stride()[:3], chunk, size, has_rows=rows is not None, block=_power(size), num_warps=1,
    )  # fmt: skip


def _attention(q: Any, past: tuple[Any, Any], new: tuple[Any, Any] | None, lengths: Any, scale: float) -> Any:
    """In PyTorch."""
    batch, heads, chunk, _ = q.shape
    room = past[0].shape[2]
    keys, values = past
    count = torch.arange(room, device=q.device)
    allowed = (count < lengths[:, None, None]).expand(batch, chunk, room)
    if new is not None:
        keys, values = (torch.cat(pair, 2) for pair in zip(past, new, strict=True))
        own = torch.ones((chunk, chunk), dtype=torch.bool, device=q.device).tril().expand(batch, chunk, chunk)
        allowed = torch.cat([allowed, own], 2)
    keys, values = (each.repeat_interleave(heads // each.shape[1], 1) for each in (keys, values))
    products = torch.matmul(q, keys.transpose(-1, -2)).float() * scale
    products = products.masked_fill(~allowed[:, None], -1e30)
    parts = torch.softmax(products, -1).masked_fill(~allowed[:, None], 0.0)
    return torch.matmul(parts.to(values.dtype), values)


def _is_even(x: Any) -> bool:
    """Whether all rows along the last axis are equally far apart."""
    strides = [x.shape[axis + 1] * x.stride(axis + 1) for axis in range(x.dim() - 2)]
    return x.dim() > 1 and x.stride(-1) == 1 and list(x.stride()[:-2]) == strides


def _rows(x: Any) -> Any:
    """With the last axis in one piece."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _kernels() -> Any:
    return import_module("flagsplit.targets.cloud.cuda.rowwise.kernels")


def _parts(count: int, size: int) -> int:
    return -(-count // size)


def _power(count: int) -> int:
    return max(16, 1 << (count - 1).bit_length())
