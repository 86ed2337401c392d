"""Signatures: equal for equal work whatever it is called, different for everything that decides the work."""

import pytest
from tests.flagir import models

from flagsplit import flagir
from flagsplit.flagir import Block, Skeleton

_CONV = "g (float[1, 8, 16, 16] x) => (float[1, 8, 16, 16] y) { a = Conv<pads=[1, 1, 1, 1]>(x, w) y = Relu(a) }"
_RESHAPE = "g (float[N, 8, 4] x) => (y) <int64[2] s = {-1, 8}> { a = Reshape(x, s) y = MatMul(a, w) }"
_POW = "g (float[N, 8] x) => (y) <float e = {2.0}> { a = Pow(x, e) y = MatMul(a, w) }"


def blocks(body: str, seed: int = 0, **weights: list[int]) -> tuple[Block, ...]:
    proto = models.with_weights(models.parse(body), **weights)
    for tensor in proto.graph.initializer:
        if tensor.name in weights and seed:
            tensor.raw_data = bytes(reversed(tensor.raw_data))
    model = models.canonical(proto)
    skeleton = Skeleton(model)
    return flagir.block_graph(model, flagir.nominal_dims(skeleton, {}), skeleton).blocks


def signature(body: str, seed: int = 0, **weights: list[int]) -> str:
    (block,) = blocks(body, seed, **weights)
    return block.signature


def test_names_and_weights_do_not_count() -> None:
    plain = signature(_CONV, w=[8, 8, 3, 3])
    assert len(plain) == 32
    assert plain == signature(_CONV.replace("a =", "other =").replace("(a)", "(other)"), w=[8, 8, 3, 3])
    assert plain == signature(_CONV, seed=1, w=[8, 8, 3, 3])


def test_equal_layers_of_one_model_are_equal() -> None:
    body = "g (float[1, 8, 16, 16] x) => (y) { a = Conv(x, w) b = Relu(a) c = Conv(b, v) d = Relu(c) y = Conv(d, u) }"
    first, second, third = blocks(body, w=[8, 8, 1, 1], v=[8, 8, 1, 1], u=[4, 8, 1, 1])
    assert first.signature == second.signature
    assert third.signature != first.signature


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Relu(a)", "Sigmoid(a)"),
        ("pads=[1, 1, 1, 1]", 'pads=[1, 1, 1, 1], strides=[1, 1], dilations=[1, 1], group=1, auto_pad="NOTSET"'),
        ("[1, 8, 16, 16]", "[2, 8, 16, 16]"),
        ("[1, 8, 16, 16]", "[1, 8, 16, 32]"),
        ("y = Relu(a)", "b = Relu(a) y = Relu(b)"),
    ],
)
def test_what_decides_the_work_counts(old: str, new: str) -> None:
    changed = _CONV.replace(old, new)
    assert changed != _CONV
    assert signature(changed, w=[8, 8, 3, 3]) != signature(_CONV, w=[8, 8, 3, 3])


def test_shapes_of_weights_count() -> None:
    wide = _CONV.replace("(float[1, 8, 16, 16] y)", "(float[1, 16, 16, 16] y)")
    assert signature(wide, w=[16, 8, 3, 3]) != signature(_CONV, w=[8, 8, 3, 3])


def test_small_constants_count_where_they_decide() -> None:
    other = _RESHAPE.replace("int64[2] s = {-1, 8}", "int64[3] s = {4, -1, 8}")
    assert signature(other, w=[8, 8]) != signature(_RESHAPE, w=[8, 8])
    assert signature(_POW.replace("{2.0}", "{3.0}"), w=[8, 8]) != signature(_POW, w=[8, 8])
    bias = _POW.replace("Pow", "Add")
    assert signature(bias.replace("{2.0}", "{3.0}"), w=[8, 8]) == signature(bias, w=[8, 8])


def test_a_result_that_leaves_counts() -> None:
    one = "g (float[8] x) => (y) { a = Relu(x) y = Exp(a) }"
    both = one.replace("(y)", "(y, a)")
    assert {block.signature for block in blocks(one)}.isdisjoint(block.signature for block in blocks(both))


def test_subgraphs_count() -> None:
    body = (
        "g (bool c, float[8] x) => (float[8] y) { y = If(c) <then_branch = t () => (float[8] p) { p = Relu(x) }, "
        "else_branch = e () => (float[8] q) { q = Exp(x) }> }"
    )
    renamed = body.replace("p =", "p2 =").replace("] p)", "] p2)")
    assert signature(body) == signature(renamed)
    assert signature(body) != signature(body.replace("Exp", "Log"))


def test_features_are_the_matrix_product_and_the_work() -> None:
    (block,) = blocks(_CONV, w=[8, 8, 3, 3])
    flops = 2.0 * 8 * 16 * 16 * 8 * 9
    assert block.features == {
        "conv.Conv": flops,
        "elementwise.Relu": 8.0 * 16 * 16,
        "rows": 256.0,
        "columns": 8.0,
        "inner": 72.0,
        "window": 9.0,
    }
    depthwise = _CONV.replace("pads=", "group=8, pads=")
    (block,) = blocks(depthwise, w=[8, 1, 3, 3])
    assert (block.features["rows"], block.features["columns"], block.features["inner"]) == (2048.0, 1.0, 9.0)
    assert block.features["depthwise.Conv"] == flops / 8
