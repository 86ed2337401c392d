"""The graphs of a decoder out of its weights: `step` in slot form, and `prefill` where it attends to an encoder.

docs/programs.md specifies both. The weights are named in `spec.py`.
"""

from dataclasses import dataclass

import onnx_ir as ir

from flagsplit.flagir.programs.layers import (
    Rotation,
    at_batch,
    attend,
    count_up,
    join_heads,
    length_of,
    masked_where_false,
    mlp,
    norm,
    project,
    residual,
    rotate,
    rotation,
    scale_of,
    scores,
    split_heads,
)
from flagsplit.flagir.programs.spec import DecoderSpec
from flagsplit.flagir.programs.writer import REAL, WHOLE, GraphWriter, Weights, declared

Dims = list[int | str]


def build_step(spec: DecoderSpec, weights: Weights) -> ir.Model:
    """The graph `step`: a chunk of tokens of every row of a batch to the logits of the row's token `last`.

    Args:
        spec: of the decoder.
        weights: by the names of `spec.py`, of any float type; the graph has them in float32.

    Raises:
        ModelError: a weight is missing or has another shape.
    """
    g = GraphWriter("step", weights)
    tokens = g.input("tokens", WHOLE, ["batch", "chunk"])
    positions = g.input("positions", WHOLE, ["batch", "chunk"])
    past_lengths = g.input("past_lengths", WHOLE, ["batch"])
    last = g.input("last", WHOLE, ["batch"])
    cache: Dims = ["batch", spec.kv_heads, "past", spec.head_size]
    pasts = [(_cache(g, f"past.{i}.key", cache), _cache(g, f"past.{i}.value", cache)) for i in range(spec.layers)]
    cross: Dims = ["batch", spec.heads, "frames", spec.head_size]
    crosses = [
        (_cache(g, f"cross.{i}.key", cross), _cache(g, f"cross.{i}.value", cross))
        for i in range(spec.layers * spec.cross)
    ]
    table = g.weight("tokens.weight", (spec.vocabulary, spec.width))
    rows = declared(g.op("Gather", table, tokens), ["batch", "chunk", spec.width])
    if not spec.rotary_size:
        rows = residual(g, rows, g.op("Gather", g.weight("positions.weight", (None, spec.width)), positions))
    past = _past(g, spec, pasts[0][0], positions, past_lengths)
    turn = rotation(g, spec, positions)
    cross_mask = _cross_mask(g, crosses[0][0]) if spec.cross else None
    made: list[ir.Value] = []
    for i in range(spec.layers):
        rows, key, value = _self_attention(g, spec, rows, i, pasts[i], past, turn)
        made += [declared(each, ["batch", spec.kv_heads, "chunk", spec.head_size]) for each in (key, value)]
        if cross_mask is not None:
            rows = _cross_attention(g, spec, rows, i, crosses[i], cross_mask)
        rows = mlp(g, spec, rows, f"layers.{i}.mlp")
    return g.model([_logits(g, spec, rows, last, table), *made])


def build_prefill(spec: DecoderSpec, weights: Weights) -> ir.Model:
    """The graph `prefill`: hidden states to the keys and values of cross-attention, all in one product.

    Raises:
        ModelError: the decoder attends to no encoder, or as `build_step`.
    """
    g = GraphWriter("prefill", weights)
    names = [f"layers.{i}.cross.{part}" for i in range(spec.layers * spec.cross) for part in "kv"]
    width = g.array(f"{names[0]}.weight", (spec.heads * spec.head_size, None)).shape[1]
    hidden = g.input("hidden", REAL, ["batch", "frames", width])
    heads = g.linear(hidden, names, width, [spec.heads * spec.head_size] * len(names))
    apart = split_heads(g, spec, heads, spec.heads * len(names))
    outputs = [f"cross.{i}.{part}" for i in range(spec.layers) for part in ("key", "value")]
    return g.model(g.ops("Split", apart, outputs=len(names), names=outputs, axis=1, num_outputs=len(names)))


@dataclass(frozen=True)
class _Past:
    """What all layers need to attend to the tokens before and to the chunk.

    Attributes:
        mask: added to scores [batch, kv_heads, queries, past + chunk], where a head's queries are those of all heads
            that share its keys.
        sizes: the lengths of past and chunk, int64 [2].
    """

    mask: ir.Value
    sizes: ir.Value


def _cache(g: GraphWriter, name: str, dims: Dims) -> ir.Value:
    return g.input(name, REAL, dims)


def _past(g: GraphWriter, spec: DecoderSpec, key: ir.Value, positions: ir.Value, lengths: ir.Value) -> _Past:
    """Keys count that are of tokens before, or in the chunk and no later than the query."""
    past, chunk = length_of(g, key, 2), length_of(g, positions, 1)
    both = g.op("Add", past, chunk)
    keys = count_up(g, None, both, [0, 1, 2])
    queries = count_up(g, past, both, [0, 1, 3])
    shared = spec.heads // spec.kv_heads
    if shared > 1:
        queries = g.op("Tile", queries, g.numbers(1, 1, shared, 1))
    before = g.op("Less", keys, at_batch(g, lengths))
    in_chunk = g.op("And", g.op("GreaterOrEqual", keys, past), g.op("LessOrEqual", keys, queries))
    mask = masked_where_false(g, g.op("Or", before, in_chunk), "self_mask")
    return _Past(mask, g.op("Concat", past, chunk, axis=0))


def _cross_mask(g: GraphWriter, key: ir.Value) -> ir.Value:
    lengths = g.input("cross_lengths", WHOLE, ["batch"])
    frames = count_up(g, None, length_of(g, key, 2), [0, 1, 2])
    return masked_where_false(g, g.op("Less", frames, at_batch(g, lengths)), "cross_mask")


def _self_attention(
    g: GraphWriter,
    spec: DecoderSpec,
    rows: ir.Value,
    layer: int,
    before: tuple[ir.Value, ir.Value],
    past: _Past,
    turn: Rotation | None,
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """The rows after the self-attention of a layer, and the keys and values of the chunk."""
    name = f"layers.{layer}.self"
    key_name = f"new.{layer}.key"
    names = [None, None if turn else key_name, f"new.{layer}.value"]
    queries, keys, values = project(g, spec, norm(g, spec, rows, f"{name}.norm"), name, names)
    queries, keys = rotate(g, spec, queries, turn), rotate(g, spec, keys, turn, key_name)
    if spec.heads != spec.kv_heads:
        queries = g.op("Reshape", queries, g.numbers(0, spec.kv_heads, -1, spec.head_size))
    products = g.op("Concat", scores(g, queries, before[0]), scores(g, queries, keys), axis=-1)
    parts = g.op("Softmax", g.op("Add", products, past.mask), axis=-1)
    of_past, of_chunk = g.ops("Split", parts, past.sizes, outputs=2, axis=-1)
    mixed = g.op("Add", g.op("MatMul", of_past, before[1]), g.op("MatMul", of_chunk, values))
    if spec.heads != spec.kv_heads:
        mixed = g.op("Reshape", mixed, g.numbers(0, spec.heads, -1, spec.head_size))
    return join_heads(g, spec, mixed, name, rows), keys, values


def _cross_attention(
    g: GraphWriter, spec: DecoderSpec, rows: ir.Value, layer: int, pair: tuple[ir.Value, ir.Value], mask: ir.Value
) -> ir.Value:
    name = f"layers.{layer}.cross"
    normed = norm(g, spec, rows, f"{name}.norm")
    flat = g.linear(normed, [f"{name}.q"], spec.width, [spec.heads * spec.head_size], [scale_of(spec)])
    mixed = attend(g, split_heads(g, spec, flat, spec.heads), *pair, mask)
    return join_heads(g, spec, mixed, name, rows)


def _logits(g: GraphWriter, spec: DecoderSpec, rows: ir.Value, last: ir.Value, table: ir.Value) -> ir.Value:
    """Only of the rows asked for; the table of tokens makes them where there is no other."""
    row = g.op("GatherND", rows, g.op("Unsqueeze", last, g.numbers(-1)), batch_dims=1)
    if g.has("logits.weight"):
        table = g.weight("logits.weight", (spec.vocabulary, spec.width))
    return g.op("Gemm", norm(g, spec, row, "norm"), table, name="logits", transB=1)
