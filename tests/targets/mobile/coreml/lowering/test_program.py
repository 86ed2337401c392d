"""What a program takes and gives, what it is called, and what is said when it cannot be made."""

import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.targets.mobile.coreml.lowering.packages import called, run

from flagsplit import flagir
from flagsplit.errors import ConfigError, InternalError, ModelError
from flagsplit.targets.interface import Array
from flagsplit.targets.mobile.coreml.lowering import registry
from flagsplit.targets.mobile.coreml.lowering.program import build_program, io_dtype, io_shape
from flagsplit.targets.mobile.coreml.lowering.registry import has_rule, refusal, rules
from flagsplit.targets.mobile.coreml.lowering.site import Site
from flagsplit.targets.written_out import write_out


def _model(body: str) -> ir.Model:
    model = ir.serde.deserialize_model(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {body}'))
    flagir.canonicalize(model)
    return model


def _names(model: ir.Model) -> dict[str, str]:
    return {value.name or "": called(value.name or "") for value in (*model.graph.inputs, *model.graph.outputs)}


_ENDS = """g (int64[3] a, bool[3] b, float s, float16[2, 3] h) => (int64[3] n, bool[3] f, float[1] t, float16[2, 3] k) {
    n = Neg (a)
    f = Not (b)
    r = Exp (s)
    shape = Constant <value_ints: ints = [1]> ()
    t = Reshape (r, shape)
    k = Relu (h)
}"""


@pytest.mark.slow
def test_ends_of_all_types(tmp_path: Path) -> None:
    model = _model(_ENDS)
    half = np.array([[-1, 2, 3], [4, -5, 6]], np.float16)
    given: dict[str, Array] = {
        "a": np.array([1, -2, 3]),
        "b": np.array([True, False, True]),
        "s": np.array(1, np.float32),
        "h": half,
    }
    made = run(model, given, tmp_path)
    for value in model.graph.outputs:
        assert value.dtype is not None
        assert made[value.name or ""].dtype.name == io_dtype(value.dtype.numpy().name)
    np.testing.assert_array_equal(made["n"], [-1, 2, -3])
    np.testing.assert_array_equal(made["f"], [0, 1, 0])
    assert made["t"].tolist() == pytest.approx([np.e], rel=1e-6)
    np.testing.assert_array_equal(made["k"], np.maximum(half, 0))


def test_scalars_pass_as_one_element() -> None:
    assert (io_shape(()), io_shape((2, 3))) == ((1,), (2, 3))
    with pytest.raises(ModelError, match="complex64"):
        io_dtype("complex64")


def test_inner_names_make_way_and_are_the_same_again() -> None:
    """`relu_0` is what coremltools would call the inner value."""
    model = _model("g (float[3] relu_0) => (float[3] y) { a = Relu (relu_0) y = Neg (a) }")
    names = {"relu_0": "relu_0", "y": "mul_0"}
    functions = [build_program(model, names).functions["main"] for _ in range(2)]
    named = [[var.name for operation in each.operations for var in operation.outputs] for each in functions]
    assert named[0] == named[1]
    function, inner = functions[0], named[0]
    assert len({"relu_0", *inner}) == 1 + len(inner)
    assert [var.name for var in function.outputs] == ["mul_0"]


def test_a_number_beyond_int32_is_refused_but_in_slices() -> None:
    body = "g (int64[3] x) => (int64[3] y) { big = Constant <value_int: int = 4294967296> () y = Add (x, big) }"
    model = _model(body)
    with pytest.raises(ModelError, match=r"(?s)Add.*beyond int32"):
        build_program(model, _names(model))
    end = "{from = Constant <value_ints: ints = [1]> () to = Constant <value_ints: ints = [9223372036854775807]> ()"
    model = _model(f"g (int64[3] x) => (int64[2] y) {end} y = Slice (x, from, to) }}")
    build_program(model, _names(model))


def test_refusals_need_no_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model("g (float[2, 3] x) => (float[2, 3] y) { y = Relu (x) }")
    monkeypatch.setitem(sys.modules, "coremltools", None)
    assert refusal(model.graph[0]) is None
    with pytest.raises(ConfigError, match=r"flagsplit\[coreml\]"):
        build_program(model, _names(model))


_NOT_TAKEN = {
    "NonZero": ("g (float[2, 3] x) => (int64[2, N] y) { y = NonZero (x) }", "there is no lowering of NonZero"),
    "rank": ("g (float[1, 1, 1, 1, 1, 2] x) => (float[1, 1, 1, 1, 1, 2] y) { y = Relu (x) }", "rank 6"),
    "double": ("g (double[2] x) => (double[2] y) { y = Relu (x) }", "double"),
    "operand": ("g (float[4] x, int64[2] s) => (float[2, 2] y) { y = Reshape (x, s) }", "has to be a constant"),
    "type": ("g (int32[2] x) => (int32[2] y) { y = ReduceMean <keepdims: int = 1> (x) }", "integers"),
    "dilated": (
        "g (float[1, 1, 9] x, float[1, 1, 3] w) => (float[1, 1, 5] y) { y = Conv <dilations: ints = [2]> (x, w) }",
        "no constant",
    ),
}


@pytest.mark.parametrize("case", sorted(_NOT_TAKEN))
def test_why_not(case: str) -> None:
    body, reason = _NOT_TAKEN[case]
    node = _model(body).graph[0]
    for value in node.outputs:
        if value.shape is None:
            value.shape = ir.Shape([2, 2])
    assert reason in (refusal(node) or "")


def test_functions_of_the_standard_are_written_out() -> None:
    """What has no lowering of its own is judged by what it is made of."""
    body = "g (float[1, 2, 3, 4] q, float[1, 2, 3, 4] k, float[1, 2, 3, 4] v) => (float[1, 2, 3, 4] y)"
    text = f'<ir_version: 11, opset_import: ["" : 23]> {body} {{ y = Attention (q, k, v) }}'
    model = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    flagir.canonicalize(model)
    assert [node.op_type for node in model.graph] == ["Attention"]
    assert refusal(model.graph[0]) is None
    assert write_out(model, has_rule)
    assert {node.op_type for node in model.graph} <= set(rules())
    assert not write_out(model, has_rule)


def test_a_wrong_lowering_names_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(site: Site) -> object:
        return site.mb.reshape(x=site.var(), shape=[6])

    broken = {**rules(), "Relu": registry.Rule(("Relu",), wrong, rules()["Relu"].dtypes, (), lambda _: "", False)}
    monkeypatch.setattr("flagsplit.targets.mobile.coreml.lowering.program.rules", lambda: broken)
    model = _model("g (float[2, 3] x) => (float[2, 3] y) { y = Relu (x) }")
    with pytest.raises(InternalError, match=r"Relu.*made 'y' of fp32 \[6\]; expected fp32 \[2, 3\]"):
        build_program(model, _names(model))
