"""What the attention operators have in common: their masks, which are many, become one that is added to the scores."""

from dataclasses import dataclass

import onnx_ir as ir

from flagsplit.flagir.passes.microsoft.site import Site

_FILTER = -10000.0


@dataclass(frozen=True)
class Heads:
    """Query, key and value, with what goes with them.

    Attributes:
        query: `[batch, length, heads * size]`.
        key: the same, or split into heads, `[batch, heads, length, size]`; so is the value.
        value: see key; its heads may have another size.
        past: key and value of earlier calls, split into heads; they go before.
        mask: in one of the forms of `mask_index` and `key_padding_mask`.
        bias: is added to the scores, `[batch or 1, heads or 1, length, total length]`.
    """

    query: ir.Value
    key: ir.Value
    value: ir.Value
    past: tuple[ir.Value, ir.Value] | None
    mask: ir.Value | None
    bias: ir.Value | None


def attend(site: Site, heads: Heads, *, present: bool) -> tuple[ir.Value, ...]:
    """Write `Attention` with the attributes of the node.

    Returns:
        The result and, if `present`, the keys and values of all calls so far, split into heads.
    """
    count = site.attr_int("num_heads", 0)
    if count < 1:
        site.refuse(f"num_heads {count}", "the file is damaged")
    key, value = heads.key, heads.value
    if heads.past is not None or present:
        key, value = _split(site, key, count), _split(site, value, count)
    if heads.past is not None:
        key = site.op("Concat", heads.past[0], key, axis=2)
        value = site.op("Concat", heads.past[1], value, axis=2)
    causal = bool(site.attr_int("unidirectional", 0))
    plain = heads.mask is None and heads.bias is None and heads.past is None
    mask = None if plain else _score_mask(site, heads, _length(site, key, -2), causal=causal)
    names: dict[str, int | float | None] = {
        "is_causal": int(causal and plain),
        "scale": site.attr_float("scale", 0.0) or None,
    }
    if site.rank(key) == 3:
        result = site.op("Attention", heads.query, key, value, mask, q_num_heads=count, kv_num_heads=count, **names)
    else:
        apart = site.op("Attention", _split(site, heads.query, count), key, value, mask, **names)
        result = site.op("Reshape", site.transpose(apart, 0, 2, 1, 3), site.constant([0, 0, -1]))
    return (result, key, value) if present else (result,)


def _split(site: Site, value: ir.Value, count: int) -> ir.Value:
    """`[batch, length, heads * size]` as `[batch, heads, length, size]`."""
    if site.rank(value) == 4:
        return value
    width = site.dims(value)[-1]
    size = -1 if width is None else width // count
    return site.transpose(site.op("Reshape", value, site.constant([0, 0, count, size])), 0, 2, 1, 3)


def _score_mask(site: Site, heads: Heads, total: ir.Value, *, causal: bool) -> ir.Value | None:
    """What is added to the scores; masked keys are not ruled out but made unlikely, as ONNX Runtime does it."""
    parts = []
    if heads.mask is not None:
        number = site.attr_float("mask_filter_value", _FILTER)
        parts.append(_filtered(site, heads, _unmasked(site, heads, heads.mask, total), number))
    if causal:
        lowest = float(site.dtype(heads.query).min)
        parts.append(_filtered(site, heads, _not_later(site, heads, total), lowest))
    if heads.bias is not None:
        parts.append(heads.bias)
    while len(parts) > 1:
        parts[:2] = [site.op("Add", parts[0], parts[1])]
    return parts[0] if parts else None


def _filtered(site: Site, heads: Heads, allowed: ir.Value, number: float) -> ir.Value:
    return site.op("Where", allowed, site.like(0.0, heads.query), site.like(number, heads.query))


def _unmasked(site: Site, heads: Heads, mask: ir.Value, total: ir.Value) -> ir.Value:
    """Which keys may be seen, `[batch, 1, length, total length]`; the engine broadcasts no further."""
    rank = site.rank(mask)
    if rank > 3 or rank < 1:
        site.refuse(f"a mask of rank {rank}", "expected rank 1, 2 or 3; save the model with a lower optimization level")
    if rank == 1:
        allowed = _within(site, heads, mask, total)
    else:
        allowed = site.op("Greater", mask, site.constant(0, ir.DataType.INT32))
        allowed = site.op("Unsqueeze", allowed, site.constant([1, 2] if rank == 2 else [1]))
    if rank == 3:
        return allowed
    length = site.op("Shape", heads.query, start=1, end=2)
    return site.op("Expand", allowed, site.op("Concat", length, site.constant([1]), axis=0))


def _within(site: Site, heads: Heads, mask: ir.Value, total: ir.Value) -> ir.Value:
    """A mask of one number per row is where the row ends; of two, first all ends, then all starts."""
    batch, size = site.dims(heads.query)[0], site.dims(mask)[0]
    if batch is not None and size not in (None, batch, 2 * batch):
        site.refuse(f"a mask of {size} numbers for {batch} rows", "expected one or two per row; attend without padding")
    place = site.op("Cast", _positions(site, total), to=int(ir.DataType.INT32))
    axes = site.constant([1, 2, 3])
    if batch is None or size != 2 * batch:
        return site.op("Less", place, site.op("Unsqueeze", mask, axes))
    ends, starts = site.ops("Split", 2, mask, axis=0, num_outputs=2)
    before_end = site.op("Less", place, site.op("Unsqueeze", ends, axes))
    return site.op("And", before_end, site.op("GreaterOrEqual", place, site.op("Unsqueeze", starts, axes)))


def _not_later(site: Site, heads: Heads, total: ir.Value) -> ir.Value:
    """A query sees the keys of earlier calls and those up to its own place."""
    rows = _positions(site, _length(site, heads.query, 1))
    if heads.past is not None:
        rows = site.op("Add", rows, _length(site, heads.past[0], 2))
    return site.op("LessOrEqual", _positions(site, total), site.op("Unsqueeze", rows, site.constant([1])))


def _length(site: Site, value: ir.Value, axis: int) -> ir.Value:
    axis %= site.rank(value)
    return site.op("Squeeze", site.op("Shape", value, start=axis, end=axis + 1), site.constant([0]))


def _positions(site: Site, length: ir.Value) -> ir.Value:
    return site.op("Range", site.constant(0), length, site.constant(1))
