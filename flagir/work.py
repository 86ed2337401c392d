"""The work of one node: floating-point operations by class and the weights it touches.

FLOPs are 2 x MACs for contractions and one per element elsewhere (ten for a transcendental function), the usual
counting of model cards. Bytes come from the types of what a node reads and writes.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from flagsplit.flagir.blockgraph import LoopWork
from flagsplit.flagir.loops import captured_by, trips_of, trips_that_count
from flagsplit.flagir.reads import activations_read, subgraphs_of, weights_read
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
        touched_weight_bytes: bytes of initializers that it reads; a loop reads them once for each trip.
        is_view: whether it only renames its input's bytes.
        note: what the count supposes; "" where it supposes nothing.
        inside: of a node that holds subgraphs, its operations by class.
        loop: of a `Loop`, what it does trip by trip.
    """

    op_class: str
    flops: float
    touched_weight_bytes: int
    is_view: bool
    note: str = ""
    inside: Mapping[str, float] = field(default_factory=dict)
    loop: LoopWork | None = None

    @property
    def by_class(self) -> Mapping[str, float]:
        """Operations by class; those of a body are of the classes of its nodes."""
        return self.inside or {self.op_class: self.flops}


def work_of(node: ir.Node, types: Types) -> NodeWork:
    """The work of a node at concrete types.

    Args:
        node: a node of a canonical graph.
        types: the type of every value that it reads and writes, inside its subgraphs too; initializers may be missing.

    Returns:
        For `If` the work of the heavier branch, for `Scan` that of the body times the length of what it scans, for
        `Loop` that of the body times the trips (`flagsplit.flagir.loops`), at the sizes that its state has on the way.
    """
    bodies = subgraphs_of(node)
    if node.op_type == "Loop" and not node.domain and len(bodies) == 1:
        return _of_loop(node, bodies[0], types)
    if bodies:
        heaviest = max((_of_nodes(body, types) for body in bodies), key=lambda work: work.flops)
        return heaviest.times(_scanned(node, types) if node.op_type == "Scan" else 1, _touched(node, types))
    count = _CONTRACTIONS.get(node.op_type)
    if count is not None and not node.domain:
        op_class, flops = count(node, [_type(v, types) for v in node.inputs], [_type(v, types) for v in node.outputs])
    else:
        op_class, flops = _pointwise(node, types)
    return NodeWork(op_class, float(flops), _touched(node, types), is_view(node))


def is_view(node: ir.Node) -> bool:
    """Whether a node only renames its input's bytes."""
    return node.op_type in _VIEWS and not node.domain


def launches_of(nodes: Iterable[ir.Node]) -> int:
    """The contractions among nodes, each of which an engine dispatches."""
    return sum(node.op_type in _CONTRACTIONS and not node.domain for node in nodes)


@dataclass(frozen=True)
class _BodyWork:
    """What one run of a subgraph costs."""

    by_class: Mapping[str, float]
    touched_weight_bytes: int
    launches: int
    notes: tuple[str, ...]

    @property
    def flops(self) -> float:
        return sum(self.by_class.values())

    def times(self, runs: int, touched: int) -> NodeWork:
        inside = {name: flops * runs for name, flops in self.by_class.items()}
        return NodeWork("control", self.flops * runs, touched, is_view=False, note="; ".join(self.notes), inside=inside)


def _of_nodes(nodes: Iterable[ir.Node], types: Types) -> _BodyWork:
    by_class: dict[str, float] = {}
    touched, launches, notes = 0, 0, dict[str, None]()
    for node in nodes:
        work = work_of(node, types)
        for name, flops in work.by_class.items():
            if flops:
                by_class[name] = by_class.get(name, 0.0) + flops
        touched += work.touched_weight_bytes
        launches += work.loop.trips * work.loop.launches if work.loop else launches_of((node,))
        if work.note:
            notes[work.note] = None
    return _BodyWork(by_class, touched, launches, tuple(notes))


def _of_loop(node: ir.Node, body: ir.Graph, types: Types) -> NodeWork:
    trips = trips_of(node)
    count = trips.count
    first, second, last = trips_that_count(node, types, count)
    of_first = _of_nodes(body, first.types)
    of_second = of_first if second is first else _of_nodes(body, second.types)
    of_last = of_second if last.types is second.types else _of_nodes(body, last.types)
    once, rest = min(count, 1), max(count - 1, 0) / 2
    parts = ((of_first, once), (of_second, rest), (of_last, rest))
    names = dict.fromkeys(name for work, _ in parts for name in work.by_class)
    inside = {name: sum(share * work.by_class.get(name, 0.0) for work, share in parts) for name in names}
    touched = round(sum(share * work.touched_weight_bytes for work, share in parts))
    notes = dict.fromkeys(note for work, _ in parts for note in work.notes)
    if trips.basis == "assumed":
        notes = {f"{node.name}: a Loop without constant trips counts as one": None} | notes
    flops = sum(inside.values())
    loop = LoopWork(
        name=node.name or "",
        trips=count,
        basis=trips.basis,
        flops=(of_second.flops + of_last.flops) / 2,
        weight_bytes=of_last.touched_weight_bytes,
        captured_bytes=sum(_size(value, types) for value in captured_by(node)),
        state_bytes=first.left_bytes,
        growth_bytes=(last.left_bytes - first.left_bytes) / max(count - 1, 1),
        scratch_bytes=max(_scratch_bytes(body, len(node.inputs) - 2, trip.types) for trip in (first, last)),
        launches=of_last.launches,
    )
    return NodeWork("control", flops, touched, is_view=False, note="; ".join(notes), inside=inside, loop=loop)


def _scratch_bytes(body: ir.Graph, carried: int, types: Types) -> int:
    """The most that a trip holds at once beside what is carried in and out and what comes from outside."""
    nodes = list(body)
    kept = {*body.inputs, *body.outputs[: 1 + carried]}
    last_read = {value: at for at, node in enumerate(nodes) for value in activations_read(node)}
    sizes = {
        value: 0 if value in kept or is_view(node) else _size(value, types) for node in nodes for value in node.outputs
    }
    ends: dict[int, int] = {}
    held = most = 0
    for at, node in enumerate(nodes):
        for value in node.outputs:
            held += sizes[value]
            end = max(last_read.get(value, at), at)
            ends[end] = ends.get(end, 0) + sizes[value]
        most = max(most, held)
        held -= ends.pop(at, 0)
    return most


def _scanned(node: ir.Node, types: Types) -> int:
    """How often the body of a `Scan` runs."""
    scans = node.attributes.get_int("num_scan_inputs", 1) or 1
    axes = node.attributes.get_ints("scan_input_axes", ()) or (0,)
    shape = _type(node.inputs[len(node.inputs) - scans], types).shape
    return shape[axes[0]] if -len(shape) <= axes[0] < len(shape) else 1


def _size(value: ir.Value, types: Types) -> int:
    kind = types.get(value.name or "")
    return kind.size_bytes if kind is not None else 0


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
