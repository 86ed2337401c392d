"""Products with constant matrices become `Linear`, whose weights are turned round once; several of one input, one."""

from collections import defaultdict

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from flagsplit.targets.cloud.cuda.lowering.registry import DOMAIN
from flagsplit.targets.cloud.cuda.passes.rewriting import constant, numbers, operands, put, reader, sizes, weight

Numbers = NDArray[np.generic]


def fuse_linear(graph: ir.Graph) -> None:
    """Find all products, each with the bias that follows it, in place."""
    for node in list(graph):
        if node.graph is not graph or node.domain:
            continue
        if node.op_type == "MatMul":
            _of_matmul(graph, node)
        elif node.op_type == "Gemm":
            _of_gemm(graph, node)


def _of_matmul(graph: ir.Graph, node: ir.Node) -> None:
    x, matrix = node.inputs
    weights, shape = numbers(matrix), sizes(x)
    if x is None or weights is None or weights.ndim != 2 or shape is None or len(shape) < 2:
        return
    bias, last = None, node.outputs[0]
    add = reader(last, "Add")
    for one, other in operands(add):
        found = constant(other)
        fits = found is not None and found.size == weights.shape[1] == found.shape[-1]
        if one is not last or not fits or found is None or add is None:
            continue
        if sizes(add.outputs[0]) == sizes(node.outputs[0]):
            bias, last = found.reshape(-1), add.outputs[0]
            break
    _put(graph, last, x, weights.T, bias)


def _of_gemm(graph: ir.Graph, node: ir.Node) -> None:
    number = node.attributes.get_float
    if node.attributes.get_int("transA", 0) or number("alpha", 1.0) != 1.0 or number("beta", 1.0) != 1.0:
        return
    weights = numbers(node.inputs[1])
    given = node.inputs[2] if len(node.inputs) > 2 else None
    bias = constant(given)
    if weights is None or node.inputs[0] is None or (given is not None and bias is None):
        return
    weights = weights if node.attributes.get_int("transB", 0) else weights.T
    if bias is not None:
        if bias.size not in (1, weights.shape[0]) or (bias.ndim and bias.shape[-1] != bias.size):
            return
        bias = np.broadcast_to(bias.reshape(-1), weights.shape[:1])
    _put(graph, node.outputs[0], node.inputs[0], weights, bias)


def _put(graph: ir.Graph, old: ir.Value, x: ir.Value, weights: Numbers, bias: Numbers | None) -> None:
    assert x.dtype is not None
    inputs = [x, weight(graph, weights, x.dtype, f"{old.name}/weights")]
    if bias is not None:
        inputs.append(weight(graph, bias, x.dtype, f"{old.name}/bias"))
    put(graph, old, "Linear", inputs, domain=DOMAIN)


def share_inputs(graph: ir.Graph) -> None:
    """Make one product of those that read the same value, as queries, keys and values do; then split it, in place."""
    families: dict[ir.Value, list[ir.Node]] = defaultdict(list)
    for node in graph:
        if node.domain == DOMAIN and node.op_type == "Linear" and node.inputs[0] is not None:
            families[node.inputs[0]].append(node)
    for x, nodes in families.items():
        if len(nodes) > 1 and len({len(node.inputs) for node in nodes}) == 1:
            _join(graph, x, nodes)


def _join(graph: ir.Graph, x: ir.Value, nodes: list[ir.Node]) -> None:
    parts = [[numbers(value) for value in node.inputs[1:]] for node in nodes]
    joined = [np.concatenate([each for each in group if each is not None]) for group in zip(*parts, strict=True)]
    first, shape = nodes[0], sizes(nodes[0].outputs[0])
    assert x.dtype is not None
    assert shape is not None
    name = f"{first.outputs[0].name}/joined"
    weights = [weight(graph, each, x.dtype, f"{name}/{at}") for at, each in enumerate(joined)]
    whole = ir.Value(name=name, type=x.type, shape=ir.Shape([*shape[:-1], joined[0].shape[0]]))
    outputs = []
    for node in nodes:
        old = node.outputs[0]
        new = ir.Value(name=old.name, type=old.type, shape=old.shape)
        old.name = f"{old.name}/before"
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        outputs.append(new)
    product = ir.Node(DOMAIN, "Linear", [x, *weights], outputs=[whole], name=name)
    axis = ir.convenience.convert_attributes({"axis": -1})
    split = ir.Node("", "Split", [whole], axis, outputs=outputs, name=f"{name}/split")
    graph.insert_before(first, [product, split])
