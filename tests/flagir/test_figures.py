"""Figures of nodes, blocks and segments, lifetimes and peaks, against counts by hand; polynomials against figures."""

from fractions import Fraction

import onnx_ir as ir
import pytest
from tests.flagir.models import canonical, light_path, parse, with_weights

from flagsplit.errors import ModelError
from flagsplit.flagir import Skeleton, block_graph, canonicalize, cut_into_steps, read_model
from flagsplit.flagir.figures import figures_by_node, figures_of
from flagsplit.flagir.liveness import Lifetime, lifetimes, peak_activations
from flagsplit.flagir.symbolic_totals import Polynomial, symbolic_totals
from flagsplit.flagir.types import ValueType

DIAMOND = """g (float[N, 4] x) => (float[N, 4] y) {
    [a] a = MatMul (x, w) [b] b = Relu (a) [c] c = Sigmoid (a) [r] r = Reshape (c, s) [t] t = Reshape (r, q)
    [d] y = Add (b, t) }"""


def diamond() -> ir.Model:
    proto = with_weights(parse(DIAMOND, opset=21), w=(4, 4))
    for name, data in (("s", [2, -1]), ("q", [-1, 4])):
        tensor = ir.to_proto(ir.tensor(data, name=name))
        proto.graph.initializer.append(tensor)
    return canonical(proto)


def types_of(model: ir.Model, **dims: int) -> dict[str, ValueType]:
    return Skeleton(model).types(dims)


def test_a_node_a_block_a_segment_and_all() -> None:
    model = diamond()
    types = types_of(model, N=3)
    by_node = figures_by_node(model, types)
    assert by_node["a"].flops == {"matmul": 2 * 3 * 4 * 4}
    assert (by_node["a"].read_bytes, by_node["a"].write_bytes, by_node["a"].weight_bytes) == (48, 48, 64)
    assert (by_node["d"].read_bytes, by_node["d"].write_bytes, by_node["d"].weight_bytes) == (96, 48, 0)
    whole = figures_of(model, types)
    assert whole.flops == {"matmul": 96, "elementwise": 12 + 120 + 12, "movement": 0}
    assert (whole.read_bytes, whole.write_bytes) == (48, 48)
    assert whole.weight_bytes == 64 + 16 + 16
    for block in block_graph(model, {"N": 3}).blocks:
        figures = figures_of(model, types, block.nodes)
        assert figures.flops == pytest.approx(block.flops)
        assert (figures.read_bytes, figures.write_bytes) == (block.read_bytes, block.write_bytes)
    first, last = cut_into_steps(model, {name: int(name not in ("a", "b")) for name in by_node}, 2)
    assert figures_of(model, types, first.segment.nodes).write_bytes == 48 + 48
    assert figures_of(model, types, last.segment.nodes).read_bytes == 48 + 48


def test_lifetimes() -> None:
    assert lifetimes(diamond()) == {
        "x": Lifetime(-1, 0),
        "a": Lifetime(0, 2),
        "b": Lifetime(1, 5),
        "c": Lifetime(2, 5),
        "r": Lifetime(3, 5),
        "t": Lifetime(4, 5),
        "y": Lifetime(5, 5),
    }


def test_the_peak_and_how_views_and_the_order_change_it() -> None:
    model = diamond()
    types = types_of(model, N=3)
    assert peak_activations(model, types).size_bytes == 3 * 48
    assert peak_activations(model, types).node == "c"
    late = ["a", "c", "r", "t", "b", "d"]
    assert peak_activations(model, types, late).node == "b"
    assert lifetimes(model, late)["a"] == Lifetime(0, 4)


def test_a_subgraph_adds_its_own_peak() -> None:
    body = "a = Relu (x) b = Sigmoid (a) c = Add (a, b)"
    text = f"""g (float[4] x, bool k) => (float[4] y) {{
        y = If (k) <then_branch = t () => (float[4] c) {{ {body} }},
                    else_branch = e () => (float[4] d) {{ d = Neg (x) }}> }}"""
    model = canonical(parse(text, opset=21))
    assert peak_activations(model, types_of(model)).size_bytes == 16 + 1 + 16 + 3 * 16


@pytest.mark.parametrize(
    ("order", "said"),
    [
        (["a"], "an order of all 6 nodes"),
        (["b", "a", "c", "r", "t", "d"], "runs 'b' before 'a'"),
    ],
)
def test_an_order_that_cannot_be_is_refused(order: list[str], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        lifetimes(diamond(), order)


def test_a_node_that_is_not_there_is_named() -> None:
    with pytest.raises(ModelError, match="came 'nobody'"):
        figures_of(diamond(), {}, ["nobody"])


LOOP = """g (float[4] x{more}) => (float[4] y) {constants} {{
    y = Loop (n, t, x) <body = b (int64 i, bool k, float[4] s) => (bool k2, float[4] s2) {{
        k2 = Identity (k) s2 = Add (s, x) }}> }}"""


def test_bodies_count_as_often_as_they_run() -> None:
    constant = canonical(parse(LOOP.format(more="", constants="<int64 n = {7}, bool t = {1}>"), opset=21))
    figures = figures_of(constant, types_of(constant))
    assert figures.flops == {"elementwise": 7 * 4}
    assert figures.notes == ()
    free = canonical(parse(LOOP.format(more=", int64 n", constants="<bool t = {1}>"), opset=21))
    figures = figures_of(free, types_of(free))
    assert figures.flops == {"elementwise": 4}
    assert "a Loop without constant trips counts as one" in figures.notes[0]


def test_a_scan_runs_once_for_each_step() -> None:
    text = """g (float[2] s, float[5, 2] x) => (float[2] y, float[5, 2] z) {
        y, z = Scan <num_scan_inputs = 1, body = b (float[2] i, float[2] n) => (float[2] o, float[2] p) {
            o = Add (i, n) p = Neg (o) }> (s, x) }"""
    model = canonical(parse(text, opset=21))
    assert figures_of(model, types_of(model)).flops == {"elementwise": 5 * (2 + 2)}


def test_of_branches_the_heavier_counts() -> None:
    text = """g (float[4] x, bool k) => (float[4] y) {
        y = If (k) <then_branch = t () => (float[4] c) { a = Sigmoid (x) c = Add (a, x) },
                    else_branch = e () => (float[4] d) { d = Neg (x) }> }"""
    model = canonical(parse(text, opset=21))
    assert figures_of(model, types_of(model)).flops == {"elementwise": 40 + 4}


def test_polynomials() -> None:
    polynomial = Polynomial(("N", "L"), {(1, 2): Fraction(3), (0, 1): Fraction(-1, 2), (0, 0): Fraction(1)})
    assert str(polynomial) == "3*N*L^2 - 0.5*L + 1"
    assert polynomial.at({"N": 2, "L": 4}) == 96 - 2 + 1
    assert str(Polynomial((), {})) == "0"


def test_totals_in_symbols_hold_at_other_sizes() -> None:
    text = """g (float[N, L, 16] q) => (float[N, L, 16] y) {
        y = Attention <q_num_heads = 2, kv_num_heads = 2> (q, q, q) }"""
    model = canonical(parse(text, opset=23))
    totals = symbolic_totals(model)
    assert str(totals.flops) == "64*N*L^2"
    assert totals.basis == "L a multiple of 128"
    assert totals.activation_bytes is not None
    assert totals.flops is not None
    for dims in ({"N": 3, "L": 256}, {"N": 1, "L": 1280}):
        figures = figures_of(model, types_of(model, **dims))
        assert totals.flops.at(dims) == figures.total_flops
        assert totals.activation_bytes.at(dims) == figures.write_bytes


def test_a_size_that_cannot_vary_is_said() -> None:
    proto = with_weights(parse("g (float[N, M] x) => (float[N, 4] y) { y = MatMul (x, w) }", opset=21), w=(64, 4))
    totals = symbolic_totals(canonical(proto))
    assert str(totals.flops) == "512*N"
    assert totals.basis == "M = 64"


def test_where_there_is_no_polynomial_the_reason_is_said() -> None:
    text = "g (float[1, 1, H] x) => (float[1, 1, K] y) { y = MaxPool <kernel_shape = [3], strides = [3]> (x) }"
    totals = symbolic_totals(canonical(parse(text, opset=21)))
    assert totals.flops is None
    assert "sizes are rounded on the way" in totals.basis


@pytest.mark.slow
def test_resnet50_has_4_1_gmac() -> None:
    """He et al., Deep Residual Learning, 2015; 4.1 GMAC at 224 x 224 is the usual figure for v1.5 and ONNX's model."""
    model = read_model(light_path("resnet50"))
    canonicalize(model)
    types = types_of(model)
    figures = figures_of(model, types)
    assert (figures.flops["conv"] + figures.flops["matmul"]) / 2e9 == pytest.approx(4.1, rel=0.03)
    assert figures.weight_bytes == pytest.approx(25.6e6 * 4, rel=0.01)
    assert peak_activations(model, types).size_bytes >= 3 * 64 * 112 * 112 * 4
