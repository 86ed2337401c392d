"""Blocks: a partition of the nodes that is convex, ordered and true in its byte counts."""

import functools

import onnx
import onnx_ir as ir
import pytest
from tests.flagir.models import canonical, light_path, parse, random_model, with_weights

from flagsplit.flagir import (
    GRAPH_INPUT,
    OP_CLASSES,
    BlockGraph,
    Skeleton,
    block_graph,
    canonicalize,
    nominal_dims,
    read_model,
)
from flagsplit.flagir.reads import activations_read

SEQUENCE = """g (float[4, 2] x, int64 i) => (float[1, 2] y, float[4, 2] q) <float[2, 2] w = {1, 2, 3, 4}> {
    a = Neg(x)
    s = SplitToSequence <axis = 0> (a)
    b = MatMul(x, w)
    p = SequenceAt(s, i)
    q = MatMul(b, w)
    t = MatMul(p, w)
    y = MatMul(t, w)
}"""


def light(name: str) -> ir.Model:
    model = read_model(light_path(name))
    canonicalize(model)
    return model


MODELS = {
    **{f"random {seed}": functools.partial(lambda seed: canonical(random_model(seed)), seed) for seed in range(24)},
    "squeezenet": functools.partial(light, "squeezenet"),
    "shufflenet": functools.partial(light, "shufflenet"),
    "inception": functools.partial(light, "inception_v1"),
}


@pytest.mark.parametrize("name", MODELS)
def test_properties(name: str) -> None:
    model = MODELS[name]()
    skeleton = Skeleton(model)
    dims = nominal_dims(skeleton, {})
    graph = block_graph(model, dims, skeleton)
    assert graph.dims == dims
    check_partition(model, graph)
    check_convex(model, graph)
    check_contractions(graph)
    check_values(model, graph)
    check_bytes(model, graph, skeleton)


def owner_of(graph: BlockGraph) -> dict[str, int]:
    return {name: block.index for block in graph.blocks for name in block.nodes}


def check_partition(model: ir.Model, graph: BlockGraph) -> None:
    named = [name for block in graph.blocks for name in block.nodes]
    assert sorted(named) == sorted(node.name or "" for node in model.graph)
    assert len(set(named)) == len(named)
    assert [block.index for block in graph.blocks] == list(range(len(graph.blocks)))
    assert len({block.name for block in graph.blocks}) == len(graph.blocks)
    assert all(block.name in block.nodes and len(block.op_types) == len(block.nodes) for block in graph.blocks)
    position = {node.name: index for index, node in enumerate(model.graph)}
    for block in graph.blocks:
        assert [position[name] for name in block.nodes] == sorted(position[name] for name in block.nodes)


def check_convex(model: ir.Model, graph: BlockGraph) -> None:
    """Every edge goes to the same or a higher block, so no path leaves a block and comes back."""
    owner = owner_of(graph)
    for node in model.graph:
        for value in activations_read(node):
            maker = value.producer()
            assert maker is None or owner[maker.name or ""] <= owner[node.name or ""]


def check_contractions(graph: BlockGraph) -> None:
    for block in graph.blocks:
        anchors = [op for op in block.op_types if op in ("Conv", "MatMul", "Gemm", "If", "Loop")]
        assert len(anchors) <= 1
        assert set(block.flops) <= set(OP_CLASSES)


def check_values(model: ir.Model, graph: BlockGraph) -> None:
    owner = owner_of(graph)
    readers: dict[str, set[int]] = {}
    for node in model.graph:
        for value in activations_read(node):
            readers.setdefault(value.name or "", set()).add(owner[node.name or ""])
    assert [value.name for value in graph.inputs] == [value.name for value in model.graph.inputs]
    assert {value.name for value in graph.outputs} == {value.name for value in model.graph.outputs}
    assert len({value.name for value in graph.values}) == len(graph.values)
    for sent in graph.values:
        assert all(consumer > sent.producer for consumer in sent.consumers)
        assert set(sent.consumers) == readers.get(sent.name, set()) - {sent.producer}
        assert list(sent.consumers) == sorted(set(sent.consumers))
    crossing = {
        value.name
        for node in model.graph
        for value in node.outputs
        if readers.get(value.name or "", set()) - {owner[node.name or ""]}
    }
    assert crossing <= {value.name for value in graph.values}


def check_bytes(model: ir.Model, graph: BlockGraph, skeleton: Skeleton) -> None:
    types = skeleton.types(graph.dims)
    assert all(value.size_bytes == types[value.name].size_bytes for value in graph.values)
    for block in graph.blocks:
        entering = [value for value in graph.values if block.index in value.consumers]
        leaving = [value for value in graph.values if value.producer == block.index]
        assert block.read_bytes == sum(value.size_bytes for value in entering)
        assert block.write_bytes == sum(value.size_bytes for value in leaving)
    weights = sum(
        value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None
    )
    assert sum(block.weight_bytes for block in graph.blocks) == weights


def one_block_each(model: ir.Model) -> list[tuple[str, ...]]:
    return [block.op_types for block in block_graph(model, nominal_dims(Skeleton(model), {})).blocks]


def test_a_convolution_keeps_what_follows_it() -> None:
    text = """g (float[1, 8, 16, 16] x) => (float[1, 8, 16, 16] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, k)
        b = BatchNormalization (a, s, s, s, s)
        c = Relu(b)
        d = Conv <pads = [1, 1, 1, 1]> (c, l)
        y = Sigmoid(d) }"""
    proto = with_weights(parse(text), k=(8, 8, 3, 3), l=(8, 8, 3, 3), s=(8,))
    assert one_block_each(canonical(proto)) == [("Conv", "BatchNormalization", "Relu"), ("Conv", "Sigmoid")]


def test_shape_arithmetic_is_never_cut_off() -> None:
    text = """g (float[N, 8, 4, 4] x) => (float[N, 5] y) <int64 i = {0}, int64[1] ax = {0}, int64[1] m = {-1}> {
        a = Conv <pads = [1, 1, 1, 1]> (x, k)
        s = Shape(a) b = Gather(s, i) u = Unsqueeze(b, ax) c = Concat <axis = 0> (u, m)
        r = Reshape(a, c)
        y = MatMul(r, w) }"""
    blocks = one_block_each(canonical(with_weights(parse(text), k=(8, 8, 3, 3), w=(128, 5))))
    assert len(blocks) <= 2
    assert all("Conv" in ops or "MatMul" in ops for ops in blocks)


def test_a_shared_weight_counts_once_and_an_embedding_touches_rows() -> None:
    text = """g (int64[1, 4] ids) => (float[1, 4, 500] y) {
        e = Gather(table, ids) t = Transpose <perm = [1, 0]> (table2)
        h = MatMul(e, w) g = MatMul(h, w) y = MatMul(g, t) }"""
    proto = with_weights(parse(text), table=(500, 32), table2=(500, 32), w=(32, 32))
    graph = block_graph(canonical(proto), {})
    assert sum(block.weight_bytes for block in graph.blocks) == (500 * 32 * 2 + 32 * 32) * 4
    gather = next(block for block in graph.blocks if "Gather" in block.op_types)
    extra = 32 * 32 * 4 if "MatMul" in gather.op_types else 0
    assert gather.touched_weight_bytes == 4 * 32 * 4 + extra


def test_a_sequence_is_never_between_blocks() -> None:
    model = canonical(parse(SEQUENCE))
    graph = block_graph(model, {})
    check_partition(model, graph)
    check_convex(model, graph)
    sequences = {v.name for node in model.graph for v in node.outputs if not isinstance(v.type, ir.TensorType)}
    assert sequences
    assert sequences.isdisjoint(value.name for value in graph.values)


def test_an_input_that_nobody_reads() -> None:
    graph = block_graph(canonical(parse("g (float[2] x, float[3] u) => (float[2] y) { y = Neg(x) }")), {})
    assert [(value.name, value.producer, value.consumers) for value in graph.inputs] == [
        ("x", GRAPH_INPUT, (0,)),
        ("u", GRAPH_INPUT, ()),
    ]
    assert graph.outputs[0].size_bytes == 8


def test_sizes_by_codec() -> None:
    """Those of numbers with a fraction, parameters included, at the nominal sizes; inputs too."""
    text = """g (int64[N, 3] ids, float[N, 3] x, string[2] s) => (float[N, 3] y, string[2] z) {
        f = Cast <to = 1> (ids) h = Add(f, x) y = Softmax(h) z = Identity(s) }"""
    values = {value.name: value.codec_bytes for value in block_graph(canonical(parse(text)), {"N": 2}).values}
    assert values["ids"] == {}
    assert values["s"] == values["z"] == {}
    assert values["x"] == values["y"] == {"fp16": 12, "u8_per_channel": 6 + 2 * 5, "u8": 6 + 5, "u4_per_channel": 29}


@pytest.mark.parametrize("element", ["string", "bfloat16", "float8e4m3fn", "uint4", "float16"])
def test_no_cut_where_engines_have_no_arrays(element: str) -> None:
    kind = onnx.TensorProto.DataType.Value(element.upper())
    model = canonical(
        parse(
            f"""g (float[2, 2] x) => (float[2, 2] y, float[2, 2] z) <float[2, 2] w = {{1, 2, 3, 4}}> {{
            a = MatMul(x, w)
            c = Cast <to = {kind}> (a)
            d = Cast <to = 1> (c)
            y = MatMul(d, w)
            t = Transpose(c)
            e = Cast <to = 1> (t)
            z = MatMul(e, w)
            }}""",
            opset=21,
        )
    )
    blocks = block_graph(model, {}).blocks
    assert len(blocks) == (3 if element == "float16" else 1)
