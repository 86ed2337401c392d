"""Bringing a model to the pinned opset: what each operator meant at its own opset, it means at the pin."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.flagir.models import Array, assert_same_answers, canonical, parse, run

from flagsplit.errors import ModelError
from flagsplit.flagir import canonicalize
from flagsplit.flagir.opset import IR_VERSION, OPSET

IMAGE = (2, 4, 6, 6)


def floats(*values: float) -> Array:
    return np.array(values, np.float32)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


CASES: list[tuple[str, int, tuple[int, ...], dict[str, Any], list[Array]]] = [
    ("Softmax", 9, IMAGE, {}, []),
    ("Softmax", 11, IMAGE, {"axis": 2}, []),
    ("LogSoftmax", 9, IMAGE, {"axis": -1}, []),
    ("Hardmax", 13, IMAGE, {}, []),
    ("Upsample", 7, IMAGE, {"mode": "nearest", "scales": [1.0, 1.0, 1.5, 2.0]}, []),
    ("Upsample", 7, IMAGE, {"mode": "linear", "scales": [1.0, 1.0, 2.0, 2.0]}, []),
    ("Upsample", 9, IMAGE, {"mode": "linear"}, [floats(1, 1, 2, 2)]),
    ("Resize", 10, IMAGE, {"mode": "linear"}, [floats(1, 1, 0.5, 1.5)]),
    ("Resize", 10, IMAGE, {"mode": "nearest"}, [floats(1, 1, 1.5, 2)]),
    ("Resize", 11, IMAGE, {"mode": "linear"}, [floats(), floats(1, 1, 1.5, 2)]),
    ("Clip", 7, IMAGE, {"min": -0.5}, []),
    ("Clip", 9, IMAGE, {"min": -0.5, "max": 0.5}, []),
    ("Pad", 9, IMAGE, {"pads": [0, 0, 1, 1, 0, 0, 1, 1], "value": 2.0}, []),
    ("Slice", 9, IMAGE, {"starts": [1, 0], "ends": [3, 9999], "axes": [1, 2]}, []),
    ("Squeeze", 11, (1, 3, 1), {"axes": [0]}, []),
    ("Unsqueeze", 11, (3, 2), {"axes": [0, 3]}, []),
    ("ReduceSum", 11, IMAGE, {"axes": [1, 2], "keepdims": 0}, []),
    ("ReduceMean", 17, IMAGE, {"axes": [-1]}, []),
    ("Dropout", 7, IMAGE, {"ratio": 0.5}, []),
    ("BatchNormalization", 7, IMAGE, {"epsilon": 1e-3}, [floats(1, 2, 3, 4)] * 4),
    ("BatchNormalization", 14, IMAGE, {}, [floats(1, 2, 3, 4)] * 4),
    ("AveragePool", 10, IMAGE, {"kernel_shape": [3, 3], "ceil_mode": 1, "strides": [2, 2]}, []),
    ("MaxPool", 8, IMAGE, {"kernel_shape": [2, 2]}, []),
    ("Gemm", 7, (2, 3), {"alpha": 0.5}, [np.ones((3, 4), np.float32), floats(1, 2, 3, 4)]),
    ("GroupNormalization", 18, IMAGE, {"num_groups": 2}, [floats(1, 2), floats(3, 4)]),
    ("GridSample", 16, (1, 1, 4, 4), {"mode": "bilinear"}, [np.full((1, 3, 3, 2), 0.3, np.float32)]),
    ("DFT", 17, (1, 8, 1), {"axis": 1}, []),
    ("Scatter", 9, (3, 3), {}, [ints(1, 0, 2).reshape(1, 3), floats(1, 2, 3).reshape(1, 3)]),
    (
        "LSTM",
        7,
        (3, 2, 4),
        {"hidden_size": 5},
        [np.full((1, 20, 4), 0.1, np.float32), np.full((1, 20, 5), 0.1, np.float32)],
    ),
    ("Einsum", 12, (2, 3, 4), {"equation": "bij,bjk->bik"}, [np.ones((2, 4, 5), np.float32)]),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def test_an_operator_keeps_its_meaning(case: tuple[str, int, tuple[int, ...], dict[str, Any], list[Array]]) -> None:
    op, opset, shape, attributes, constants = case
    names = [f"w{index}" for index in range(len(constants))]
    weights = [onnx.numpy_helper.from_array(array, name) for array, name in zip(constants, names, strict=True)]
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op, ["x", *names], ["y"], **attributes)],
        "g",
        [info("x", onnx.TensorProto.FLOAT, shape)],
        [info("y", onnx.TensorProto.FLOAT, [None] * (3 if op == "DFT" else 0) or None)],
        weights,
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=7)
    model = assert_same_answers(proto)
    assert model.opset_imports[""] == OPSET
    assert model.ir_version == IR_VERSION


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17, 23])
def test_every_opset_from_7_on(opset: int) -> None:
    axes = "axes = [1]" if opset < 13 else ""
    squeeze = f"Squeeze <{axes}> (c)" if axes else "Squeeze(c, ax)"
    proto = parse(
        f"""g (float[N, 1, 3] x) => (float[N, 3] y) <int64[1] ax = {{1}}, float[3] k = {{1.0, 2.0, 3.0}}> {{
            c = Add(x, k) s = {squeeze} y = Softmax <axis = 1> (s) }}""",
        opset=opset,
    )
    if opset < 13:
        del proto.graph.initializer[0]
    assert_same_answers(proto)


@pytest.mark.parametrize("opset", [24, 25, 26])
def test_a_newer_opset_with_unchanged_operators_is_relabelled(opset: int) -> None:
    proto = parse("g (float[2] x) => (float[2] y) { z = Relu(x) y = Add(z, x) }", opset=opset)
    model = canonical(proto)
    assert dict(model.opset_imports) == {"": OPSET}


@pytest.mark.parametrize("opset", [24, 25, 26])
def test_a_newer_opset_that_only_admits_more_types_is_relabelled(opset: int) -> None:
    graph = """g (float[N, 4] x) => (float[M] y) <int64[1] all = {-1}> {
        i = Cast <to = 7> (x) f = Cast <to = 1> (i) t = Transpose (f) s = Shape (t) u = Unsqueeze (t, all)
        q = Squeeze (u, all) y = Reshape (q, all) }"""
    assert_same_answers(parse(graph, opset=opset))


@pytest.mark.parametrize(
    ("opset", "node", "reason"),
    [
        (26, "BitCast <to = 6> (x)", "new since 23"),
        (25, 'Cast <to = 10, round_mode = "up"> (x)', "round_mode"),
        (24, "Cast <to = 24> (x)", "float8e8m0"),
    ],
)
def test_a_newer_opset_with_a_changed_operator_is_refused(opset: int, node: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        canonical(parse(f"g (float[2, 2, 2] x) => (y) {{ y = {node} }}", opset=opset))


@pytest.mark.parametrize(
    ("opset", "node"),
    [
        (24, "Swish (x)"),
        (24, "Swish <alpha = 0.5> (x)"),
        (24, "Attention <q_num_heads = 1, kv_num_heads = 1> (x, x, x)"),
        (28, "Mod <fmod = 1> (x, x)"),
        (28, "Celu (x)"),
    ],
)
def test_a_newer_operator_becomes_what_onnx_says_it_is_made_of(opset: int, node: str) -> None:
    proto = parse(f"g (float[2, 2, 2] x) => (float[2, 2, 2] y) {{ y = {node} }}", opset=opset)
    assert_same_answers(proto)


@pytest.mark.parametrize(
    ("body", "inputs", "wanted"),
    [
        (
            "(float[4] a, float[4] b) => (float[4] y) { y = Mod (a, b) }",
            ([5, -5, 5, -5], [3, 3, -3, -3]),
            [2, 1, -1, -2],
        ),
        (
            '(int8[5] a, int8[5] b) => (int8[5] y) { y = BitShift <direction = "RIGHT"> (a, b) }',
            ([-128, -1, 64, -3, 5], [3, 9, 2, -1, 127]),
            [-16, -1, 16, -1, 0],
        ),
        (
            '(int32[3] a, int32[3] b) => (int32[3] y) { y = BitShift <direction = "LEFT"> (a, b) }',
            ([1, -3, 7], [31, 2, 32]),
            [-(2**31), -12, 0],
        ),
    ],
    ids=["mod", "shift right", "shift left"],
)
def test_a_newer_operator_that_only_we_spell_out(body: str, inputs: tuple[list[int], ...], wanted: list[int]) -> None:
    proto = parse(f"g {body}", opset=28)
    dtypes = [onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type) for info in proto.graph.input]
    model = canonical(proto)
    arrays = {name: np.array(data, kind) for name, data, kind in zip("ab", inputs, dtypes, strict=True)}
    (found,) = run(ir.to_proto(model), arrays)
    np.testing.assert_array_equal(found, np.array(wanted, dtypes[0]))


def test_scan_of_opset_8_is_refused() -> None:
    body = "g (float[1, 2] s, float[1, 3, 2] x) => (float[1, 2] y, float[1, 3, 2] z) {"
    inner = "b (float[2] i, float[2] n) => (float[2] o, float[2] p) { o = Add (i, n) p = Identity (o) }"
    text = f'{body} y, z = Scan <num_scan_inputs = 1, body = {inner}> ("", s, x) }}'
    with pytest.raises(ModelError, match="its meaning changed in opset 9"):
        canonicalize(ir.from_proto(parse(text, opset=8)))


@pytest.mark.parametrize(
    ("opset", "message"),
    [(6, "expected opset 7 or newer, came 6"), (1000, "came 1000"), (0, "expected opset 7")],
)
def test_opsets_out_of_reach_are_refused(opset: int, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        canonicalize(ir.from_proto(parse("g (float[2] x) => (float[2] y) { y = Relu(x) }", opset=opset)))


def test_no_standard_opset_at_all_is_refused() -> None:
    proto = parse("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    del proto.opset_import[:]
    with pytest.raises(ModelError, match="found none"):
        canonicalize(ir.from_proto(proto))


def test_what_the_converter_cannot_keep_is_refused() -> None:
    with pytest.raises(ModelError, match="Hardmax"):
        canonical(parse("g (float[2, 3] x) => (float[2, 3] y) { y = Hardmax(x) }", opset=9))
