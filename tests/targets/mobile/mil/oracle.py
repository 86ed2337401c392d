"""ONNX Runtime as the judge of single operators."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

Array = NDArray[Any]


def onnx_op(kind: str, *inputs: Array | None, outputs: int = 1, opset: int = 21, **attributes: Any) -> list[Array]:
    """What ONNX Runtime makes of one operator; `None` leaves an optional input out."""
    names = ["" if value is None else f"x{at}" for at, value in enumerate(inputs)]
    given = {name: value for name, value in zip(names, inputs, strict=True) if value is not None}
    results = [f"y{at}" for at in range(outputs)]
    node = onnx.helper.make_node(kind, names, results, **attributes)
    graph = onnx.helper.make_graph(
        [node],
        "oracle",
        [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in given.items()
        ],
        [onnx.ValueInfoProto(name=name) for name in results],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return list(session.run(results, dict(given)))


def onnx_ops(kinds: Mapping[str, str], *inputs: Array) -> list[Array]:
    """The first output of several operators on the same inputs."""
    return [onnx_op(kind, *inputs)[0] for kind in kinds.values()]


def close(came: Array, expected: Any, tolerance: float = 1e-5) -> None:
    """Check that two arrays are of one shape and differ by at most `tolerance` of their size."""
    expected = np.asarray(expected)
    assert came.shape == expected.shape
    assert came.dtype == expected.dtype
    np.testing.assert_allclose(came, expected, rtol=tolerance, atol=tolerance)
