"""Work per node, against counts by hand."""

import onnx_ir as ir
import pytest
from tests.flagir.models import light_path

from flagsplit.flagir import OP_CLASSES, Skeleton, ValueType, block_graph, canonicalize, read_model
from flagsplit.flagir.work import NodeWork, work_of


def work(
    op: str, ins: list[tuple[int, ...]], outs: list[tuple[int, ...]], /, **attributes: int | str | list[int]
) -> NodeWork:
    """The work of one node over floats of these shapes."""
    values = [ir.Value(name=f"i{index}") for index in range(len(ins))]
    node = ir.node(op, values, attributes=dict(attributes), num_outputs=len(outs))
    for index, value in enumerate(node.outputs):
        value.name = f"o{index}"
    named = {f"i{index}": shape for index, shape in enumerate(ins)} | {f"o{index}": s for index, s in enumerate(outs)}
    return work_of(node, {name: ValueType(ir.DataType.FLOAT, shape) for name, shape in named.items()})


IMAGE = (1, 8, 10, 12)
CASES = [
    # 2 x output elements x input channels per group x kernel
    (work("Conv", [IMAGE, (16, 8, 3, 3)], [(1, 16, 10, 12)]), "conv", 2 * 16 * 120 * 8 * 9),
    (work("Conv", [IMAGE, (16, 4, 3, 3)], [(1, 16, 10, 12)], group=2), "conv", 2 * 16 * 120 * 4 * 9),
    (work("Conv", [IMAGE, (8, 1, 3, 3)], [IMAGE], group=8), "depthwise", 2 * 8 * 120 * 9),
    (work("Conv", [(2, 4, 50), (6, 4, 5)], [(2, 6, 46)]), "conv", 2 * 2 * 6 * 46 * 4 * 5),
    # every input element is multiplied by all of its kernel
    (work("ConvTranspose", [IMAGE, (8, 4, 2, 2)], [(1, 4, 20, 24)]), "conv", 2 * 8 * 120 * 4 * 4),
    (work("MatMul", [(2, 5, 7), (7, 3)], [(2, 5, 3)]), "matmul", 2 * 2 * 5 * 7 * 3),
    (work("MatMul", [(7,), (7, 3)], [(3,)]), "matmul", 2 * 7 * 3),
    (work("Gemm", [(5, 7), (3, 7), (3,)], [(5, 3)], transB=1), "matmul", 2 * 5 * 7 * 3),
    (work("Gemm", [(7, 5), (7, 3)], [(5, 3)], transA=1), "matmul", 2 * 5 * 7 * 3),
    (work("Einsum", [(2, 5, 7), (2, 7, 3)], [(2, 5, 3)], equation="bij,bjk->bik"), "matmul", 2 * 2 * 5 * 7 * 3),
    (
        work("Einsum", [(4, 2, 5, 7), (4, 2, 7, 3)], [(4, 2, 5, 3)], equation="...ij,...jk->...ik"),
        "matmul",
        2 * 8 * 5 * 7 * 3,
    ),
    (work("Einsum", [(5, 7), (7, 3)], [(5, 3)], equation="ij, jk"), "matmul", 2 * 5 * 7 * 3),
    # Q K^T and P V
    (work("Attention", [(1, 4, 6, 8), (1, 4, 9, 8), (1, 4, 9, 8)], [(1, 4, 6, 8)]), "matmul", 2 * 2 * 4 * 6 * 9 * 8),
    (work("Attention", [(1, 6, 32), (1, 9, 32), (1, 9, 32)], [(1, 6, 32)]), "matmul", 2 * 2 * 6 * 9 * 32),
    # four gates, from the input and from the state, at each of 10 steps of 2 sequences
    (work("LSTM", [(10, 2, 6), (1, 20, 6), (1, 20, 5)], [(10, 1, 2, 5)]), "recurrent", 2 * 10 * 2 * 20 * (6 + 5)),
    (work("GRU", [(10, 2, 6), (2, 15, 6), (2, 15, 5)], [(10, 2, 2, 5)]), "recurrent", 2 * 2 * 10 * 2 * 15 * (6 + 5)),
    (work("Relu", [IMAGE], [IMAGE]), "elementwise", 960),
    (work("Add", [IMAGE, (1, 8, 1, 1)], [IMAGE]), "elementwise", 960),
    (work("Sigmoid", [IMAGE], [IMAGE]), "elementwise", 9600),
    (work("Softmax", [IMAGE], [IMAGE]), "reduce", 9600),
    (work("GlobalAveragePool", [IMAGE], [(1, 8, 1, 1)]), "reduce", 960),
    (work("MaxPool", [IMAGE], [(1, 8, 5, 6)], kernel_shape=[3, 3]), "reduce", 8 * 30 * 9),
    (work("Reshape", [IMAGE, (2,)], [(8, 120)]), "movement", 0),
    (work("Concat", [IMAGE, IMAGE], [(1, 16, 10, 12)], axis=1), "movement", 0),
]


@pytest.mark.parametrize(("found", "op_class", "flops"), CASES)
def test_counts_by_hand(found: NodeWork, op_class: str, flops: int) -> None:
    assert found.op_class in OP_CLASSES
    assert (found.op_class, found.flops) == (op_class, flops)


def test_views_only_rename() -> None:
    assert work("Reshape", [IMAGE, (2,)], [(8, 120)]).is_view
    assert not work("Transpose", [IMAGE], [IMAGE]).is_view


def test_a_node_with_a_body_is_control() -> None:
    body = ir.Graph([], [], nodes=[], name="b")
    node = ir.node("If", [ir.Value(name="c")], attributes={"then_branch": body, "else_branch": body})
    node.outputs[0].name = "y"
    types = {"c": ValueType(ir.DataType.BOOL, ()), "y": ValueType(ir.DataType.FLOAT, (4,))}
    assert work_of(node, types).op_class == "control"


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [
        (ir.DataType.FLOAT, (2, 3), 24),
        (ir.DataType.FLOAT16, (3,), 6),
        (ir.DataType.INT4, (3,), 2),
        (ir.DataType.BOOL, (), 1),
        (ir.DataType.STRING, (2,), 16),
        (ir.DataType.INT64, (0, 5), 0),
    ],
)
def test_sizes_in_bytes(dtype: ir.DataType, shape: tuple[int, ...], size: int) -> None:
    assert ValueType(dtype, shape).size_bytes == size


@pytest.mark.slow
def test_resnet50_has_4_1_gmac() -> None:
    """He et al., Deep Residual Learning, 2015; 4.1 GMAC at 224 x 224 is the usual figure for v1.5 and ONNX's model."""
    model = read_model(light_path("resnet50"))
    canonicalize(model)
    graph = block_graph(model, {}, Skeleton(model))
    gmac = sum(block.flops.get("conv", 0) + block.flops.get("matmul", 0) for block in graph.blocks) / 2e9
    assert gmac == pytest.approx(4.1, rel=0.03)
    assert sum(block.weight_bytes for block in graph.blocks) == pytest.approx(25.6e6 * 4, rel=0.01)
