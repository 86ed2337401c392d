"""The parts of a transformer layer, in few nodes: what runs once per token is mostly the cost of its nodes.

Keys and values of the tokens before are never joined with those of the chunk: scores of both are computed apart, put
side by side, and after the softmax parted again. Products with the scale of the scores fold it into the weights.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from flagsplit.flagir.programs.spec import Spec
from flagsplit.flagir.programs.writer import REAL, GraphWriter, declared

MASKED = -1e30
"""Added to a score that does not count: large enough for a weight of exactly zero, and finite for any engine."""


@dataclass(frozen=True)
class Rotation:
    """Cosines and sines of the chunk's positions, each [batch, chunk, rotary_size / 2]."""

    cos: ir.Value
    sin: ir.Value


def norm(g: GraphWriter, spec: Spec, rows: ir.Value, name: str) -> ir.Value:
    """Norm over the last axis, under the names that `spec.py` lists."""
    weight = g.weight(f"{name}.weight", (spec.width,))
    if spec.norm == "rms":
        return g.op("RMSNormalization", rows, weight, axis=-1, epsilon=spec.epsilon)
    bias = (g.weight(f"{name}.bias", (spec.width,)),) if g.has(f"{name}.bias") else ()
    return g.op("LayerNormalization", rows, weight, *bias, axis=-1, epsilon=spec.epsilon)


def mlp(g: GraphWriter, spec: Spec, rows: ir.Value, name: str) -> ir.Value:
    """The rows after the feed-forward part of a layer, with what went around it."""
    inner = g.array(f"{name}.up.weight", (None, spec.width)).shape[0]
    normed = norm(g, spec, rows, f"{name}.norm")
    if spec.mlp == "gelu":
        middle = g.op("Gelu", g.linear(normed, [f"{name}.up"], spec.width, [inner]))
    else:
        both = g.linear(normed, [f"{name}.gate", f"{name}.up"], spec.width, [inner, inner])
        gate, up = g.ops("Split", both, outputs=2, axis=-1, num_outputs=2)
        middle = g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), up)
    return residual(g, rows, g.linear(middle, [f"{name}.down"], inner, [spec.width]))


def rotation(g: GraphWriter, spec: Spec, positions: ir.Value) -> Rotation | None:
    """The rotation for positions [batch, chunk] of int64; None where positions are learned."""
    if not spec.rotary_size:
        return None
    places = g.op("Unsqueeze", g.op("Cast", positions, to=REAL), g.numbers(-1))
    angles = g.op("Mul", places, g.weight("rotary.frequencies", (spec.rotary_size // 2,)))
    return Rotation(g.op("Cos", angles), g.op("Sin", angles))


def rotate(g: GraphWriter, spec: Spec, heads: ir.Value, by: Rotation | None, name: str | None = None) -> ir.Value:
    """Heads [batch, heads, chunk, head_size] turned to their positions."""
    if by is None:
        return heads
    return g.op(
        "RotaryEmbedding",
        heads,
        by.cos,
        by.sin,
        name=name,
        interleaved=int(spec.rotary_interleaved),
        rotary_embedding_dim=0 if spec.rotary_size == spec.head_size else spec.rotary_size,
    )


def rotate_plainly(g: GraphWriter, spec: Spec, heads: ir.Value, by: Rotation | None) -> ir.Value:
    """As `rotate`, in operators that every chip has: the partners come by a product with a matrix of 0, 1 and -1."""
    if by is None:
        return heads
    half, size = spec.rotary_size // 2, spec.head_size
    first = np.arange(half) * 2 if spec.rotary_interleaved else np.arange(half)
    second = first + 1 if spec.rotary_interleaved else first + half
    spread, partners = np.zeros((half, size)), np.zeros((size, size))
    spread[np.arange(half), first] = spread[np.arange(half), second] = 1
    partners[second, first], partners[first, second] = -1, 1
    still = g.constant(1 - spread.sum(0), np.float32, "rotary.still")
    to_all = g.constant(spread, np.float32, "rotary.spread")
    cos = g.op("Unsqueeze", g.op("Add", g.op("MatMul", by.cos, to_all), still), g.numbers(1))
    sin = g.op("Unsqueeze", g.op("MatMul", by.sin, to_all), g.numbers(1))
    turned = g.op("MatMul", heads, g.constant(partners, np.float32, "rotary.partners"))
    return g.op("Add", g.op("Mul", heads, cos), g.op("Mul", turned, sin))


def project(g: GraphWriter, spec: Spec, rows: ir.Value, name: str, names: Sequence[str | None]) -> Sequence[ir.Value]:
    """Queries, keys and values of rows [batch, chunk, width], each [batch, heads or kv_heads, chunk, head_size].

    Args:
        names: of the three values.
    """
    counts = (spec.heads, spec.kv_heads, spec.kv_heads)
    sizes = [count * spec.head_size for count in counts]
    all_heads = g.linear(rows, [f"{name}.{part}" for part in "qkv"], spec.width, sizes, [scale_of(spec), 1, 1])
    apart = split_heads(g, spec, all_heads, sum(counts))
    return g.ops("Split", apart, g.numbers(*counts), outputs=3, names=names, axis=1)


def scale_of(spec: Spec) -> float:
    """What scores are multiplied by."""
    return 1 / math.sqrt(spec.head_size)


def split_heads(g: GraphWriter, spec: Spec, rows: ir.Value, count: int) -> ir.Value:
    """Rows [batch, chunk, count * head_size] as heads [batch, count, chunk, head_size]."""
    return g.op("Transpose", g.op("Reshape", rows, g.numbers(0, 0, count, spec.head_size)), perm=[0, 2, 1, 3])


def join_heads(g: GraphWriter, spec: Spec, heads: ir.Value, name: str, rows: ir.Value) -> ir.Value:
    """Rows after the output projection of heads [batch, heads, chunk, head_size], with what went around them."""
    size = spec.heads * spec.head_size
    flat = g.op("Reshape", g.op("Transpose", heads, perm=[0, 2, 1, 3]), g.numbers(0, 0, size))
    return residual(g, rows, g.linear(flat, [f"{name}.o"], size, [spec.width]))


def residual(g: GraphWriter, rows: ir.Value, change: ir.Value) -> ir.Value:
    """The sum, of the shape of `rows`, which inference cannot follow through the heads."""
    assert rows.shape is not None
    return declared(g.op("Add", rows, change), rows.shape)


def scores(g: GraphWriter, queries: ir.Value, keys: ir.Value) -> ir.Value:
    """Products of queries [.., chunk, head_size] and keys [.., length, head_size]."""
    return g.op("MatMul", queries, g.op("Transpose", keys, perm=[0, 1, 3, 2]))


def attend(g: GraphWriter, queries: ir.Value, keys: ir.Value, values: ir.Value, mask: ir.Value | None) -> ir.Value:
    """Attention to one set of keys and values."""
    products = scores(g, queries, keys)
    if mask is not None:
        products = g.op("Add", products, mask)
    return g.op("MatMul", g.op("Softmax", products, axis=-1), values)


def length_of(g: GraphWriter, value: ir.Value, axis: int) -> ir.Value:
    """The size of an axis, int64 [1]."""
    return g.op("Shape", value, start=axis, end=axis + 1)


def count_up(g: GraphWriter, start: ir.Value | None, end: ir.Value, axes: Sequence[int]) -> ir.Value:
    """The numbers from `start` (None is 0) to before `end`, both int64 [1], with axes of one put in."""
    scalar = g.numbers()
    first = g.constant(0, np.int64) if start is None else g.op("Reshape", start, scalar)
    numbers = g.op("Range", first, g.op("Reshape", end, scalar), g.constant(1, np.int64))
    return g.op("Unsqueeze", numbers, g.numbers(*axes))


def masked_where_false(g: GraphWriter, allowed: ir.Value, name: str | None = None) -> ir.Value:
    """What is added to scores: nothing where `allowed`."""
    return g.op("Where", allowed, g.constant(0.0, np.float32), g.constant(MASKED, np.float32), name=name)


def at_batch(g: GraphWriter, lengths: ir.Value) -> ir.Value:
    """Lengths [batch] to be compared with [batch, heads, chunk, length]."""
    return g.op("Unsqueeze", lengths, g.numbers(1, 2, 3))
