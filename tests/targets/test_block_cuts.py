"""Attention whose parts are made on different tiers: blocks stay whole on every way, so that the answer is the same."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.flagir.models import canonical, parse

from flagsplit import flagir
from flagsplit.flagir import BlockGraph
from flagsplit.targets.onnx_engine import open_onnx

_TEXT = """g (float[2, 17, 48] x) => (float[2, 17, 48] y) {
    q0 = MatMul (x, wq)
    k0 = MatMul (x, wk)
    v = MatMul (x, wv)
    kt = Transpose <perm = [0, 2, 1]> (k0)
    q = Mul (q0, half)
    k = Mul (kt, half)
    s = MatMul (q, k)
    p = Softmax (s)
    a = MatMul (p, v)
    o = MatMul (a, wo)
    y = Add (o, x)
}"""


@pytest.fixture(scope="module")
def attention() -> ir.Model:
    proto = parse(_TEXT)
    rng = np.random.default_rng(0)
    for name in ("wq", "wk", "wv", "wo"):
        weights = rng.standard_normal((48, 48)).astype(np.float32) / 4
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weights, name))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0.5372849, np.float32), "half"))
    return canonical(proto)


def answer(model: ir.Model, graph: BlockGraph, tiers: list[int], folder: Path) -> Any:
    values: dict[str, Any] = {"x": np.random.default_rng(7).standard_normal((2, 17, 48)).astype(np.float32)}
    place = {node: tiers[block.index] for block in graph.blocks for node in block.nodes}
    steps = flagir.cut_into_steps(model, place, 3, [block.nodes for block in graph.blocks])
    for block in graph.blocks:
        assert len([step for step in steps if not set(block.nodes).isdisjoint(step.segment.nodes)]) == 1
    for step in steps:
        file = folder / f"{step.segment.id}.onnx"
        file.write_bytes(flagir.to_bytes(flagir.extract(model, step.segment)))
        engine = open_onnx(file, None, "exact", 1)
        values |= engine.run({name: values[name] for name in step.segment.inputs})
        engine.close()
    return values["y"]


def test_no_visit_divides_a_block(attention: ir.Model, tmp_path: Path) -> None:
    graph = flagir.block_graph(attention, {})
    whole = answer(attention, graph, [0] * len(graph.blocks), tmp_path)
    rng = np.random.default_rng(1)
    for tiers in [
        *([int(at == block) for at in range(len(graph.blocks))] for block in range(len(graph.blocks))),
        *(rng.integers(0, 3, len(graph.blocks)).tolist() for _ in range(10)),
    ]:
        np.testing.assert_array_equal(answer(attention, graph, tiers, tmp_path), whole)
