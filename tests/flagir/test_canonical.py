"""The canonical form: hand-made models of every awkward kind, and the answers stay the same."""

import os

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.flagir.models import (
    LIGHT_OTHERS,
    LIGHT_SMALL,
    assert_close,
    assert_same_answers,
    canonical,
    inputs_for,
    light_path,
    parse,
    random_model,
    run,
)

from flagsplit.errors import ModelError
from flagsplit.flagir import canonicalize, read_model, to_bytes

MODELS = {
    "constants": "g (float[2] x) => (float[2] y) { k = Constant <value_floats = [1.0, 2.0]> () y = Add(x, k) }",
    "captured by a branch": """g (bool c, float[2] x) => (float[2] y) { r = Relu(x)
        y = If (c) <then_branch = t () => (float[2] a) { a = Neg(r) },
            else_branch = e () => (float[2] b) { b = Exp(r) }> }""",
    "branch passes an outer value on": """g (bool c, float[2] x) => (float[2] y, float[2] r) { r = Relu(x)
        y = If (c) <then_branch = t () => (float[2] a) { a = Identity(r) },
            else_branch = e () => (float[2] b) { b = Neg(r) }> }""",
    "branch in a branch": """g (bool c, bool d, float[2] x) => (float[2] y) { r = Relu(x) s = Exp(r)
        y = If (c) <then_branch = t () => (float[2] a) { a = If (d) <
                then_branch = tt () => (float[2] aa) { aa = Identity(s) },
                else_branch = te () => (float[2] ab) { ab = Neg(r) }> },
            else_branch = e () => (float[2] b) { b = Neg(r) }> }""",
    "branches that use the same names": """g (bool c, float[2] x) => (float[2] y) {
        y = If (c) <
            then_branch = t () => (float[2] a) { k = Constant <value_floats = [1.0, 2.0]> () a = Add(x, k) },
            else_branch = e () => (float[2] a) { k = Constant <value_floats = [3.0, 2.0]> () a = Mul(x, k) }> }""",
    "branch returns a constant": """g (bool c, float[2] x) => (float[2] y) {
        y = If (c) <then_branch = t () => (float[2] a) { a = Constant <value_floats = [1.0, 2.0]> () },
                    else_branch = e () => (float[2] b) { b = Neg(x) }> }""",
    "loop": """g (int64 n, float[2] x) => (float[2] y, float[k, 2] z) { go = Constant <value = bool {1}> () r = Relu(x)
        last, every = Loop (n, go, x) <body = b (int64 i, bool ci, float[2] v) => (bool co, float[2] vo, float[2] sc) {
            co = Identity(ci) vo = Add(v, r) sc = Identity(vo) }>
        y = Neg(last) z = Exp(every) }""",
    "sequence": """g (float[N, 2] x, int64 i) => (float[N, 2] y) { a = Neg(x) s = SequenceConstruct(x, a)
        y = SequenceAt(s, i) }""",
    "optional": "g (float[2] x) => (float[2] y) { o = Optional(x) y = OptionalGetElement(o) }",
    "unused input": "g (float[2] x, float[3] u) => (float[2] y) { y = Neg(x) }",
    "input as output by Identity": "g (float[2] x) => (float[2] z, float[2] y) { z = Identity(x) y = Relu(x) }",
    "chain of Identity outputs": """g (float[2] x) => (float[2] b, float[2] a, float[2] c) {
        a = Relu(x) b = Identity(a) c = Identity(b) }""",
    "initializer as output": """g (float[2] x) => (float[2] y, float[2] w, float[2] w_out) <float[2] w = {1.0, 2.0}> {
        y = Add(x, w) w_out = Neg(x) }""",
    "constant as output, and read": """g (float[2] x) => (float[2] k, float[2] y) {
        k = Constant <value_floats = [1.0, 2.0]> () y = Add(x, k) }""",
    "folded output": """g (float[2] x) => (float[2] y, float[2] z) <float[2] w = {1.0, 2.0}> {
        y = Exp(w) z = Add(x, y) }""",
    "no inputs": "g () => (float[2] k) { k = Constant <value_floats = [1.0, 2.0]> () }",
    "fill": """g (float[2] x) => (float[2, 2] y) {
        s = Constant <value_ints = [2, 2]> () k = ConstantOfShape(s) y = Add(x, k) }""",
    "scalar fill": """g (float[2] x) => (float[2] y) <int64[0] s = {}> {
        k = ConstantOfShape <value = float[1] {3.0}> (s) y = Add(x, k) }""",
    "fill as output": """g (float[2] x) => (float[2, 2] k, float[2] y) {
        s = Constant <value_ints = [2, 2]> () k = ConstantOfShape(s) y = Neg(x) }""",
    "dims of no name": "g (float[?, N] x, float[?, N] z) => (float[?, N] y) { y = Add(x, z) }",
    "declared shape that is wrong": "g (float[2] x) => (float[2] y) <float[3] a> { a = Relu(x) y = Neg(a) }",
    "reshape by Shape": """g (float[N, 3, 4] x) => (float[N, 12] y)
        <int64 i = {0}, int64[1] ax = {0}, int64[1] m = {-1}> {
        s = Shape(x) b = Gather(s, i) u = Unsqueeze(b, ax) c = Concat <axis = 0> (u, m) y = Reshape(x, c) }""",
}


@pytest.mark.parametrize("name", MODELS)
def test_answers_stay_the_same(name: str) -> None:
    model = assert_same_answers(parse(MODELS[name]))
    assert "Constant" not in {node.op_type for node in model.graph}
    assert not model.functions


@pytest.mark.parametrize("name", MODELS)
def test_canonicalizing_twice_changes_nothing(name: str) -> None:
    model = canonical(parse(MODELS[name]))
    once = to_bytes(model)
    again = ir.from_proto(onnx.load_from_string(once))
    canonicalize(again)
    assert to_bytes(again) == once


@pytest.mark.parametrize("seed", range(4))
def test_random_models(seed: int) -> None:
    assert_same_answers(random_model(seed))


@pytest.mark.slow
@pytest.mark.parametrize("name", LIGHT_SMALL)
def test_light_models(name: str) -> None:
    check_light(name)


@pytest.mark.slow
@pytest.mark.skipif("FLAGSPLIT_LARGE_MODELS" not in os.environ, reason="up to half a gigabyte each")
@pytest.mark.parametrize("name", LIGHT_OTHERS)
def test_large_light_models(name: str) -> None:
    check_light(name)


def check_light(name: str) -> None:
    model = read_model(light_path(name))
    proto = onnx.load(light_path(name))
    canonicalize(model)
    made = ir.to_proto(model)
    onnx.checker.check_model(made)
    inputs = inputs_for(proto)
    assert_close(run(made, inputs), run(proto, inputs))


def test_functions_are_inlined() -> None:
    text = """g (float[2] x) => (float[2] y) { y = my.f <alpha = 2.0> (x) }
        <domain: "my", opset_import: ["" : 17]>
        f <alpha> (a) => (b) { k = Constant <value_float: float = @alpha> () c = Mul(a, k) b = Relu(c) }"""
    model = assert_same_answers(parse(text, imports=', "my" : 1'))
    assert [node.op_type for node in model.graph] == ["Mul", "Relu"]
    assert dict(model.opset_imports) == {"": 23}


def test_initializers_that_are_inputs_too_are_inputs_no_more() -> None:
    proto = parse("g (float[2] x, float[2] w) => (float[2] y) { y = Add(x, w) }")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(2, np.float32), "w"))
    model = assert_same_answers(proto)
    assert [value.name for value in model.graph.inputs] == ["x"]


def test_an_input_that_is_an_output_itself() -> None:
    """One of the two must be renamed: the output keeps its name."""
    proto = parse("g (float[2] x) => (float[2] x, float[2] y) { y = Relu(x) }")
    made = ir.to_proto(canonical(proto))
    assert [value.name for value in made.graph.output] == ["x", "y"]
    assert [value.name for value in made.graph.input] == ["x_orig"]
    x = np.array([-1, 2], np.float32)
    assert_close(run(made, {"x_orig": x}), [x, np.maximum(x, 0)])


def test_duplicate_outputs_get_names_of_their_own() -> None:
    made = ir.to_proto(canonical(parse("g (float[2] x) => (float[2] y, float[2] y) { y = Neg(x) }")))
    assert [value.name for value in made.graph.output] == ["y", "y_alias_1"]
    x = np.array([-1, 2], np.float32)
    assert_close(run(made, {"x": x}), [-x, -x])


def test_nodes_without_a_name_and_with_the_same_one() -> None:
    model = canonical(parse("g (float[2] x) => (float[2] y) { [a] b = Relu(x) [a] c = Exp(b) d = Neg(c) y = Abs(d) }"))
    assert len({node.name for node in model.graph}) == 4
    assert all(node.name for node in model.graph)


def test_dims_get_names_that_a_user_can_speak_of() -> None:
    model = canonical(parse("g (float[?, 3, N] x, float[?] z) => (float[?, 3, N] y) { y = Neg(x) }"))
    shapes = [str(value.shape) for value in (*model.graph.inputs, *model.graph.outputs)]
    assert shapes == ["[x.0,3,N]", "[z.0]", "[x.0,3,N]"]


def test_dims_of_minus_one_or_a_question_mark() -> None:
    proto = parse("g (float[2, 2, 2] x) => (float[2, 2, 2] y) { y = Neg(x) }")
    sizes = proto.graph.input[0].type.tensor_type.shape.dim
    sizes[0].dim_value, sizes[1].dim_param = -1, "?"
    sizes[2].ClearField("value")
    assert str(canonical(proto).graph.inputs[0].shape) == "[x.0,x.1,x.2]"


def test_unknown_dims_get_symbols_that_are_not_taken() -> None:
    model = canonical(parse("g (float[unknown_0] x) => (int64[1, ?] y) { y = NonZero(x) }"))
    assert str(model.graph.outputs[0].shape) == "[1,unknown_1]"


def test_the_rank_after_a_group_normalization_is_known() -> None:
    text = """g (float[1, 4, N, N] x) => (float[?, ?, ?, ?] y) <float[4] s = {1, 2, 3, 4}> {
        z = GroupNormalization <num_groups = 2> (x, s, s) y = Relu(z) }"""
    model = assert_same_answers(parse(text, opset=21))
    assert str(model.graph.outputs[0].shape) == "[1,4,N,N]"


@pytest.mark.parametrize(
    "nodes",
    [
        "s = Constant <value_ints = [40000, 40000]> () k = Constant <value_float = 1.0> () e = Expand(k, s)",
        "a = Constant <value_float = 0.0> () b = Constant <value_float = 9e9> () d = Sign(b) e = Range(a, b, d)",
        "s = Constant <value_ints = [1600000000]> () k = Constant <value_floats = [1.0]> () e = Tile(k, s)",
    ],
)
def test_a_few_bytes_do_not_unfold_into_gigabytes(nodes: str) -> None:
    model = canonical(
        parse(f"g (float[1] x) => (float[1] y) {{ {nodes} m = ReduceMax <keepdims = 0> (e) y = Add(x, m) }}")
    )
    assert [node.op_type for node in model.graph][1:] == ["ReduceMax", "Add"]


def test_vendor_operators_are_refused_by_name() -> None:
    text = "g (float[2] x) => (float[2] y) { z = com.microsoft.Inverse(x) y = com.microsoft.CDist(z, z) }"
    with pytest.raises(ModelError, match=r"com\.microsoft\.Inverse \(1\), com\.microsoft\.CDist \(1\)"):
        canonical(parse(text, imports=', "com.microsoft" : 1'))


def test_an_input_without_a_rank_is_refused() -> None:
    proto = parse("g (float[2] x) => (float[2] y) { y = Neg(x) }")
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ModelError, match="input 'x' does not"):
        canonicalize(ir.from_proto(proto))


def test_progress_and_metadata() -> None:
    model = ir.from_proto(parse("g (float[2] x) => (float[2] y) { y = Neg(x) }"))
    model.metadata_props["author"] = "me"
    model.graph.name = None
    seen: list[str] = []
    canonicalize(model, seen.append)
    assert seen[0] == "InlineFunctions"
    assert seen[-1] == "CanonicalForms"
    assert model.metadata_props == {"author": "me", "flagir.version": "1.0"}
    assert model.graph.name == "model"
