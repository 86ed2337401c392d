"""One spelling for each node: axes from the front, no defaults, no trailing blanks; the meaning stays."""

import numpy as np
import onnx_ir as ir
import pytest
from tests.flagir.models import assert_same_answers, parse


def node_of(model: ir.Model, op_type: str) -> ir.Node:
    return next(node for node in model.graph if node.op_type == op_type)


@pytest.mark.parametrize(
    ("node", "op_type", "left"),
    [
        ("Softmax <axis = -1> (x)", "Softmax", {}),
        ("Softmax <axis = -2> (x)", "Softmax", {"axis": 1}),
        ("Concat <axis = -3> (x, x)", "Concat", {"axis": 0}),
        ("LeakyRelu <alpha = 0.01> (x)", "LeakyRelu", {}),
        ("LeakyRelu <alpha = 0.5> (x)", "LeakyRelu", {"alpha": 0.5}),
        ("Clip (x, , )", "Clip", {}),
    ],
)
def test_each_spelling(node: str, op_type: str, left: dict[str, float]) -> None:
    model = assert_same_answers(parse(f"g (float[2, 3, 4] x) => (y) {{ y = {node} }}", opset=23))
    kept = node_of(model, op_type)
    came = {name: attribute.value for name, attribute in kept.attributes.items()}
    if op_type == "Softmax" and not left:
        assert came in ({}, {"axis": 2})
    else:
        np.testing.assert_equal(came, left)
    assert kept.inputs[-1] is not None
