"""Placed graphs for tests of codecs, and what crosses in them."""

import functools
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
from tests.flagir.models import parse, random_model, with_weights
from tests.flagir.test_segments import IF, LOOP

from flagsplit.flagir import write_placement
from flagsplit.flagir.codecs import NO_CODEC, BoundaryCut, boundary_cuts, codec_names

CODECS = codec_names()[1:]
FLOAT = ir.DataType.FLOAT
FAN = """g (float[N, 4, 6] x) => (float[N, 4, 6] p, float[N, 4, 6] q, float[N, 4, 6] v) {
    v = Tanh(x)  a = Neg(v)  p = Exp(a)  b = Abs(v)  c = Sigmoid(v)  d = Add(b, c)  e = Add(d, x)  q = Mul(e, v) }"""
ATTENTION = """g (float[N, 6, 8] x, int64[N, 6] ids) => (float[N, 6, 8] y, int64[N, 6] z) {
    q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) t = Transpose <perm = [0, 2, 1]> (k)
    s = MatMul(q, t) w = Softmax(s) h = MatMul(w, v) y = Add(h, x) z = Neg(ids) }"""


def attention() -> onnx.ModelProto:
    return with_weights(parse(ATTENTION), wq=(8, 8), wk=(8, 8), wv=(8, 8))


GRAPHS: dict[str, Callable[[], onnx.ModelProto]] = {
    **{f"random {seed}": functools.partial(random_model, seed) for seed in (1, 2, 3, 4, 5, 6, 7, 13)},
    "if": functools.partial(parse, IF),
    "loop": functools.partial(parse, LOOP),
    "fan": functools.partial(parse, FAN),
    "attention": attention,
}


def place(model: ir.Model, placement: list[int] | dict[str, int], tiers: int) -> None:
    if not isinstance(placement, dict):
        placement = {node.name or "": tier for node, tier in zip(model.graph, placement, strict=True)}
    write_placement(model, "p", [f"t{index}" for index in range(tiers)], placement)


def random_cuts(model: ir.Model, rng: np.random.Generator) -> list[BoundaryCut]:
    """A random codec for everything that crosses and that a codec takes."""
    values = ir.convenience.create_value_mapping(model.graph)
    return [
        BoundaryCut(cut.value, cut.from_tier, cut.to_tier, str(rng.choice(CODECS)) if takes else NO_CODEC)
        for cut in boundary_cuts(model)
        for takes in [values[cut.value].dtype == FLOAT and rng.random() < 0.85]
    ]


def crossing(model: ir.Model) -> set[str]:
    return {cut.value for cut in boundary_cuts(model)}
