"""The listing, against goldens, and ONNX's own text form, there and back."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.flagir.models import canonical, parse

from flagsplit.errors import ModelError
from flagsplit.flagir import block_graph, canonicalize, load, read_model, save, violations, write_placement
from flagsplit.flagir.diff import changes
from flagsplit.flagir.text import describe, from_onnx_text, listing, to_onnx_text

GOLDEN = Path(__file__).parents[1] / "golden"
LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"

MODELS = {
    "head": """head (float[N, 4] x) => (float[N, 2] y) <float[4, 2] w = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0}> {
        [mul] h = MatMul (x, w) [act] r = Relu (h) [out] y = Softmax (r) }""",
    "fork": """fork (float[1, 3, 8, 8] x) => (float[1, 3, 8, 8] y, int64[4] s) {
        [up] a = Sigmoid (x) [both] y = Mul (a, x) [size] s = Shape (y) }""",
    "turn": """turn (float[N, 4] x, bool k, int64 n) => (float[N, 4] y, float[N, 2] z) <bool t = {1}> {
        [pick] p = If (k) <then_branch = a () => (float[N, 4] u) { u = Relu (x) },
                           else_branch = b () => (float[N, 4] v) { w = Neg (x) v = Tanh (w) }>
        [turn] y = Loop (n, t, p) <body = c (int64 i, bool g, float[N, 4] s) => (bool h, float[N, 4] o) {
            h = Identity (g) o = Add (s, x) }>
        [half] z, rest = Split <axis = 1, num_outputs = 2> (p) }""",
}
OPEN = {"head": {"N": 3}, "fork": {}, "turn": {"N": 2}}


def model_of(name: str) -> ir.Model:
    model = canonical(parse(MODELS[name], opset=23))
    blocks = block_graph(model, OPEN[name]).blocks
    placement = {node: min(block.index, 1) for block in blocks for node in block.nodes}
    write_placement(model, "split", ("phone", "cloud"), placement)
    return model


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_listing_is_as_the_golden_has_it(name: str) -> None:
    text = listing(model_of(name), OPEN[name], "split")
    assert text == (GOLDEN / f"{name}.txt").read_text()


def test_the_listing_of_a_real_model_names_every_node() -> None:
    model = read_model(LIGHT / "light_squeezenet.onnx")
    canonicalize(model)
    data = describe(model)
    assert sum(len(block["nodes"]) for block in data["blocks"]) == len(model.graph)
    assert data["flops"] == pytest.approx(2 * 0.352e9, rel=0.02)
    assert listing(model).count("\nblock ") == len(data["blocks"])


def test_a_plan_that_is_not_there_is_named() -> None:
    with pytest.raises(ModelError, match="one of the plans split, came 'other'"):
        listing(model_of("head"), {"N": 1}, "other")


@pytest.mark.parametrize("name", sorted(MODELS))
def test_onnx_text_there_and_back(name: str) -> None:
    model = canonical(parse(MODELS[name], opset=23))
    again = from_onnx_text(to_onnx_text(model))
    assert changes(model, again) == ()


def test_onnx_text_names_the_weights_that_are_mapped(tmp_path: Path) -> None:
    weight = onnx.numpy_helper.from_array(np.arange(256, dtype=np.float32).reshape(16, 16), "w")
    proto = parse("g (float[2, 16] x) => (float[2, 16] y) { y = MatMul (x, w) }", opset=23)
    proto.graph.initializer.append(weight)
    save(canonical(proto), tmp_path)
    model = load(tmp_path)
    text = to_onnx_text(model)
    assert "weights.bin" in text
    assert len(text) < 1500
    assert changes(model, from_onnx_text(text, tmp_path)) == ()


@pytest.mark.slow
def test_onnx_text_without_the_content_of_weights() -> None:
    model = read_model(LIGHT / "light_squeezenet.onnx")
    canonicalize(model)
    text = to_onnx_text(model)
    again = from_onnx_text(text)
    assert len(text) < 40_000
    assert violations(again) == ()
    assert {change.what for change in changes(model, again)} == {"weight"}


def test_text_that_is_no_onnx_text_is_refused() -> None:
    with pytest.raises(ModelError, match="the parser says"):
        from_onnx_text("graph, but not as the parser knows it")
