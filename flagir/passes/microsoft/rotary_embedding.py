"""RotaryEmbedding: the standard has it since opset 23, with the position of every token written out."""

from collections.abc import Sequence

import onnx_ir as ir

from flagsplit.flagir.passes.microsoft.site import Site


def rotary_embedding(site: Site) -> Sequence[ir.Value | None]:
    """Inputs: what is rotated, positions, cosines and sines `[positions, size / 2]`."""
    if site.attr_int("is_packed_batching", 0):
        site.refuse("rows of different lengths in one tensor", "export the model with padding")
    if site.attr_float("scale", 1.0) != 1.0:
        site.refuse("a scale", "export the model without it")
    value = site.need(0)
    rank = site.rank(value)
    if rank not in (3, 4):
        site.refuse(f"an input of rank {rank}", "expected 3 or 4; the file is damaged")
    return [
        site.op(
            "RotaryEmbedding",
            value,
            site.need(2),
            site.need(3),
            _positions(site, value, rank),
            interleaved=site.attr_int("interleaved", 0),
            num_heads=_heads(site, value, rank),
            rotary_embedding_dim=site.attr_int("rotary_embedding_dim", 0),
        )
    ]


def _heads(site: Site, value: ir.Value, rank: int) -> int:
    heads = site.attr_int("num_heads", 0)
    if heads or rank == 4:
        return heads
    width, half = site.dims(value)[-1], site.dims(site.need(2))[-1]
    if width is None or half is None:
        site.refuse("neither num_heads nor sizes that tell it", "export the model with a fixed hidden size")
    return width // (2 * half)


def _positions(site: Site, value: ir.Value, rank: int) -> ir.Value:
    """One number is the position of the first token of every row."""
    given = site.need(1)
    if site.rank(given) == 2:
        return given
    axis = 1 if rank == 3 else 2
    length = site.op("Shape", value, start=axis, end=axis + 1)
    steps = site.op("Range", site.constant(0), site.op("Squeeze", length, site.constant([0])), site.constant(1))
    batch = site.op("Shape", value, start=0, end=1)
    return site.op("Expand", site.op("Add", given, steps), site.op("Concat", batch, length, axis=0))
