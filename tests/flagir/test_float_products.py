"""Quantized products made floating: what they stand for, what is left alone, and a real model."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.apps.models import Array

from flagsplit import flagir
from flagsplit.flagir.passes.float_products import float_products

_TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 16] x) => (float[N, 8] y, float[N, 8] z) {
    q, scale, zero = DynamicQuantizeLinear(x)
    p = MatMulInteger(q, w, zero, wz)
    f = Cast <to = 1> (p)
    s = Mul(scale, ws)
    y = Mul(f, s)
    o = MatMulInteger(q, w, zero)
    g = Cast <to = 1> (o)
    z = Mul(g, OTHER)
}"""


def _model(other: str, zero: int) -> ir.Model:
    proto = onnx.parser.parse_model(_TEXT.replace("OTHER", other))
    rng = np.random.default_rng(0)
    weights: dict[str, Array] = {
        "w": rng.integers(-127, 127, (16, 8)).astype(np.int8),
        "wz": np.array(zero, np.int8),
        "ws": np.array(0.02, np.float32),
    }
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = ir.serde.deserialize_model(proto)
    flagir.canonicalize(model)
    return model


def _answers(model: ir.Model, x: Array) -> list[Array]:
    import onnxruntime

    session = onnxruntime.InferenceSession(flagir.to_bytes(model), providers=["CPUExecutionProvider"])
    return [np.asarray(each) for each in session.run(["y", "z"], {"x": x})]


@pytest.mark.parametrize("zero", [0, 7])
def test_products_and_their_scales(zero: int) -> None:
    """The first becomes a MatMul near what it was; the second, not scaled by what quantized, is none of its kind."""
    model = _model("ws", zero)
    x = np.random.default_rng(1).standard_normal((4, 16)).astype(np.float32)
    before = _answers(model, x)
    assert float_products(model) == 1
    flagir.check(model)
    assert [node.op_type for node in model.graph].count("MatMul") == 1
    y, z = _answers(model, x)
    np.testing.assert_array_equal(z, before[1])
    weights = np.random.default_rng(0).integers(-127, 127, (16, 8)).astype(np.float32)
    np.testing.assert_allclose(y, x @ ((weights - zero) * np.float32(0.02)), rtol=1e-4, atol=1e-4)
    assert np.linalg.norm(y - before[0]) < 0.02 * np.linalg.norm(y)


def test_all_products_gone_leaves_nothing_quantized() -> None:
    model = _model("s", 0)
    assert float_products(model) == 2
    assert {node.op_type for node in model.graph} == {"MatMul"}
    assert all(value.dtype == ir.DataType.FLOAT for value in model.graph.initializers.values())
    assert float_products(model) == 0
