"""Transformers in plain numpy: every token attends to all before it, computed anew for the whole sequence, no cache."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import erf

import numpy as np
from tests.flagir.models import Array

from flagsplit.flagir.programs.spec import Conv, DecoderSpec, EncoderSpec, Spec, rotary_frequencies

Weights = Mapping[str, Array]
FRAME_WIDTH = 12
BINS = 5


def linear(weights: Weights, name: str, rows: Array) -> Array:
    made = rows @ weights[f"{name}.weight"].astype(np.float64).T
    return np.asarray(made + weights[f"{name}.bias"] if f"{name}.bias" in weights else made)


def norm(spec: Spec, weights: Weights, name: str, rows: Array) -> Array:
    if spec.norm == "layer":
        rows = rows - rows.mean(-1, keepdims=True)
    rows = rows / np.sqrt((rows**2).mean(-1, keepdims=True) + spec.epsilon) * weights[f"{name}.weight"]
    return np.asarray(rows + weights[f"{name}.bias"] if f"{name}.bias" in weights else rows)


def gelu(rows: Array) -> Array:
    return np.asarray(rows * 0.5 * (1 + np.vectorize(erf)(rows / np.sqrt(2))))


def silu(rows: Array) -> Array:
    return np.asarray(rows / (1 + np.exp(-rows)))


def mlp(spec: Spec, weights: Weights, name: str, rows: Array) -> Array:
    if spec.mlp == "gelu":
        return linear(weights, f"{name}.down", gelu(linear(weights, f"{name}.up", rows)))
    gated = silu(linear(weights, f"{name}.gate", rows)) * linear(weights, f"{name}.up", rows)
    return linear(weights, f"{name}.down", gated)


def turned(spec: Spec, weights: Weights, heads: Array) -> Array:
    """Heads [count, length, head_size], each rotated by complex multiplication."""
    size = spec.rotary_size
    if not size:
        return heads
    angles = np.arange(heads.shape[1])[:, None] * weights["rotary.frequencies"].astype(np.float64)
    turn = np.exp(1j * angles)
    first, second = (
        (heads[..., 0:size:2], heads[..., 1:size:2])
        if spec.rotary_interleaved
        else (heads[..., : size // 2], heads[..., size // 2 : size])
    )
    result = (first + 1j * second) * turn
    made = heads.copy()
    if spec.rotary_interleaved:
        made[..., 0:size:2], made[..., 1:size:2] = result.real, result.imag
    else:
        made[..., : size // 2], made[..., size // 2 : size] = result.real, result.imag
    return made


def attention(spec: Spec, weights: Weights, name: str, rows: Array, source: Array, *, causal: bool, kv: int) -> Array:
    def heads(part: str, of: Array, count: int) -> Array:
        return linear(weights, f"{name}.{part}", of).reshape(len(of), count, -1).transpose(1, 0, 2)

    queries, keys, values = heads("q", rows, spec.heads), heads("k", source, kv), heads("v", source, kv)
    if rows is source:
        queries, keys = turned(spec, weights, queries), turned(spec, weights, keys)
    keys, values = (each.repeat(spec.heads // kv, 0) for each in (keys, values))
    scores = queries @ keys.transpose(0, 2, 1) / np.sqrt(spec.head_size)
    if causal:
        scores = np.where(np.tri(len(rows), dtype=bool), scores, -np.inf)
    parts = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = parts / parts.sum(-1, keepdims=True) @ values
    return linear(weights, f"{name}.o", mixed.transpose(1, 0, 2).reshape(len(rows), -1))


def layers(spec: Spec, weights: Weights, rows: Array, hidden: Array | None, *, causal: bool) -> Array:
    for i in range(spec.layers):
        name = f"layers.{i}"
        normed = norm(spec, weights, f"{name}.self.norm", rows)
        rows = rows + attention(spec, weights, f"{name}.self", normed, normed, causal=causal, kv=spec.kv_heads)
        if hidden is not None:
            normed = norm(spec, weights, f"{name}.cross.norm", rows)
            rows = rows + attention(spec, weights, f"{name}.cross", normed, hidden, causal=False, kv=spec.heads)
        rows = rows + mlp(spec, weights, f"{name}.mlp", norm(spec, weights, f"{name}.mlp.norm", rows))
    return norm(spec, weights, "norm", rows)


def logits(spec: DecoderSpec, weights: Weights, tokens: Sequence[int], hidden: Array | None) -> Array:
    """Of every token [length, vocabulary]."""
    rows = weights["tokens.weight"].astype(np.float64)[list(tokens)]
    if not spec.rotary_size:
        rows = rows + weights["positions.weight"][: len(tokens)]
    found = layers(spec, weights, rows, hidden, causal=True)
    return np.asarray(found @ weights.get("logits.weight", weights["tokens.weight"]).astype(np.float64).T)


def encode(spec: EncoderSpec, weights: Weights, source: Array) -> Array:
    """Hidden states [frames, width] of samples [samples] or log-mel [bins, steps]."""
    rows = (source[None] if spec.input == "audio" else source).astype(np.float64)
    for index, conv in enumerate(spec.convs):
        kernel = weights[f"convs.{index}.weight"].astype(np.float64)
        padded = np.pad(rows, ((0, 0), (conv.padding, conv.padding)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[2], 1)[:, :: conv.stride]
        rows = np.einsum("itk,oik->ot", windows, kernel)
        rows = rows + weights[f"convs.{index}.bias"][:, None] if f"convs.{index}.bias" in weights else rows
        rows = gelu(rows) if conv.activation == "gelu" else np.tanh(rows)
        if conv.norm:
            spread = np.sqrt(rows.var() + spec.conv_epsilon)
            scaled = (rows - rows.mean()) / spread * weights[f"convs.{index}.norm.weight"][:, None]
            rows = scaled + weights[f"convs.{index}.norm.bias"][:, None]
    rows = rows.T
    if not spec.rotary_size:
        rows = rows + weights["positions.weight"]
    return layers(spec, weights, rows, None, causal=False)


@dataclass(frozen=True)
class Made:
    """A model made up at random."""

    decoder: DecoderSpec
    decoder_weights: dict[str, Array]
    encoder: EncoderSpec | None = None
    encoder_weights: dict[str, Array] | None = None


class _Maker:
    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.weights: dict[str, Array] = {}

    def add(self, name: str, *shape: int, around: float = 0.0) -> None:
        size = 1.0 if len(shape) < 2 else 1.5 / np.sqrt(np.prod(shape[1:]))
        numbers = self.rng.standard_normal(shape) * size
        self.weights[name] = np.asarray(around + numbers * (0.2 if around else 1), np.float32)

    def linear(self, name: str, outputs: int, inputs: int, *, bias: bool) -> None:
        self.add(f"{name}.weight", outputs, inputs)
        if bias:
            self.add(f"{name}.bias", outputs)

    def norm(self, name: str, width: int, *, bias: bool) -> None:
        self.add(f"{name}.weight", width, around=1.0)
        if bias:
            self.add(f"{name}.bias", width)

    def layers(self, spec: Spec, *, bias: bool, cross: bool, source: int = 0) -> None:
        inner = 3 * spec.width
        for i in range(spec.layers):
            for part, kv, of in (("self", spec.kv_heads, spec.width), ("cross", spec.heads, source))[: 1 + cross]:
                name = f"layers.{i}.{part}"
                self.norm(f"{name}.norm", spec.width, bias=bias)
                self.linear(f"{name}.q", spec.heads * spec.head_size, spec.width, bias=bias)
                self.linear(f"{name}.k", kv * spec.head_size, of, bias=False)
                self.linear(f"{name}.v", kv * spec.head_size, of, bias=bias)
                self.linear(f"{name}.o", spec.width, spec.heads * spec.head_size, bias=bias)
            self.norm(f"layers.{i}.mlp.norm", spec.width, bias=bias)
            for each in ("up", "gate")[: 1 + (spec.mlp == "gated-silu")]:
                self.linear(f"layers.{i}.mlp.{each}", inner, spec.width, bias=bias or cross)
            self.linear(f"layers.{i}.mlp.down", spec.width, inner, bias=bias or cross)
        self.norm("norm", spec.width, bias=bias)
        if spec.rotary_size:
            self.weights["rotary.frequencies"] = rotary_frequencies(spec.rotary_size, 100.0)


def moonshine_like(rng: np.random.Generator) -> Made:
    heads, size = int(rng.integers(1, 4)), 2 * int(rng.integers(2, 5))
    rotary = size - 2 * int(rng.integers(0, 2))
    shared = {
        "heads": heads,
        "kv_heads": heads,
        "head_size": size,
        "norm": "layer",
        "epsilon": 1e-5,
        "rotary_size": rotary,
        "rotary_interleaved": True,
    }
    encoder = EncoderSpec(
        layers=int(rng.integers(1, 3)),
        width=FRAME_WIDTH,
        mlp="gelu",
        input="audio",
        convs=(Conv(4, 0, "tanh", norm=True), Conv(2, 0, "gelu"), Conv(1, 0, "gelu")),
        **shared,  # type: ignore[arg-type]
    )
    maker = _Maker(rng)
    maker.layers(encoder, bias=False, cross=False)
    maker.add("convs.0.weight", 6, 1, 7)
    maker.norm("convs.0.norm", 6, bias=True)
    for index, (outputs, inputs) in ((1, (8, 6)), (2, (FRAME_WIDTH, 8))):
        maker.add(f"convs.{index}.weight", outputs, inputs, 3)
        maker.add(f"convs.{index}.bias", outputs)
    decoder = DecoderSpec(
        layers=int(rng.integers(1, 4)),
        width=16,
        mlp="gated-silu",
        vocabulary=19,
        cross=True,
        **shared,  # type: ignore[arg-type]
    )
    of_decoder = _Maker(rng)
    of_decoder.add("tokens.weight", 19, 16)
    of_decoder.layers(decoder, bias=False, cross=True, source=FRAME_WIDTH)
    return Made(decoder, of_decoder.weights, encoder, maker.weights)


def whisper_like(rng: np.random.Generator) -> Made:
    heads, size = int(rng.integers(1, 4)), int(rng.integers(2, 6))
    encoder = EncoderSpec(
        layers=int(rng.integers(1, 3)),
        heads=heads,
        kv_heads=heads,
        head_size=size,
        width=FRAME_WIDTH,
        norm="layer",
        epsilon=1e-5,
        mlp="gelu",
        input="log-mel",
        convs=(Conv(1, 1, "gelu"), Conv(2, 1, "gelu")),
    )
    maker = _Maker(rng)
    maker.layers(encoder, bias=True, cross=False)
    for index, inputs in enumerate((BINS, FRAME_WIDTH)):
        maker.add(f"convs.{index}.weight", FRAME_WIDTH, inputs, 3)
        maker.add(f"convs.{index}.bias", FRAME_WIDTH)
    maker.add("positions.weight", 9, FRAME_WIDTH)
    decoder = DecoderSpec(
        layers=int(rng.integers(1, 4)),
        heads=heads,
        kv_heads=heads,
        head_size=size,
        width=FRAME_WIDTH,
        norm="layer",
        epsilon=1e-5,
        mlp="gelu",
        vocabulary=19,
        cross=True,
    )
    of_decoder = _Maker(rng)
    of_decoder.add("tokens.weight", 19, FRAME_WIDTH)
    of_decoder.add("positions.weight", 40, FRAME_WIDTH)
    of_decoder.layers(decoder, bias=True, cross=True, source=FRAME_WIDTH)
    return Made(decoder, of_decoder.weights, encoder, maker.weights)


def llama_like(rng: np.random.Generator) -> Made:
    kv_heads, size = int(rng.integers(1, 3)), 2 * int(rng.integers(2, 4))
    decoder = DecoderSpec(
        layers=int(rng.integers(1, 4)),
        heads=kv_heads * int(rng.integers(1, 4)),
        kv_heads=kv_heads,
        head_size=size,
        width=16,
        norm="rms",
        epsilon=1e-6,
        mlp="gated-silu",
        rotary_size=size,
        vocabulary=23,
    )
    maker = _Maker(rng)
    maker.add("tokens.weight", 23, 16)
    maker.layers(decoder, bias=False, cross=False)
    if rng.integers(2):
        maker.add("logits.weight", 23, 16)
    return Made(decoder, maker.weights)


FAMILIES = {"moonshine": moonshine_like, "whisper": whisper_like, "llama": llama_like}
