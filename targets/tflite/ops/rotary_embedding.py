"""RotaryEmbedding: pairs of elements turned by an angle of their position."""

import onnx_ir as ir

from flagsplit.targets.tflite.builder import Builder
from flagsplit.targets.tflite.ops.gather import from_front
from flagsplit.targets.tflite.program import Refused, Tensor


def lower(builder: Builder, node: ir.Node) -> None:
    """Of [batch, heads, length, size], or of [batch, length, heads * size]."""
    x = builder.take(node, 0)
    heads = node.attributes.get_int("num_heads", 0)
    if x.rank == 3 and not heads:
        raise Refused("takes a number of heads with three dimensions")
    split = x if x.rank == 4 else builder.reshape(x, (*x.shape[:2], heads, x.shape[2] // heads))
    size = split.shape[3]
    turning = node.attributes.get_int("rotary_embedding_dim", 0) or size
    half = turning // 2
    cosine, sine = (_of_positions(builder, node, at, heads_first=x.rank == 4) for at in (1, 2))
    pairs = bool(node.attributes.get_int("interleaved", 0))
    firsts, seconds = (range(0, turning, 2), range(1, turning, 2)) if pairs else (range(half), range(half, turning))
    left, right = (_picked(builder, split, each) for each in (firsts, seconds))
    real = builder.sub(builder.mul(cosine, left), builder.mul(sine, right))
    imaginary = builder.add(builder.mul(sine, left), builder.mul(cosine, right))
    turned = builder.concat([real, imaginary], 3)
    if pairs:
        turned = builder.gather(turned, builder.ints([at // 2 + half * (at % 2) for at in range(turning)]), 3)
    if turning < size:
        turned = builder.concat([turned, builder.cut(split, 3, turning, size - turning)], 3)
    builder.give(node, builder.reshape(turned, x.shape))


def _picked(builder: Builder, x: Tensor, places: range) -> Tensor:
    """Of the last axis."""
    if places.step == 1:
        return builder.cut(x, 3, places.start, len(places))
    return builder.gather(x, builder.ints(places), 3)


def _of_positions(builder: Builder, node: ir.Node, at: int, heads_first: bool) -> Tensor:
    """Cosines or sines, [batch, 1, length, half] or [batch, length, 1, half]."""
    table, positions = builder.take(node, at), builder.maybe(node, 3)
    found = table if positions is None else builder.gather(table, from_front(builder, positions, table.shape[0]), 0)
    batch, length, half = found.shape
    return builder.reshape(found, (batch, 1, length, half) if heads_first else (batch, length, 1, half))
