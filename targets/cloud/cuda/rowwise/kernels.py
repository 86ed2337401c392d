"""The kernels, in Triton. Whatever changes from call to call, as numbers of rows do, is no part of what is compiled.

A tile of a product or of attention has a fixed number of rows; sums go over blocks of fixed size, from the first on.
Blocks that are masked for a row add exact zeros to it.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows"])
def linear_kernel(
    x, weights, bias, residual, out, rows, n, k,
    has_bias: tl.constexpr, has_residual: tl.constexpr,
    tile: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr,
):  # fmt: skip
    """out[rows, n] = x[rows, k] weights[n, k]^T + bias + residual, all contiguous."""
    at_n = tl.program_id(0) * block_n + tl.arange(0, block_n)
    at_row = tl.program_id(1) * tile + tl.arange(0, tile)
    at_k = tl.arange(0, block_k)
    total = tl.zeros((tile, block_n), tl.float32)
    is_row, is_n = at_row < rows, at_n < n
    x_at = x + at_row[:, None].to(tl.int64) * k + at_k[None, :]
    weights_at = weights + at_n[None, :].to(tl.int64) * k + at_k[:, None]
    for first in range(0, k, block_k):
        is_k = at_k < k - first
        a = tl.load(x_at + first, mask=is_row[:, None] & is_k[None, :], other=0.0)
        b = tl.load(weights_at + first, mask=is_n[None, :] & is_k[:, None], other=0.0)
        total = tl.dot(a, b, total, input_precision="ieee")
    if has_bias:
        total += tl.load(bias + at_n, mask=is_n, other=0.0).to(tl.float32)[None, :]
    at = at_row[:, None].to(tl.int64) * n + at_n[None, :]
    inside = is_row[:, None] & is_n[None, :]
    if has_residual:
        total += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def norm_kernel(
    x, scale, bias, out, width, epsilon,
    centers: tl.constexpr, has_bias: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """One row by its root mean square, or by mean and variance."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, block)
    inside = at < width
    values = tl.load(x + row * width + at, mask=inside, other=0.0).to(tl.float32)
    if centers:
        values = tl.where(inside, values - tl.sum(values) / width, 0.0)
    made = values * tl.rsqrt(tl.sum(values * values) / width + epsilon)
    made *= tl.load(scale + at, mask=inside, other=0.0).to(tl.float32)
    if has_bias:
        made += tl.load(bias + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + at, made.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["chunk"])
def attention_kernel(
    q, past_k, past_v, new_k, new_v, lengths, out,
    q_batch, q_head, q_row, past_batch, past_head,
    k_batch, k_head, k_row, v_batch, v_head, v_row,
    heads, chunk, size, scale,
    group: tl.constexpr, has_new: tl.constexpr,
    tile: tl.constexpr, block: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """Queries of `group` heads that share keys: to `lengths` keys of the past, and to the chunk's up to their own.

    A query's number in its tile is that of its place in the chunk times `group` plus that of its head. Keys are counted
    from the first of the past, wherever they lie.
    """
    batch, head = tl.program_id(0).to(tl.int64) // heads, tl.program_id(0).to(tl.int64) % heads
    number = tl.program_id(1) * tile + tl.arange(0, tile)
    place, of_group = number // group, number % group
    is_query = place < chunk
    at = tl.arange(0, width)
    is_column = at < size
    of_query = head * group + of_group
    queries = tl.load(
        q + batch * q_batch + of_query[:, None] * q_head + place[:, None] * q_row + at[None, :],
        mask=is_query[:, None] & is_column[None, :],
        other=0.0,
    )
    length = tl.load(lengths + batch)
    end = length
    if has_new:
        end += tl.minimum(tl.program_id(1) * tile + tile - 1, chunk * group - 1) // group + 1
    most = tl.full((tile,), -1e30, tl.float32)
    weight = tl.zeros((tile,), tl.float32)
    mixed = tl.zeros((tile, width), tl.float32)
    for first in range(0, end, block):
        position = first + tl.arange(0, block)
        is_past = position < length
        inside = is_past[None, :] & is_column[:, None]
        of_past = batch * past_batch + head * past_head + position * size
        keys = tl.load(past_k + of_past[None, :] + at[:, None], mask=inside, other=0.0)
        values = tl.load(past_v + of_past[:, None] + at[None, :], mask=is_past[:, None] & is_column[None, :], other=0.0)
        counts = is_past[None, :]
        if has_new:
            is_new = (position >= length) & (position < length + chunk)
            of_new = position - length
            keys += tl.load(
                new_k + batch * k_batch + head * k_head + of_new[None, :] * k_row + at[:, None],
                mask=is_new[None, :] & is_column[:, None],
                other=0.0,
            )
            values += tl.load(
                new_v + batch * v_batch + head * v_head + of_new[:, None] * v_row + at[None, :],
                mask=is_new[:, None] & is_column[None, :],
                other=0.0,
            )
            counts = position[None, :] <= length + place[:, None]
        products = tl.dot(queries, keys, input_precision="ieee") * scale
        products = tl.where(counts, products, -1e30)
        higher = tl.maximum(most, tl.max(products, 1))
        shrink = tl.exp(most - higher)
        parts = tl.where(counts, tl.exp(products - higher[:, None]), 0.0)
        weight = weight * shrink + tl.sum(parts, 1)
        mixed = mixed * shrink[:, None] + tl.dot(parts.to(values.dtype), values, input_precision="ieee")
        most = higher
    mixed = mixed / tl.where(weight > 0, weight, 1.0)[:, None]
    into = ((batch * heads * group + of_query)[:, None] * chunk + place[:, None]) * size + at[None, :]
    tl.store(out + into, mixed.to(out.dtype.element_ty), mask=is_query[:, None] & is_column[None, :])


@triton.jit(do_not_specialize=["chunk"])
def rotary_kernel(
    x, cosine, sine, out, heads, chunk, x_batch, x_head, x_row,
    size: tl.constexpr, turned: tl.constexpr, woven: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """One head of one token, its pairs turned by the token's angles; the rest as it is."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    batch, place = token // chunk, token % chunk
    at = tl.arange(0, block)
    half: tl.constexpr = turned // 2
    if woven:
        pair, is_second, other = at // 2, at % 2 == 1, tl.where(at % 2 == 1, at - 1, at + 1)
    else:
        pair, is_second = tl.where(at < half, at, at - half), at >= half
        other = tl.where(at < half, at + half, at - half)
    source = x + batch * x_batch + head * x_head + place * x_row
    turns = at < turned
    own = tl.load(source + at, mask=at < size, other=0.0).to(tl.float32)
    partner = tl.load(source + other, mask=turns, other=0.0).to(tl.float32)
    cos = tl.load(cosine + token * half + pair, mask=turns, other=1.0).to(tl.float32)
    sin = tl.load(sine + token * half + pair, mask=turns, other=0.0).to(tl.float32)
    made = own * cos + tl.where(is_second, partner, -partner) * sin
    into = out + ((batch * heads + head) * chunk + place) * size
    tl.store(into + at, made.to(out.dtype.element_ty), mask=at < size)


@triton.jit(do_not_specialize=["chunk"])
def append_kernel(
    keys, values, new_k, new_v, rows, lengths, array_row, array_head,
    k_batch, k_head, k_row, v_batch, v_head, v_row, chunk, size, has_rows: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """The keys and values of one new token and head into the arrays, behind what their row has."""
    batch, place, head = (tl.program_id(0) // chunk).to(tl.int64), tl.program_id(0) % chunk, tl.program_id(1)
    at = tl.arange(0, block)
    inside = at < size
    row = batch
    if has_rows:
        row = tl.load(rows + batch)
    into = row * array_row + head * array_head + (tl.load(lengths + batch) + place) * size + at
    key = tl.load(new_k + batch * k_batch + head * k_head + place * k_row + at, mask=inside, other=0.0)
    value = tl.load(new_v + batch * v_batch + head * v_head + place * v_row + at, mask=inside, other=0.0)
    tl.store(keys + into, key, mask=inside)
    tl.store(values + into, value, mask=inside)


@triton.jit
def gate_kernel(gate, up, out, width, gate_row, up_row, block: tl.constexpr):
    """silu(gate) up, a block of a row."""
    row, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * block + tl.arange(0, block)
    inside = at < width
    a = tl.load(gate + row * gate_row + at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(up + row * up_row + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + at, (a / (1 + tl.exp(-a)) * b).to(out.dtype.element_ty), mask=inside)
