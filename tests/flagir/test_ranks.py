"""Ranks that ONNX's inference leaves open and the operators fix."""

import onnx_ir as ir
import pytest
from tests.flagir.models import assert_same_answers, canonical, parse

from flagsplit.errors import ModelError
from flagsplit.flagir import canonicalize, check


def ranks(model: ir.Model) -> dict[str, int | None]:
    return {
        value.name or "": None if value.shape is None else len(value.shape)
        for graph in model.graphs()
        for node in graph
        for value in node.outputs
    }


@pytest.mark.parametrize(
    ("attributes", "axes", "rank"),
    [
        ("keepdims = 0", 2, 1),
        ("keepdims = 0", 1, 2),
        ("keepdims = 1", 2, 3),
        ("keepdims = 0", 0, 0),
        ("keepdims = 0, noop_with_empty_axes = 1", 0, 3),
    ],
)
def test_a_reduction_over_axes_that_come_at_run_time(attributes: str, axes: int, rank: int) -> None:
    dims = ", ".join("ABC"[:rank])
    body = f"s = ReduceSum <{attributes}> (x, a) y = Exp (s)"
    text = f"g (float[2, 3, 4] x, int64[{axes}] a) => (float[{dims}] y) {{ {body} }}"
    assert ranks(canonical(parse(text, opset=18)))["s"] == rank


def test_a_split_into_sizes_that_come_at_run_time() -> None:
    text = "g (float[2, 6] x, int64[2] s) => (float[2, K] y) { a, y = Split <axis = 1> (x, s) b = Exp (a) }"
    model = canonical(parse(text))
    assert ranks(model)["y"] == 2


LOOP = """g (float[3] x, int64 n, bool t) => (float[K] y, float[M, 3] z) {{
    y, z = Loop (n, t, x) <body = b (int64 i, bool k, float s) => (bool k2, float s2, float o) {{
        k2 = Identity (k) s2 = {step} o = Neg (x) }}> }}"""


def state_without_a_rank(step: str) -> ir.Model:
    proto = parse(LOOP.format(step=step))
    body = next(a.g for a in proto.graph.node[0].attribute if a.name == "body")
    for info in (body.input[2], *body.output[1:]):
        info.type.tensor_type.ClearField("shape")
    return ir.from_proto(proto)


def test_the_state_of_a_loop_keeps_its_rank() -> None:
    proto = ir.to_proto(state_without_a_rank("Add (s, x)"))
    model = canonical(proto)
    assert (ranks(model)["s2"], ranks(model)["y"], ranks(model)["z"]) == (1, 1, 2)


def test_a_state_that_grows_is_not_given_a_rank() -> None:
    proto = ir.to_proto(state_without_a_rank("Unsqueeze (s, k0)"))
    proto.graph.initializer.append(ir.to_proto(ir.tensor([0], name="k0")))
    del proto.graph.output[0]
    model = canonical(proto)
    assert ranks(model)["s2"] is None


def test_branches_of_different_ranks_are_canonical_where_no_output_is_open() -> None:
    text = """g (float[1, 4] x, bool k) => (float[4] y) {
        r = If (k) <then_branch = t () => (float[4] a) { a = Squeeze (x, axes) },
                    else_branch = e () => (float[1, 4] b) { b = Identity (x) }>
        y = Reshape (r, all) }"""
    proto = parse(text)
    proto.graph.initializer.extend([ir.to_proto(ir.tensor([0], name="axes")), ir.to_proto(ir.tensor([-1], name="all"))])
    model = canonical(proto)
    assert ranks(model)["r"] is None
    assert_same_answers(proto)


def test_an_output_without_a_rank_is_refused() -> None:
    text = """g (float[1, 4] x, bool k) => (float y) {
        y = If (k) <then_branch = t () => (float[4] a) { a = Squeeze (x, axes) },
                    else_branch = e () => (float[1, 4] b) { b = Identity (x) }> }"""
    proto = parse(text)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    proto.graph.initializer.append(ir.to_proto(ir.tensor([0], name="axes")))
    model = ir.from_proto(proto)
    canonicalize(model)
    with pytest.raises(ModelError, match="output 'y': expected a rank"):
        check(model)
