"""Fused groups: each pattern is found in the forms that exporters write, nothing else is, and no block divides one."""

import functools
from collections.abc import Callable

import onnx
import onnx_ir as ir
import pytest
from tests.flagir.models import canonical, light_path, parse, random_model, with_weights
from tests.flagir.test_blocks import check_bytes, check_convex, check_partition, check_values, owner_of

from flagsplit.apps import zoo
from flagsplit.errors import PeerError
from flagsplit.flagir import BlockGraph, Skeleton, block_graph, canonicalize, nominal_dims, read_model
from flagsplit.flagir.blocks import _units
from flagsplit.flagir.groups import FusedGroup, find_groups, recognisers
from flagsplit.flagir.reads import activations_read

CONTRACTIONS = ("Conv", "MatMul", "Gemm", "Einsum", "Attention", "If", "Loop")


def transformer(layers: int = 2) -> onnx.ModelProto:
    """An encoder as PyTorch exports BERT: embedding, post-norm layers, erf GELU, a mask made once for all layers."""
    lines: list[str] = []
    weights: dict[str, tuple[int, ...]] = {"table": (50, 32), "s": (32,), "b": (32,)}
    at = "x0"
    for n in range(layers):
        lines.extend(
            f"m{name}{n} = MatMul({at}, w{name}{n}) a{name}{n} = Add(b, m{name}{n}) "
            f"r{name}{n} = Reshape(a{name}{n}, heads) "
            f"t{name}{n} = Transpose <perm = [{'0, 2, 3, 1' if name == 'k' else '0, 2, 1, 3'}]> (r{name}{n})"
            for name in "qkv"
        )
        lines.append(
            f"""s{n} = MatMul(tq{n}, tk{n}) d{n} = Div(s{n}, root) e{n} = Add(d{n}, mask)
            p{n} = Softmax <axis = -1> (e{n}) c{n} = MatMul(p{n}, tv{n})
            ct{n} = Transpose <perm = [0, 2, 1, 3]> (c{n}) cr{n} = Reshape(ct{n}, flat)
            o{n} = MatMul(cr{n}, wo{n}) oa{n} = Add(b, o{n}) h{n} = Add(oa{n}, {at})"""
        )
        lines.append(norm(f"h{n}", f"y{n}", f"n{n}"))
        lines.append(
            f"""u{n} = MatMul(y{n}, wu{n}) ua{n} = Add(bu, u{n})
            g1{n} = Div(ua{n}, sqrt2) g2{n} = Erf(g1{n}) g3{n} = Add(g2{n}, one) g4{n} = Mul(ua{n}, g3{n})
            g5{n} = Mul(g4{n}, half)
            f{n} = MatMul(g5{n}, wf{n}) fa{n} = Add(b, f{n}) i{n} = Add(fa{n}, y{n})"""
        )
        at = f"x{n + 1}"
        lines.append(norm(f"i{n}", at, f"l{n}"))
        weights |= {f"w{name}{n}": (32, 32) for name in "qkvo"} | {f"wu{n}": (32, 64), f"wf{n}": (64, 32)}
    weights["bu"] = (64,)
    text = f"""g (int64[batch, seq] ids, float[batch, 1, 1, seq] keep) => (float[batch, seq, 32] x{layers})
    <int64[4] heads = {{0, 0, 4, 8}}, int64[3] flat = {{0, 0, 32}}, float root = {{2.828427}},
     float sqrt2 = {{1.4142135}}, float one = {{1.0}}, float half = {{0.5}}, float two = {{2.0}},
     float eps = {{1e-5}}, int64[1] last = {{-1}}, float far = {{-10000.0}}>
    {{ x0 = Gather(table, ids) inverse = Sub(one, keep) mask = Mul(inverse, far)
    {" ".join(lines)} }}"""
    return with_weights(parse(text, opset=18), **weights)


def norm(source: str, result: str, stem: str) -> str:
    return f"""{stem}m = ReduceMean({source}, last) {stem}d = Sub({source}, {stem}m) {stem}q = Pow({stem}d, two)
        {stem}v = ReduceMean({stem}q, last) {stem}e = Add({stem}v, eps) {stem}r = Sqrt({stem}e)
        {stem}c = Div({stem}d, {stem}r) {stem}s = Mul({stem}c, s) {result} = Add({stem}s, b)"""


def groups_of(body: str, **weights: tuple[int, ...]) -> list[tuple[str, str]]:
    """The groups of a model with input `x` and output `y`, each as its kind and its operators."""
    text = f"""g (float[2, 8, 8, 8] x, float[2, 8, 8, 8] z) => (float[2, 8, 8, 8] y)
    <float one = {{1.0}}, float half = {{0.5}}, float two = {{2.0}}, float three = {{3.0}}, float six = {{6.0}},
     float zero = {{0.0}}, float eps = {{1e-5}}, float sqrt2 = {{1.4142135}}, float beta = {{1.702}},
     int64[1] last = {{-1}}, float c = {{0.044715}}, float k = {{0.7978846}}, float rsqrt2 = {{0.70710678}}>
    {{ {body} }}"""
    return shown(find_groups(canonical(with_weights(parse(text, opset=18), **weights)).graph))


def shown(groups: tuple[FusedGroup, ...]) -> list[tuple[str, str]]:
    return [(group.kind, " ".join(node.op_type for node in group.nodes)) for group in groups]


SQUARES = "m = ReduceMean(x, last) d = Sub(x, m) q = Pow(d, two) v = ReduceMean(q, last) e = Add(v, eps) r = Sqrt(e)"

FOUND = {
    "layer norm": (
        f"{SQUARES} n = Div(d, r) s = Mul(n, w) y = Add(s, w)",
        "layer_norm",
        "ReduceMean Sub Pow ReduceMean Add Sqrt Div Mul Add",
    ),
    "layer norm with a product for the square": (
        "m = ReduceMean(x, last) d = Sub(x, m) q = Mul(d, d) v = ReduceMean(q, last) e = Add(eps, v) r = Sqrt(e) "
        "i = Reciprocal(r) n = Mul(i, d) y = Neg(n)",
        "layer_norm",
        "ReduceMean Sub Mul ReduceMean Add Sqrt Reciprocal Mul",
    ),
    "layer norm that subtracts twice": (
        f"{SQUARES} d2 = Sub(x, m) n = Div(d2, r) y = Mul(n, w)",
        "layer_norm",
        "ReduceMean Sub Pow ReduceMean Add Sqrt Div Mul",
    ),
    "root-mean-square norm": (
        "q = Pow(x, two) v = ReduceMean(q, last) e = Add(v, eps) r = Sqrt(e) i = Div(one, r) "
        "n = Mul(x, i) y = Mul(w, n)",
        "layer_norm",
        "Pow ReduceMean Add Sqrt Div Mul Mul",
    ),
    "the operator": ("y = LayerNormalization(x, w)", "layer_norm", "LayerNormalization"),
    "gelu by erf": (
        "a = Div(x, sqrt2) b = Erf(a) d = Add(b, one) e = Mul(x, d) f = Mul(e, half) y = Neg(f)",
        "gelu",
        "Div Erf Add Mul Mul",
    ),
    "gelu by erf, half first": (
        "h = Mul(half, x) a = Mul(x, rsqrt2) b = Erf(a) d = Add(one, b) e = Mul(h, d) y = Neg(e)",
        "gelu",
        "Mul Mul Erf Add Mul",
    ),
    "gelu by erf, half in the middle": (
        "a = Mul(x, rsqrt2) b = Erf(a) d = Add(one, b) h = Mul(half, d) e = Mul(x, h) y = Neg(e)",
        "gelu",
        "Mul Erf Add Mul Mul",
    ),
    "gelu by tanh": (
        "p = Pow(x, three) a = Mul(p, c) b = Add(x, a) d = Mul(b, k) t = Tanh(d) e = Add(t, one) h = Mul(x, half) "
        "f = Mul(h, e) y = Neg(f)",
        "gelu",
        "Pow Mul Add Mul Tanh Add Mul Mul",
    ),
    "gelu by tanh without Pow": (
        "p = Mul(x, x) p3 = Mul(p, x) a = Mul(c, p3) b = Add(x, a) d = Mul(k, b) t = Tanh(d) e = Add(t, one) "
        "f = Mul(x, e) g = Mul(half, f) y = Neg(g)",
        "gelu",
        "Mul Mul Mul Add Mul Tanh Add Mul Mul",
    ),
    "silu": ("a = Sigmoid(x) b = Mul(x, a) y = Neg(b)", "swish", "Sigmoid Mul"),
    "quick gelu": ("m = Mul(beta, x) a = Sigmoid(m) b = Mul(a, x) y = Neg(b)", "swish", "Mul Sigmoid Mul"),
    "hard-swish by clip": (
        "a = Add(x, three) b = Clip(a, zero, six) d = Mul(x, b) e = Div(d, six) y = Neg(e)",
        "swish",
        "Add Clip Mul Div",
    ),
    "hard-swish, divided first": (
        "a = Add(x, three) b = Clip(a, zero, six) d = Div(b, six) e = Mul(d, x) y = Neg(e)",
        "swish",
        "Add Clip Div Mul",
    ),
    "hard-swish by hard-sigmoid": (
        "a = HardSigmoid <alpha = 0.16666667> (x) b = Mul(x, a) y = Neg(b)",
        "swish",
        "HardSigmoid Mul",
    ),
    "mish": ("a = Softplus(x) b = Tanh(a) d = Mul(x, b) y = Neg(d)", "swish", "Softplus Tanh Mul"),
    "conv, bn, silu": (
        "a = Conv <pads = [1, 1, 1, 1]> (x, kernel) n = BatchNormalization (a, w, w, w, w) "
        "s = Sigmoid(n) m = Mul(n, s) y = Neg(m)",
        "conv",
        "Conv BatchNormalization Sigmoid Mul",
    ),
    "conv, scale, bias, relu": (
        "a = Conv <pads = [1, 1, 1, 1]> (x, kernel) b = Mul(a, two) d = Add(w, b) r = Relu(d) y = Neg(r)",
        "conv",
        "Conv Mul Add Relu",
    ),
    "matmul, bias, gelu": (
        "t = MatMul(x, u) x2 = Add(t, w) a = Div(x2, sqrt2) b = Erf(a) d = Add(b, one) e = Mul(x2, d) "
        "f = Mul(e, half) y = Neg(f)",
        "linear",
        "MatMul Add Div Erf Add Mul Mul",
    ),
    "attention": (
        "t = Transpose <perm = [0, 1, 3, 2]> (z) s = MatMul(x, t) a = Mul(s, half) p = Softmax(a) y = MatMul(p, z)",
        "attention",
        "Transpose MatMul Mul Softmax MatMul",
    ),
    "attention that guards against NaN": (
        "s = MatMul(x, z) p = Softmax(s) n = IsNaN(p) g = Where(n, zero, p) m = MatMul(g, z) "
        "y = Transpose <perm = [0, 1, 3, 2]> (m)",
        "attention",
        "MatMul Softmax IsNaN Where MatMul Transpose",
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_found(name: str) -> None:
    body, kind, operators = FOUND[name]
    assert groups_of(body, w=(8,), kernel=(8, 8, 3, 3), u=(8, 8)) == [(kind, operators)]


NOT_FOUND = {
    "a gate of something else": "a = Sigmoid(z) y = Mul(x, a)",
    "a gate that is turned": "a = Transpose <perm = [0, 1, 3, 2]> (x) b = Sigmoid(a) y = Mul(x, b)",
    "a gate that is read twice": "a = Sigmoid(x) b = Mul(x, a) d = Neg(a) y = Add(b, d)",
    "an erf alone": "a = Erf(x) y = Add(a, one)",
    "bounds that are computed": "m = ReduceMax <keepdims = 0> (z) a = Clip(x, zero, m) y = Mul(x, a)",
    "a deviation of something else": (
        "m = ReduceMean(x, last) d = Sub(z, m) q = Pow(d, two) v = ReduceMean(q, last) e = Add(v, eps) r = Sqrt(e) "
        "y = Div(x, r)"
    ),
    "a cube": "q = Pow(x, three) v = ReduceMean(q, last) e = Add(v, eps) r = Sqrt(e) y = Div(x, r)",
    "a softmax alone": "p = Softmax(x) y = Mul(p, z)",
    "a softmax as the second factor": "s = MatMul(x, z) p = Softmax(s) y = MatMul(z, p)",
}


@pytest.mark.parametrize("name", NOT_FOUND)
def test_not_found(name: str) -> None:
    assert groups_of(NOT_FOUND[name]) == []


def test_squeeze_and_excite_is_no_activation() -> None:
    body = """a = Conv <pads = [1, 1, 1, 1]> (x, kernel) g = GlobalAveragePool(a) b = Conv(g, p) r = Relu(b)
        d = Conv(r, p) s = HardSigmoid(d) y = Mul(a, s)"""
    found = groups_of(body, kernel=(8, 8, 3, 3), p=(8, 8, 1, 1))
    assert found == [("conv", "Conv"), ("conv", "Conv Relu"), ("conv", "Conv HardSigmoid")]


def test_what_the_graph_returns_ends_a_group() -> None:
    text = """g (float[1, 8, 4, 4] x) => (float[1, 8, 4, 4] a, float[1, 8, 4, 4] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, kernel) y = Relu(a) }"""
    graph = canonical(with_weights(parse(text), kernel=(8, 8, 3, 3))).graph
    assert shown(find_groups(graph)) == [("conv", "Conv")]


def test_no_group_takes_in_a_foreign_contraction() -> None:
    """Between the two products lies a third, on a path that leaves the softmax and comes back."""
    body = "s = MatMul(x, z) p = Softmax(s) q = MatMul(p, u) g = Add(p, q) y = MatMul(p, g)"
    assert [kind for kind, _ in groups_of(body, u=(8, 8))] == ["linear"]


def assert_sound(graph: ir.Graph, groups: tuple[FusedGroup, ...]) -> None:
    """Groups are disjoint, in order and convex."""
    position = {node: index for index, node in enumerate(graph)}
    nodes = [node for group in groups for node in group.nodes]
    assert len(set(nodes)) == len(nodes)
    for group in groups:
        assert group.kind in recognisers()
        assert sorted(group.nodes, key=position.__getitem__) == list(group.nodes)
        after: set[ir.Node] = set()
        for node in list(graph)[position[group.nodes[0]] :]:
            makers = {value.producer() for value in activations_read(node)}
            assert node not in group.nodes or not makers & after
            if node not in group.nodes and makers & {*group.nodes, *after}:
                after.add(node)


def blocks_of(model: ir.Model) -> BlockGraph:
    """The blocks, after checking that they are sound and that none divides a group."""
    skeleton = Skeleton(model)
    graph = block_graph(model, nominal_dims(skeleton, {}), skeleton)
    check_partition(model, graph)
    check_convex(model, graph)
    check_values(model, graph)
    check_bytes(model, graph, skeleton)
    groups = find_groups(model.graph)
    assert_sound(model.graph, groups)
    owner = owner_of(graph)
    for group in groups:
        assert len({owner[node.name or ""] for node in group.nodes}) == 1
    units = [{node.name for node in group.nodes} for group in groups]
    for block in graph.blocks:
        heavy = {name for name, op in zip(block.nodes, block.op_types, strict=True) if op in CONTRACTIONS}
        assert len(heavy) <= 1 or any(heavy <= unit for unit in units)
    return graph


MODELS: dict[str, Callable[[], ir.Model]] = {
    **{f"random {seed}": functools.partial(lambda seed: canonical(random_model(seed)), seed) for seed in range(10)},
    "transformer": lambda: canonical(transformer()),
}


@pytest.mark.parametrize("name", MODELS)
def test_no_block_divides_a_group(name: str) -> None:
    blocks_of(MODELS[name]())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["squeezenet", "shufflenet", "inception_v1", "resnet50"])
def test_blocks_of_real_networks(name: str) -> None:
    model = read_model(light_path(name))
    canonicalize(model)
    blocks_of(model)
    convolutions = sum(node.op_type == "Conv" for node in model.graph)
    assert sum(group.kind == "conv" for group in find_groups(model.graph)) == convolutions


def test_a_transformer() -> None:
    model = canonical(transformer(layers=3))
    groups = find_groups(model.graph)
    kinds = [group.kind for group in groups]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"attention": 3, "layer_norm": 6, "linear": 18}
    attention = next(operators for kind, operators in shown(groups) if kind == "attention")
    assert attention.split().count("MatMul") == 2
    assert attention.split().count("Transpose") == 4
    assert not any("mask" in str(value.name) for group in groups for node in group.nodes for value in node.outputs)
    assert sum("Erf" in operators for kind, operators in shown(groups) if kind == "linear") == 3
    graph = blocks_of(model)
    holding = [block for block in graph.blocks if "Softmax" in block.op_types]
    assert [block.op_types.count("MatMul") for block in holding] == [2, 2, 2]
    assert len(graph.blocks) <= 3 * 9 + 3


@pytest.mark.slow
def test_the_text_recognizer() -> None:
    try:
        model = read_model(zoo.pull("ppocr-rec"))
    except PeerError as error:
        pytest.skip(str(error))
    canonicalize(model)
    kinds = [group.kind for group in find_groups(model.graph)]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "attention": 2,
        "layer_norm": 5,
        "conv": 38,
        "linear": 9,
    }
    graph = blocks_of(model)
    assert [block.op_types.count("MatMul") for block in graph.blocks if block.op_types.count("MatMul") > 1] == [2, 2]
    root = [node.name or "" for node in model.graph if node.op_type == "Sqrt"]
    owner = owner_of(graph)
    assert len({owner[name] for name in root}) == 5


def test_groups_in_each_others_way_are_given_up() -> None:
    """Each of two swishes reads what the other makes half-way: both are convex, both at once are not."""
    text = """g (float[4] x, float[4] w) => (float[4] y, float[4] z) {
        a = Sigmoid(x) b = Mul(x, a) y = Neg(b) c = Sigmoid(w) d = Mul(w, c) z = Neg(d) }"""
    model = canonical(parse(text))
    nodes = {node.outputs[0].name: node for node in model.graph}
    crossed = [FusedGroup("swish", (nodes["a"], nodes["z"])), FusedGroup("swish", (nodes["c"], nodes["y"]))]
    units = _units(list(model.graph), [crossed[0], FusedGroup("swish", (nodes["c"], nodes["d"]))])
    assert sorted(map(len, units)) == [1, 1, 2, 2]
    nodes["y"].replace_input_with(0, nodes["a"].outputs[0])
    nodes["z"].replace_input_with(0, nodes["c"].outputs[0])
    assert sorted(map(len, _units(list(model.graph), crossed))) == [1] * 6
