"""The listing, against goldens, and ONNX's own text form, there and back."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.flagir.models import canonical, parse

from flagsplit.errors import ModelError
from flagsplit.flagir import block_graph, canonicalize, load, read_model, save, write_placement
from flagsplit.flagir.diff import changes
from flagsplit.flagir.text import describe, from_onnx_text, listing, to_onnx_text

GOLDEN = Path(__file__).parents[1] / "golden"
LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"

MODELS = {
    "head": """head (float[N, 4] x) => (float[N, 2] y) <float[4, 2] w = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0}> {
        [mul] h = MatMul (x, w) [act] r = Relu (h) [out] y = Softmax (r) }""",
    "fork": """fork (float[1, 3, 8, 8] x) => (float[1, 3, 8, 8] y, int64[4] s) {
        [up] a = Sigmoid (x) [both] y = Mul (a, x) [size] s = Shape (y) }""",
}


def model_of(name: str) -> ir.Model:
    model = canonical(parse(MODELS[name], opset=23))
    blocks = block_graph(model, {"N": 3} if name == "head" else {}).blocks
    placement = {node: min(block.index, 1) for block in blocks for node in block.nodes}
    write_placement(model, "split", ("phone", "cloud"), placement)
    return model


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_listing_is_as_the_golden_has_it(name: str) -> None:
    text = listing(model_of(name), {"N": 3} if name == "head" else None, "split")
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


def test_text_that_is_no_onnx_text_is_refused() -> None:
    with pytest.raises(ModelError, match="the parser says"):
        from_onnx_text("graph, but not as the parser knows it")
