"""What a loop costs over all its trips, where what it carries may grow from trip to trip.

A decoder is such a loop: its first trip takes the prompt, each later one a token, and reads the weights and the cache
again to add the token's keys and values. The body is therefore counted at the sizes of three trips, the first, the
second and the last: work that is linear in the size of the cache is then exact. How the work of one operator is counted
is in `flagsplit.flagir.work`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import onnx
import onnx_ir as ir

from flagsplit.flagir.inference import forget_shapes, graphs_of, known_types, settled, share_constants
from flagsplit.flagir.opset import IR_VERSION, OPSET
from flagsplit.flagir.reads import reads_of, subgraphs_of
from flagsplit.flagir.types import ValueType, dims_of

EXPECTED_TRIPS = "flagir.expected_trips"
"""Metadata of a `Loop` node: how often it is expected to run its body, a whole number of at least 1."""

_INLINE_BYTES = 1024
_MOST_TRIPS = 10**9

Types = Mapping[str, ValueType]
Basis = Literal["said", "constant", "assumed"]


@dataclass(frozen=True)
class Trips:
    """How often a body runs, and where that is known from.

    Attributes:
        count: 0 or more.
        basis: "said" by the node's metadata, "constant" in the graph, or "assumed": once.
    """

    count: int
    basis: Basis


def trips_of(node: ir.Node) -> Trips:
    """How often a `Loop` is expected to run its body.

    What the node's metadata says comes first (`EXPECTED_TRIPS`), then a constant number of trips, of which a loop that
    stops by itself may run fewer; a loop of which nothing is known counts once.
    """
    said = node.metadata_props.get(EXPECTED_TRIPS, "")
    if said.isascii() and said.isdigit() and 0 < int(said) <= _MOST_TRIPS:
        return Trips(int(said), "said")
    limit = node.inputs[0].const_value if node.inputs and node.inputs[0] is not None else None
    if limit is None or limit.size != 1:
        return Trips(1, "assumed")
    return Trips(min(max(0, int(limit.numpy().reshape(-1)[0])), _MOST_TRIPS), "constant")


def say_trips(model: ir.Model, trips: int) -> int:
    """Write how often the loops of a model's main graph are expected to run; how many there are."""
    loops = [node for node in model.graph if node.op_type == "Loop" and not node.domain]
    for node in loops:
        node.metadata_props[EXPECTED_TRIPS] = str(trips)
    return len(loops)


@dataclass(frozen=True)
class Trip:
    """One trip of a loop.

    Attributes:
        types: of all values of the body at it, and of those of outside.
        left_bytes: what it carries out.
    """

    types: Types
    left_bytes: int


def trips_that_count(node: ir.Node, types: Types, trips: int) -> tuple[Trip, Trip, Trip]:
    """The first, the second and the last trip of a `Loop`; between these two, sizes are on the line that they give.

    Args:
        node: a `Loop` of a canonical graph.
        types: of every value outside and, as far as they do not change, inside; initializers may be missing.
        trips: how many there are; with fewer than two the second and the last are the first.
    """
    (body,) = subgraphs_of(node)
    run = _Body(body, len(node.inputs) - 2, types, node.graph.opset_imports if node.graph is not None else {})
    start = [_start(value, inner, types) for value, inner in zip(node.inputs[2:], body.inputs[2:], strict=True)]
    if not any(kind.shape for kind in start):
        same = Trip(types, _bytes(start))
        return same, same, same
    first, after_first = run.on(start)
    if trips < 2 or after_first == start:
        same = Trip(first, _bytes(after_first))
        return same, same, same
    second, after_second = run.on(after_first)
    before_last = [_grown(a, b, trips - 2) for a, b in zip(after_first, after_second, strict=True)]
    last, after_last = (second, after_second) if before_last == after_first else run.on(before_last)
    return (
        Trip(first, _bytes(after_first)),
        Trip(second, _bytes(after_second)),
        Trip(last, _bytes(after_last)),
    )


def captured_by(node: ir.Node) -> tuple[ir.Value, ...]:
    """The activations that a loop's body reads from outside, each trip anew."""
    given = {value for value in node.inputs if value is not None}
    return tuple(value for value in reads_of(node) if value not in given and not value.is_initializer())


@dataclass(frozen=True)
class _Body:
    """A body that can be looked at with any sizes of what it carries."""

    body: ir.Graph
    carried: int
    types: Types
    versions: Mapping[str, int]

    def on(self, state: Sequence[ValueType]) -> tuple[Types, list[ValueType]]:
        """All types, and those of what a trip carries out."""
        inputs = self.body.inputs[2 : 2 + self.carried]
        given = dict(zip((value.name or "" for value in inputs), state, strict=True))
        types = {**self.types, **_inferred(self.body, {**self.types, **given}, given, self.versions)}
        outputs = self.body.outputs[1 : 1 + self.carried]
        return types, [types.get(out.name or "", kind) for out, kind in zip(outputs, state, strict=True)]


def _start(value: ir.Value | None, inner: ir.Value, types: Types) -> ValueType:
    """The type that a carried value has at first."""
    for each in (value, inner):
        if each is not None and each.name in types:
            return types[each.name or ""]
        if each is not None and each.const_value is not None:
            return ValueType(each.const_value.dtype, dims_of(each.const_value))
    return ValueType(inner.dtype or ir.DataType.FLOAT, ())


def _grown(start: ValueType, after: ValueType, trips: int) -> ValueType:
    """A carried value so many trips later, if each adds what the first of them adds."""
    if len(start.shape) != len(after.shape):
        return start
    shape = tuple(max(0, a + (b - a) * trips) for a, b in zip(start.shape, after.shape, strict=True))
    return ValueType(start.dtype, shape)


def _bytes(kinds: Sequence[ValueType]) -> int:
    return sum(kind.size_bytes for kind in kinds)


def _inferred(body: ir.Graph, types: Types, given: Types, versions: Mapping[str, int]) -> dict[str, ValueType]:
    """The types in a body when it is run on values of these types; what inference cannot tell is left out."""
    proto = onnx.ModelProto(ir_version=IR_VERSION)
    for domain, version in {"": OPSET, **versions}.items():
        proto.opset_import.append(onnx.helper.make_opsetid(domain, version))
    proto.graph.CopyFrom(ir.serde.serialize_graph(body))
    for info in proto.graph.input:
        if info.name in given:
            info.CopyFrom(_info(info.name, given[info.name]))
    for each in graphs_of(proto.graph):
        forget_shapes(each)
    for value in _from_outside(body):
        name, tensor = value.name or "", value.const_value
        if value.is_initializer() and tensor is not None and tensor.nbytes <= _INLINE_BYTES:
            constant = ir.serde.serialize_tensor(ir.Tensor(tensor.numpy(), tensor.dtype))
            constant.name = name
            proto.graph.initializer.append(constant)
        elif tensor is not None:
            proto.graph.input.append(_info(name, ValueType(tensor.dtype, dims_of(tensor))))
        elif name in types:
            proto.graph.input.append(_info(name, types[name]))
    share_constants(proto.graph)
    return known_types(settled(proto).graph)


def _from_outside(body: ir.Graph) -> list[ir.Value]:
    inner = {*body.inputs, *body.initializers.values()}
    nodes = list(body)
    inner.update(value for node in nodes for value in node.outputs)
    read = (value for node in nodes for value in reads_of(node))
    returned = (value for value in body.outputs)
    return [value for value in dict.fromkeys((*read, *returned)) if value not in inner]


def _info(name: str, kind: ValueType) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, int(kind.dtype), kind.shape)
