"""Models that are right but unusual, and tensors that are not what they say: what corpus and fuzzer once found."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.flagir.models import assert_same_answers, canonical, parse, run

from flagsplit.errors import ModelError
from flagsplit.flagir import read_model


def test_outputs_that_a_node_leaves_out_stay_out() -> None:
    text = """g (float[1, 2, 4, 8] q) => (float[1, 2, 4, 8] y, float[1, 2, 4, 4] s) {
        y, "", "", s = Attention (q, q, q) }"""
    model = assert_same_answers(parse(text, opset=23))
    assert [value.name for value in model.graph[0].outputs] == ["y", "", "", "s"]


def test_a_call_may_leave_outputs_of_a_function_out() -> None:
    proto = parse(
        """g (float[2] x) => (float[2] y) { y = local.both (x) }
        <domain: "local", opset_import: ["" : 17]> both (a) => (b, c) { b = Neg (a) c = Exp (a) }""",
        imports=', "local" : 1',
    )
    assert [node.op_type for node in canonical(proto).graph] == ["Neg"]


def test_a_cast_that_does_not_saturate_stays_so() -> None:
    body = "c = CastLike <saturate = 0> (x, like) y = Cast <to = 1> (c)"
    model = canonical(parse(f"g (float[3] x, float8e4m3fn[1] like) => (float[3] y) {{ {body} }}", opset=23))
    (cast,) = (node for node in model.graph if node.op_type in ("CastLike", "Cast") and node.outputs[0].name == "c")
    assert cast.attributes.get_int("saturate") == 0


def test_a_model_of_machine_learning_operators_alone_needs_no_standard_opset() -> None:
    node = onnx.helper.make_node("Binarizer", ["x"], ["y"], domain="ai.onnx.ml", threshold=0.5)
    infos = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [3]) for name in "xy"]
    graph = onnx.helper.make_graph([node], "g", infos[:1], infos[1:])
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("ai.onnx.ml", 3)], ir_version=8)
    (found,) = run(ir.to_proto(canonical(proto)), {"x": np.array([0, 0.5, 1], np.float32)})
    np.testing.assert_array_equal(found, [0, 0, 1])


def test_an_input_may_be_a_sequence() -> None:
    text = "g (seq(float[2]) s, int64 i) => (float[2] y) { y = SequenceAt (s, i) }"
    model = canonical(parse(text))
    values = [np.array([1, 2], np.float32), np.array([3, 4], np.float32)]
    (found,) = run(ir.to_proto(model), {"s": values, "i": np.array(1)})  # type: ignore[dict-item]
    np.testing.assert_array_equal(found, values[1])


def damaged(**fields: Any) -> onnx.ModelProto:
    proto = parse("g (float[4] x) => (float[4] y) { y = Add (x, w) }")
    wanted: dict[str, Any] = {"dims": [4], "data_type": 1, **fields}
    proto.graph.initializer.append(onnx.TensorProto(name="w", **wanted))
    return proto


@pytest.mark.parametrize(
    "fields",
    [
        {"raw_data": b"\0" * 15},
        {"raw_data": b""},
        {"float_data": [0.0] * 3},
        {"float_data": [0.0] * 4, "int64_data": [1]},
        {"int64_data": [1] * 4},
        {"dims": [1 << 40, 1 << 40], "raw_data": b"\0" * 16},
        {"dims": [-1], "raw_data": b"\0" * 16},
        {"data_type": 0, "raw_data": b"\0" * 16},
        {"data_type": 29, "raw_data": b"\0" * 16},
        {"data_type": 8, "raw_data": b"\0" * 16},
        {"data_type": 14, "float_data": [0.0] * 4},
        {"data_type": 22, "int32_data": [1] * 4},
    ],
)
def test_a_tensor_that_is_not_what_it_says_is_refused(fields: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(damaged(**fields).SerializeToString())
    with pytest.raises(ModelError, match=r"tensor .* damaged|not a valid DataType"):
        read_model(path)


@pytest.mark.parametrize(
    "fields",
    [
        {"raw_data": b"\0" * 16},
        {"float_data": [0.0] * 4},
        {"data_type": 14, "float_data": [0.0] * 8},
        {"data_type": 22, "int32_data": [1] * 2},
        {"data_type": 16, "int32_data": [1] * 4},
        {"data_type": 8, "string_data": [b"a"] * 4},
        {"dims": [0]},
    ],
)
def test_a_tensor_in_any_of_its_forms_is_read(fields: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(damaged(**fields).SerializeToString())
    assert read_model(path).graph.initializers["w"].const_value is not None


@pytest.mark.parametrize("imports", [17, 23])
def test_a_loop_that_only_counts_and_carries_nothing(imports: int) -> None:
    text = """g (float[4, 4] x) => (float[k, 4] y) {
        n = Constant <value = int64 {3}> ()
        y = Loop (n, "") <body = trip (int64 i, bool c) => (bool d, float[4] r) { d = Identity(c) r = Gather(x, i) }>
    }"""
    model = assert_same_answers(parse(text, opset=imports))
    (loop,) = (node for node in model.graph if node.op_type == "Loop")
    assert len(loop.inputs) == 2


def test_a_circle_is_named() -> None:
    proto = parse("g (float[2] x) => (float[2] y) { c = Neg (x) a = Add (c, b) [two] b = Exp (a) y = Abs (b) }")
    with pytest.raises(ModelError, match=r"without circles.*: '\w+' \((Add|Exp)\) → '\w+' \((Add|Exp)\);"):
        canonical(proto)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "g (float[2] x) => (float[2] y) { [sum] y = Add (x, nope) }",
            r"node 'sum' \(Add\) reads 'nope', which",
        ),
        ("g (float[2] x) => (float[2] nope) { y = Neg (x) }", "graph 'g' returns 'nope', which it does not make"),
        (
            """g (float[2] x, bool c) => (float[2] y) {
            a = Neg (x)
            y = If (c) <then_branch = t () => (float[2] a) {}, else_branch = e () => (float[2] b) { b = Abs (a) }>
            }""",
            "graph 't' returns 'a', which it does not make",
        ),
    ],
)
def test_what_comes_from_nowhere(text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(parse(text), path)
    with pytest.raises(ModelError, match=said):
        read_model(path)
    assert capsys.readouterr().err == "", "all there is to say is in the error"


def test_maps_are_refused_with_the_way_out(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "ai.onnx.ml" : 3]>
    g (float[2, 2] x) => (seq(map(int64, float)) y) { y = ai.onnx.ml.ZipMap <classlabels_int64s = [0, 1]> (x) }"""
    path = tmp_path / "model.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    with pytest.raises(ModelError, match=r"maps, as ZipMap makes them.*zipmap"):
        read_model(path)
