"""The work of one node: floating-point operations by class and the weights it touches.

FLOPs are 2 x MACs for contractions and one per element elsewhere (ten for a transcendental function), the usual
counting of model cards. Bytes come from the types of what a node reads and writes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from flagsplit.flagir.reads import subgraphs_of, weights_read
from flagsplit.flagir.types import ValueType, dims_of

_TRANSCENDENTAL = frozenset(
    "Exp Log Sigmoid Tanh Erf Gelu Softplus Sin Cos Tan Pow Sqrt Mish Elu Selu Celu Softmax LogSoftmax".split()
)
_REDUCE = frozenset(
    "ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp "
    "ReduceSumSquare GlobalAveragePool GlobalMaxPool GlobalLpPool ArgMax ArgMin TopK CumSum Softmax LogSoftmax Hardmax "
    "BatchNormalization InstanceNormalization LayerNormalization GroupNormalization RMSNormalization LRN "
    "LpNormalization MeanVarianceNormalization AveragePool MaxPool LpPool".split()
)
_MOVEMENT = frozenset(
    "Reshape Transpose Concat Slice Split Gather GatherElements GatherND Scatter ScatterElements ScatterND Pad Resize "
    "Upsample Expand Tile Squeeze Unsqueeze Flatten Identity DepthToSpace SpaceToDepth ReverseSequence Shape Size "
    "ConstantOfShape Range OneHot NonZero Compress Unique EyeLike Trilu".split()
)
_RECURRENT = frozenset(("LSTM", "GRU", "RNN"))
_VIEWS = frozenset("Reshape Squeeze Unsqueeze Flatten Identity Shape Size".split())

Types = Mapping[str, ValueType]


@dataclass(frozen=True)
class NodeWork:
    """What one run of a node costs.

    Attributes:
        op_class: one of `flagsplit.flagir.blockgraph.OP_CLASSES`.
        flops: floating-point operations.
        touched_weight_bytes: bytes of initializers that it reads.
        is_view: whether it only renames its input's bytes.
        note: what the count supposes; "" where it supposes nothing.
    """

    op_class: str
    flops: float
    touched_weight_bytes: int
    is_view: bool
    note: str = ""


def work_of(node: ir.Node, types: Types) -> NodeWork:
    """The work of a node at concrete types.

    Args:
        node: a node of a canonical graph.
        types: the type of every value that it reads and writes, inside its subgraphs too; initializers may be missing.

    Returns:
        For `If` the work of the heavier branch, for `Loop` and `Scan` that of the body times the trips. A loop whose
        trips are not constant counts once, which `note` says.
    """
    bodies = subgraphs_of(node)
    if bodies:
        trips, note = _trips(node, types)
        works = [[work_of(inner, types) for inner in body] for body in bodies]
        notes = dict.fromkeys(filter(None, (note, *(work.note for body in works for work in body))))
        flops = trips * max(sum(work.flops for work in body) for body in works)
        return NodeWork("control", flops, _touched(node, types), is_view=False, note="; ".join(notes))
    count = _CONTRACTIONS.get(node.op_type)
    if count is not None and not node.domain:
        op_class, flops = count(node, [_type(v, types) for v in node.inputs], [_type(v, types) for v in node.outputs])
    else:
        op_class, flops = _pointwise(node, types)
    return NodeWork(op_class, float(flops), _touched(node, types), node.op_type in _VIEWS)


def _trips(node: ir.Node, types: Types) -> tuple[int, str]:
    """How often a subgraph runs, and what that supposes."""
    if node.op_type == "Scan":
        scans = node.attributes.get_int("num_scan_inputs", 1) or 1
        axes = node.attributes.get_ints("scan_input_axes", ()) or (0,)
        shape = _type(node.inputs[len(node.inputs) - scans], types).shape
        return (shape[axes[0]] if -len(shape) <= axes[0] < len(shape) else 1), ""
    if node.op_type == "Loop":
        limit = node.inputs[0].const_value if node.inputs and node.inputs[0] is not None else None
        if limit is None or limit.size != 1:
            return 1, f"{node.name}: a Loop without constant trips counts as one"
        return max(0, int(limit.numpy().reshape(-1)[0])), ""
    return 1, ""


def _type(value: ir.Value | None, types: Types) -> ValueType:
    if value is None:
        return ValueType(ir.DataType.FLOAT, (0,))
    if value.name is not None and value.name in types:
        return types[value.name]
    if value.const_value is not None:
        return ValueType(value.const_value.dtype, dims_of(value.const_value))
    return ValueType(ir.DataType.FLOAT, (1,))


def _touched(node: ir.Node, types: Types) -> int:
    total = sum(value.const_value.nbytes for value in weights_read(node) if value.const_value is not None)
    if node.op_type in ("Gather", "GatherND", "GatherElements"):
        total = min(total, sum(_type(value, types).size_bytes for value in node.outputs))
    return total


def _pointwise(node: ir.Node, types: Types) -> tuple[str, float]:
    outputs = sum(_type(value, types).elements for value in node.outputs if value.name)
    inputs = max((_type(value, types).elements for value in node.inputs if value is not None), default=0)
    each = 10 if node.op_type in _TRANSCENDENTAL else 1
    if node.domain:
        return "control", float(max(inputs, outputs))
    if node.op_type in _MOVEMENT:
        return "movement", 0.0
    if node.op_type in _REDUCE:
        window = math.prod([int(size) for size in node.attributes.get_ints("kernel_shape", ())])
        return "reduce", float(max(inputs, outputs * window) * each)
    return "elementwise", float(max(inputs, outputs) * each)


def _conv(node: ir.Node, ins: Sequence[ValueType], outs: Sequence[ValueType]) -> tuple[str, float]:
    groups = node.attributes.get_int("group", 1) or 1
    kernel = ins[1].shape
    macs = outs[0].elements * math.prod(kernel[1:])
    depthwise = groups > 1 and len(kernel) > 1 and kernel[1] == 1
    return ("depthwise" if depthwise else "conv"), 2.0 * macs


def _conv_transpose(_node: ir.Node, ins: Sequence[ValueType], _outs: Sequence[ValueType]) -> tuple[str, float]:
    return "conv", 2.0 * ins[0].elements * math.prod(ins[1].shape[1:])


def _matmul(_node: ir.Node, ins: Sequence[ValueType], outs: Sequence[ValueType]) -> tuple[str, float]:
    inner = ins[0].shape[-1] if ins[0].shape else 1
    return "matmul", 2.0 * outs[0].elements * inner


def _gemm(node: ir.Node, ins: Sequence[ValueType], outs: Sequence[ValueType]) -> tuple[str, float]:
    shape = ins[0].shape or (1,)
    inner = shape[0] if node.attributes.get_int("transA", 0) else shape[-1]
    return "matmul", 2.0 * outs[0].elements * inner


def _einsum(node: ir.Node, ins: Sequence[ValueType], outs: Sequence[ValueType]) -> tuple[str, float]:
    equation = (node.attributes.get_string("equation") or "").replace(" ", "")
    terms, arrow, result = equation.partition("->")
    if not arrow:  # then the result has the letters that occur once
        result = "".join(letter for letter in terms if terms.count(letter) == 1)
    sizes: dict[str, int] = {}
    for term, kind in zip(terms.split(","), ins, strict=False):
        head, _, tail = term.partition("...")
        sizes.update(zip(head, kind.shape, strict=False))
        sizes.update(zip(reversed(tail), reversed(kind.shape), strict=False))
    summed = math.prod(size for letter, size in sizes.items() if letter not in result)
    return "matmul", 2.0 * outs[0].elements * summed


def _attention(_node: ir.Node, ins: Sequence[ValueType], outs: Sequence[ValueType]) -> tuple[str, float]:
    """Q K^T and P V: 4 x batch x heads x q_len x kv_len x head size, from the 3-D or the 4-D form."""
    query, key = ins[0].shape, ins[1].shape
    if len(query) < 3 or len(key) < 3:
        return "matmul", float(outs[0].elements)
    width = query[-1] * (query[1] if len(query) == 4 else 1)
    return "matmul", 4.0 * query[0] * query[-2] * key[-2] * width


def _recurrent(_node: ir.Node, ins: Sequence[ValueType], _outs: Sequence[ValueType]) -> tuple[str, float]:
    """Each step multiplies the input by W and the hidden state by R, in each direction."""
    length, batch = (*ins[0].shape, 1, 1)[:2]
    return "recurrent", 2.0 * length * batch * (ins[1].elements + ins[2].elements)


_CONTRACTIONS: dict[str, Callable[[ir.Node, Sequence[ValueType], Sequence[ValueType]], tuple[str, float]]] = {
    "Conv": _conv,
    "ConvInteger": _conv,
    "QLinearConv": lambda node, ins, outs: _conv(node, [ins[0], ins[3]], outs),
    "DeformConv": _conv,
    "ConvTranspose": _conv_transpose,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "QLinearMatMul": _matmul,
    "Gemm": _gemm,
    "Einsum": _einsum,
    "Attention": _attention,
    **dict.fromkeys(sorted(_RECURRENT), _recurrent),
}
