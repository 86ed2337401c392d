"""A quantized network cut at every place: bit for bit the same with exact numerics, near with fast ones."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.flagir.models import canonical, parse

from flagsplit import flagir
from flagsplit.flagir.quantization import QuantizeOptions, quantize
from flagsplit.targets.interface import Numerics
from flagsplit.targets.model_runner import run_model
from flagsplit.targets.onnx_engine import open_onnx

_TEXT = """g (float[1, 3, 12, 12] x) => (float[1, 8, 6, 6] y) {
    a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1)
    r = Relu (a)
    p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
    b = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (p, w2)
    s = Sigmoid (b)
    m = Mul (b, s)
    y = Add (m, p)
}"""


def _sample(seed: int) -> dict[str, Any]:
    return {"x": np.random.default_rng(seed).standard_normal((1, 3, 12, 12)).astype(np.float32)}


@pytest.fixture(scope="module")
def network() -> ir.Model:
    proto = parse(_TEXT)
    rng = np.random.default_rng(0)
    for name, shape in (("w1", (8, 3, 3, 3)), ("w2", (8, 8, 3, 3))):
        weights = (rng.standard_normal(shape) * 0.3).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weights, name))
    made = quantize(canonical(proto), [_sample(at) for at in range(4)], run_model, QuantizeOptions(min_cosine=0.9))
    assert all(each.int8 for each in made.nodes)
    return made.model


def _answers(model: ir.Model, numerics: Numerics, folder: Path) -> Iterator[np.ndarray[Any, Any]]:
    """The whole network's, then that of each cut in two."""
    nodes = [node.name or "" for node in model.graph]
    for cut in range(len(nodes)):
        place = {name: int(at >= cut) for at, name in enumerate(nodes)}
        values: dict[str, Any] = _sample(9)
        for step in flagir.cut_into_steps(model, place, 2):
            file = folder / f"{step.segment.id}.onnx"
            file.write_bytes(flagir.to_bytes(flagir.extract(model, step.segment)))
            engine = open_onnx(file, None, numerics, 1)
            values |= engine.run({name: values[name] for name in step.segment.inputs})
            engine.close()
        yield values["y"]


def test_exact_numerics_do_not_depend_on_the_cut(network: ir.Model, tmp_path: Path) -> None:
    whole, *cut = _answers(network, "exact", tmp_path)
    assert len(cut) > 20
    for found in cut:
        np.testing.assert_array_equal(found, whole)


def test_fast_numerics_load_wherever_it_is_cut(network: ir.Model, tmp_path: Path) -> None:
    """Within the rounding of a few steps; a graph that ends within int8 was refused by the engine once."""
    whole, *cut = _answers(network, "fast", tmp_path)
    for found in cut:
        assert np.abs(found - whole).max() < 0.05 * np.abs(whole).max()
