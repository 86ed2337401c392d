"""What of a segment a chip runs, and what the host does beside it.

Chips take fixed shapes and standard operators. So of each segment the codecs at its ends stay with the host, where they
are bit-identical to the reference; sizes are put for symbols, and what depends on them alone is folded. The rest is the
chip part. Outputs that turn out to be constant, or an input as it came, are the host's too.

    inputs ──▶ before (host: Decode) ──▶ chip part ──▶ after (host: Encode, counts, constants) ──▶ outputs
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from flagsplit import flagir
from flagsplit.errors import ModelError
from flagsplit.flagir import Segment, Skeleton, ValueType
from flagsplit.flagir.codecs.functions import DOMAIN
from flagsplit.flagir.reads import activations_read
from flagsplit.flagir.specialize import open_values, settle, specialize
from flagsplit.targets.interface import Array
from flagsplit.targets.quantized_ends import joined, requantized_inputs


@dataclass(frozen=True, eq=False)
class RestOfModel:
    """What comes after a part, to tell what a change of the part does to the answers.

    Attributes:
        model: the nodes that depend on the part, as a model of their own; its outputs are those of the whole.
        samples: values of its inputs that the part does not make, one mapping for each sample that the build has.
        expected: what the whole model answers to these samples.
    """

    model: ir.Model
    samples: Sequence[Mapping[str, Array]]
    expected: Sequence[Mapping[str, Array]]


@dataclass(frozen=True, eq=False)
class ChipPart:
    """What a chip runs of a segment.

    Attributes:
        segment: id of the segment.
        model: a canonical model of fixed shapes and standard operators, without functions. Every output is made by a
            node from an input; no output is a constant or an input. Large weights are shared with the whole model.
        samples: values of its inputs, one mapping for each sample that the build has.
        rest: what comes after it, where it was asked for and there is anything.
        others: the same part at other sizes, for which its program has to hold too; empty where sizes are fixed.
        telling: which of these, by position, show how the part depends on each symbol; those left out are in between.
        open_shapes: shapes of inputs and outputs by name, a symbol where a size is open; empty where all are fixed.
        all_shapes: by name, their shapes at all sizes that were asked for, or at the ends of their ranges.
    """

    segment: str
    model: ir.Model
    samples: Sequence[Mapping[str, Array]] = ()
    rest: "RestOfModel | None" = None
    others: Sequence[ir.Model] = ()
    telling: Sequence[int] = ()
    open_shapes: Mapping[str, Sequence[int | str]] = field(default_factory=dict)
    all_shapes: Mapping[str, Sequence[tuple[int, ...]]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class SplitSegment:
    """A segment in three parts; each may be missing, not all.

    Attributes:
        segment: id of the segment.
        before: what the host runs first, on inputs of the segment.
        chip: what the chip runs, on inputs of the segment and outputs of `before`.
        direct: what makes outputs that are constants, or an input as it came.
        late: what the host runs last, on any of these.
    """

    segment: str
    before: ir.Model | None
    chip: ChipPart | None
    direct: tuple[ir.Model, ...]
    late: ir.Model | None

    @property
    def after(self) -> tuple[ir.Model, ...]:
        """What the host runs after the chip, one after another."""
        return (*self.direct, *(() if self.late is None else (self.late,)))


def split_segments(
    model: ir.Model, segments: Sequence[Segment], sizes: "FixedSizes", quantized_ends: bool = False
) -> Iterator[SplitSegment]:
    """Split segments into what a chip runs and what the host runs beside it.

    Args:
        model: the canonical model that the segments were cut from; it stays as it is.
        segments: from `flagir.cut_into_steps` of the same model.
        sizes: of the same model.
        quantized_ends: whether the host quantizes what comes in and takes back what goes out, so that the chip has
            integers at its ends.

    Raises:
        ModelError: a shape inside a segment depends on data.
    """
    for segment in segments:
        yield _split(model, segment, sizes, quantized_ends)


@dataclass(frozen=True, eq=False)
class FixedSizes:
    """What is known of a model's values once its symbols have sizes.

    Attributes:
        types: element type and shape of each value, where 1 stands for a size that depends on data.
        opened: the values of which a size depends on data.
        constants: those that the sizes alone decide, such as shapes: no tier has to be told them.
    """

    types: Mapping[str, ValueType]
    opened: Collection[str]
    constants: Mapping[str, ir.TensorProtocol]


def fixed_sizes(model: ir.Model, dims: Mapping[str, int], segments: Sequence[Segment]) -> FixedSizes:
    """What sizes decide.

    Args:
        model: a canonical model; it stays as it is.
        dims: a size for each symbol of its inputs.
        segments: whose inputs count; of no other value is it told whether it is constant.
    """
    copy = model.clone()
    encoded = _leave_out_losses(copy)
    skeleton = Skeleton(copy)
    known = {name: size for name, size in dims.items() if name in skeleton.symbols}
    wanted = {name for segment in segments for name in segment.inputs}
    _give_out(copy.graph, wanted)
    fixed = specialize(copy, known).graph
    constants = {value.name or "": tensor for value in fixed.outputs if (tensor := _constant(value)) is not None}
    types, opened = skeleton.types(known), set(skeleton.open_values(known))
    for value in (*fixed.initializers.values(), *(value for node in fixed for value in node.outputs)):
        # Folding knows sizes that inference alone does not, such as those of a reshape to a shape that was computed.
        kind = _fixed_type(value)
        if value.name is not None and value.name in opened and kind is not None:
            types[value.name] = kind
            opened.discard(value.name)
    for decoded, source in encoded.items():
        types[decoded] = types[source]
        opened = opened | {decoded} if source in opened else opened - {decoded}
    return FixedSizes(types, opened, constants)


def _give_out(graph: ir.Graph, wanted: Collection[str]) -> None:
    """Make values graph outputs, which no folding removes."""
    there = set(graph.outputs)
    for node in graph:
        graph.outputs.extend(value for value in node.outputs if value.name in wanted and value not in there)


def _constant(value: ir.Value) -> ir.TensorProtocol | None:
    """What a graph output always is, or None."""
    maker = value.producer()
    if maker is not None and maker.op_type == "Identity" and not maker.domain and maker.inputs[0] is not None:
        value = maker.inputs[0]
    return value.const_value if value.producer() is None else None


def _fixed_type(value: ir.Value) -> ValueType | None:
    shape = [dim for dim in value.shape or () if isinstance(dim, int)]
    if value.dtype is None or value.shape is None or len(shape) < len(value.shape):
        return None
    return ValueType(value.dtype, tuple(shape))


def _leave_out_losses(model: ir.Model) -> dict[str, str]:
    """Read what was encoded in place of what was decoded: inference does not see through codecs.

    Returns:
        For each decoded value the one that was encoded, by name.
    """
    found: dict[str, str] = {}
    for node in model.graph:
        if node.domain == DOMAIN and node.op_type.startswith("Decode"):
            payload = node.inputs[0]
            encode = payload.producer() if payload is not None else None
            source = encode.inputs[0] if encode is not None else None
            if source is not None:
                found[node.outputs[0].name or ""] = source.name or ""
                node.outputs[0].replace_all_uses_with(source, replace_graph_outputs=True)
    return found


def _split(model: ir.Model, segment: Segment, sizes: FixedSizes, quantized_ends: bool) -> SplitSegment:
    wanted = set(segment.nodes)
    nodes = [node for node in model.graph if node.name in wanted]
    early = _host_first(nodes, segment.inputs, quantized_ends)
    late = [node for node in nodes if node.domain == DOMAIN and node not in early]
    core = [node for node in nodes if node not in early and node not in late]
    needed = {value.name for node in late for value in activations_read(node)} | set(segment.outputs)
    if quantized_ends:
        core, late = _host_last(core, late, needed)
        needed |= {value.name for node in late for value in activations_read(node)}
    given = {value.name for node in late for value in node.outputs}
    made = [
        value.name or "" for node in core for value in node.outputs if value.name in needed and value.name not in given
    ]
    whole = _part(model, core, made) if made else None
    again = requantized_inputs(whole, model, sizes.types) if quantized_ends and whole is not None else None
    chip, direct = _fixed(whole, segment.id, sizes) if whole is not None else (None, None)
    before = joined(_part(model, early, {name or "" for name in needed} | _read_by(core)), again)
    late_part = _part(model, late, segment.outputs)
    return SplitSegment(segment.id, before, chip, () if direct is None else (direct,), late_part)


def _host_last(
    core: list[ir.Node], late: list[ir.Node], needed: Collection[str | None]
) -> tuple[list[ir.Node], list[ir.Node]]:
    """Let the host take back what leaves the chip; what the chip reads too is taken back there as well."""
    read = _read_by(core)
    made = {value.name for node in core for value in node.outputs}
    taken = []
    for node in core:
        source, output = node.inputs[0] if node.inputs else None, node.outputs[0].name or ""
        leaves = _is(node, "DequantizeLinear") and output in needed and source is not None and source.name in made
        if leaves and output:
            taken.append(node)
    return [node for node in core if node not in taken or (node.outputs[0].name or "") in read], [*taken, *late]


def _is(node: ir.Node, op_type: str) -> bool:
    return node.op_type == op_type and not node.domain


def _host_first(nodes: Sequence[ir.Node], inputs: Collection[str], quantized_ends: bool) -> list[ir.Node]:
    """The codec nodes that need nothing but inputs of the segment, and what quantizes these."""
    known, found = set(inputs), list[ir.Node]()
    for node in nodes:
        reads = {value.name or "" for value in activations_read(node)}
        decodes = node.domain == DOMAIN and node.op_type.startswith("Decode")
        if (decodes or (quantized_ends and _is(node, "QuantizeLinear"))) and reads <= known:
            known.update(value.name or "" for value in node.outputs)
            found.append(node)
    return found


def _read_by(nodes: Sequence[ir.Node]) -> set[str]:
    return {value.name or "" for node in nodes for value in activations_read(node)}


def _part(model: ir.Model, nodes: Sequence[ir.Node], wanted: Collection[str]) -> ir.Model | None:
    """Some nodes as a model, with those of its values as outputs that are wanted."""
    if not nodes:
        return None
    made = {value.name or "": None for node in nodes for value in node.outputs}
    inputs = {value.name or "": None for node in nodes for value in activations_read(node) if value.name not in made}
    outputs = tuple(name for name in made if name in wanted)
    names = tuple(node.name or "" for node in nodes)
    return flagir.extract(model, Segment("part", names, tuple(inputs), outputs))


def _fixed(part: ir.Model, segment: str, sizes: FixedSizes) -> tuple[ChipPart | None, ir.Model | None]:
    """A part in fixed shapes, and apart from it a model of the outputs that are constants or inputs as they came."""
    graph = part.graph
    for value in list(graph.inputs):
        name = value.name or ""
        if name in sizes.opened:
            raise ModelError(f"the shape of {name!r} depends on data; a chip takes fixed shapes only")
        if name in sizes.constants:
            graph.inputs.remove(value)
            value.const_value = sizes.constants[name]
            graph.register_initializer(value)
        elif name in sizes.types:
            value.shape = ir.Shape(sizes.types[name].shape)
    settle(part)
    direct = _take_out_direct(part)
    used = {value for node in graph for value in activations_read(node)}
    for value in [value for value in graph.inputs if value not in used]:
        graph.inputs.remove(value)
    if not graph.outputs:
        return None, direct
    undecided = open_values(part)
    if undecided:
        raise ModelError(f"the shape of {undecided[0]!r} depends on data; a chip takes fixed shapes only")
    return ChipPart(segment, part), direct


def _take_out_direct(part: ir.Model) -> ir.Model | None:
    """Move the outputs that no computation makes to a model of their own."""
    graph, direct = part.graph, list[ir.Node]()
    for value in list(graph.outputs):
        maker = value.producer()
        if maker is None or maker.op_type != "Identity" or maker.domain:
            continue
        source = maker.inputs[0]
        if source is not None and source.producer() is None:
            direct.append(maker)
    if not direct:
        return None
    moved = _part(part, direct, [value.name or "" for node in direct for value in node.outputs])
    for node in direct:
        graph.outputs.remove(node.outputs[0])
        graph.remove(node, safe=True)
    for name, weight in list(graph.initializers.items()):
        if not weight.uses():
            del graph.initializers[name]
    return moved
