"""Scales and shifts after a convolution become part of it, and nothing else does."""

from pathlib import Path

import numpy as np
import pytest
from tests.targets.mobile.qnn.small import expected, floats, model_of, numbers

from flagsplit import flagir
from flagsplit.targets.interface import Array
from flagsplit.targets.mobile.qnn.prepare import prepare

CHANNEL = (4, 1, 1)
PARTS = {
    "w": numbers(4, 3, 3, 3),
    "bias": numbers(4, seed=1),
    "s": np.abs(numbers(4, seed=2)) + 0.5,
    "t": numbers(4, seed=3),
    "mean": numbers(4, seed=4),
    "variance": np.abs(numbers(4, seed=5)) + 0.1,
    "k": numbers(*CHANNEL, seed=6),
    "d": numbers(*CHANNEL, seed=7),
    "half": np.array(0.5, np.float32),
    "row": numbers(1, 1, 1, 6, seed=8),
}
FOLDED = """c = Conv <pads = [1, 1, 1, 1]> (x, w, bias)
    n = BatchNormalization <epsilon = 0.001> (c, s, t, mean, variance)
    m = Mul(k, n)
    a = Add(m, d)
    h = Mul(a, half)
    y = Relu(h)"""
ALONG_ROWS = "c = Conv <pads = [1, 1, 1, 1]> (x, w)\n n = Mul(c, row)\n y = Relu(n)"
READ_TWICE = "c = Conv <pads = [1, 1, 1, 1]> (x, w)\n n = Mul(c, k)\n y = Add(n, c)"


@pytest.mark.parametrize(
    ("body", "operators"),
    [
        (FOLDED, ["Conv", "Relu"]),
        (ALONG_ROWS, ["Conv", "Mul", "Relu"]),
        (READ_TWICE, ["Conv", "Mul", "Add"]),
    ],
)
def test_what_is_folded_gives_the_same(tmp_path: Path, body: str, operators: list[str]) -> None:
    model = model_of(f"g (float[1, 3, 6, 6] x) => (float[1, 4, 6, 6] y) {{\n {body} }}", _used(body))
    before = flagir.to_bytes(model)
    ready = prepare(model)
    assert flagir.to_bytes(model) == before
    assert [node.op_type for node in ready.graph] == operators
    x = {"x": numbers(1, 3, 6, 6, seed=9)}
    wanted, found = (floats(expected(each, tmp_path / str(at), x)["y"]) for at, each in enumerate((model, ready)))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_what_fp16_could_not_hold_stays_apart() -> None:
    body = "c = Conv <pads = [1, 1, 1, 1]> (x, w)\n m = Mul(c, large)\n a = Add(m, d)\n y = Add(a, k)"
    weights = {"w": PARTS["w"], "d": PARTS["d"], "k": PARTS["k"], "large": np.full(CHANNEL, 1e5, np.float32)}
    model = model_of(f"g (float[1, 3, 6, 6] x) => (float[1, 4, 6, 6] y) {{\n {body} }}", weights)
    assert [node.op_type for node in prepare(model).graph] == ["Conv", "Mul", "Add", "Add"]


def _used(body: str) -> dict[str, Array]:
    words = set(body.replace(",", " ").replace("(", " ").replace(")", " ").split())
    return {name: array for name, array in PARTS.items() if name in words}
