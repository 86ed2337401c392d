"""Models for the tests of what is wired together, and what ONNX Runtime says about them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

Array = npt.NDArray[Any]

SPLIT_SLA = {"keep_on": {"inputs": "phone"}, "pins": {"ArgMax": "cloud"}}
"""Leaves the small model no plan of one tier."""

_TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 3, H, W] image) => (float[N, 10] scores, int64[N] label) {
    a = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(image, w1)
    b = Relu(a)
    c = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(b, w2)
    d = Sigmoid(c)
    e = Mul(c, d)
    f = Conv(e, w3)
    h = Relu(f)
    i = GlobalAveragePool(h)
    j = Flatten(i)
    k = MatMul(j, w4)
    scores = Softmax<axis = 1>(k)
    label = ArgMax<axis = 1, keepdims = 0>(scores)
}"""
_WEIGHTS = {"w1": (8, 3, 3, 3), "w2": (32, 8, 3, 3), "w3": (64, 32, 1, 1), "w4": (64, 10)}


def small(seed: int = 0) -> onnx.ModelProto:
    """A classifier with two outputs, open batch and image sizes, and a value that two nodes read."""
    model: onnx.ModelProto = onnx.parser.parse_model(_TEXT)
    rng = np.random.default_rng(seed)
    for name, shape in _WEIGHTS.items():
        array = np.asarray(rng.standard_normal(shape)).astype(np.float32) / 4
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def wide(layers: int, width: int) -> onnx.ModelProto:
    """A stack of square matrices: `layers * width**2 * 4` bytes of weights that do not compress."""
    nodes = "".join(f"y{i + 1} = MatMul(y{i}, w{i}) " for i in range(layers))
    ends = f"(float[N, {width}] y0) => (float[N, {width}] y{layers})"
    model: onnx.ModelProto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g {ends} {{{nodes}}}')
    rng = np.random.default_rng(0)
    for index in range(layers):
        array = rng.random((width, width), dtype=np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, f"w{index}"))
    return model


def save(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


def answers_of(path: Path, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """What ONNX Runtime answers on the original file, without the optimizations whose rounding differs."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def assert_near(came: npt.NDArray[Any], expected: npt.NDArray[Any]) -> None:
    """Probabilities that differ by rounding only."""
    np.testing.assert_allclose(came, expected, rtol=0, atol=1e-6)
