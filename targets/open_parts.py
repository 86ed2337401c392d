"""Segments whose chip part is for several sizes: it is cut out at each, and the host's parts take all of them."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

import onnx_ir as ir

from flagsplit import flagir
from flagsplit.errors import ModelError
from flagsplit.flagir import Segment
from flagsplit.flagir.reads import activations_read
from flagsplit.targets.chip_parts import ChipPart, SplitSegment, split_segments
from flagsplit.targets.open_sizes import OpenSizes, variations

_TELLS_SIZES = frozenset(("Shape", "Size"))


def split_open(
    model: ir.Model, segments: Sequence[Segment], sizes: OpenSizes, quantized_ends: bool = False
) -> Iterator[SplitSegment]:
    """Split segments as `flagsplit.targets.chip_parts.split_segments` does, for all sizes at once.

    Args:
        model: the canonical model that the segments were cut from; it stays as it is.
        segments: of that model.
        sizes: of that model; where there is only one, parts are of fixed shapes.
        quantized_ends: see there.

    Raises:
        ModelError: a shape depends on data, or a segment is made up of other parts at another size.
    """
    at = range(len(sizes.dims)) if sizes.shapes == "enumerated" else [0, *variations(sizes.dims)]
    splits = [split_segments(model, segments, sizes.types[each], quantized_ends) for each in at]
    for segment, *found in zip(segments, *splits, strict=True):
        yield found[0] if len(found) == 1 else _joined(model, segment, found, sizes)


def _joined(model: ir.Model, segment: Segment, splits: Sequence[SplitSegment], sizes: OpenSizes) -> SplitSegment:
    first = splits[0]
    ends = [_ends(split.chip) for split in splits]
    if any(each != ends[0] for each in ends):
        raise ModelError(
            "what the chip takes and gives is another at another size; let sizes begin at 2, or pin the dimension"
        )
    chip = None if first.chip is None else _open_part(first.chip, splits, sizes)
    return replace(first, chip=chip, direct=tuple(_direct(model, segment, splits, sizes)))


def _ends(part: ChipPart | None) -> tuple[list[str], list[str]]:
    graph = None if part is None else part.model.graph
    return ([], []) if graph is None else (_names(graph.inputs), _names(graph.outputs))


def _names(values: Sequence[ir.Value]) -> list[str]:
    return [value.name or "" for value in values]


def _open_part(part: ChipPart, splits: Sequence[SplitSegment], sizes: OpenSizes) -> ChipPart:
    names = [*_names(part.model.graph.inputs), *_names(part.model.graph.outputs)]
    return replace(
        part,
        others=tuple(split.chip.model for split in splits[1:] if split.chip is not None),
        telling=[at - 1 for at in variations(sizes.dims)] if sizes.shapes == "enumerated" else range(len(splits) - 1),
        open_shapes={name: sizes.shape_of(name) for name in names},
        all_shapes={name: sizes.shapes_of(name) for name in names},
    )


def _direct(model: ir.Model, segment: Segment, splits: Sequence[SplitSegment], sizes: OpenSizes) -> Iterator[ir.Model]:
    """What the host hands on, whatever the sizes; and what it reads off the sizes of a request."""
    found = [_handed_on(split) for split in splits]
    same = [name for name in found[0] if all(each.get(name) == found[0][name] for each in found)]
    others = {name: None for each in found for name in each if name not in same}
    if same:
        (given,) = splits[0].direct
        kept = {name for node in given.graph for name in _names(node.outputs) if name in same}
        nodes = [node.name or "" for node in given.graph if kept & set(_names(node.outputs))]
        reads = {v.name or "": None for n in given.graph if n.name in nodes for v in activations_read(n)}
        part = flagir.extract(given, Segment("direct", tuple(nodes), tuple(reads), tuple(same)))
        for value in (*part.graph.inputs, *part.graph.outputs):
            value.shape = ir.Shape(sizes.shape_of(value.name or ""))
        yield part
    if others:
        yield _from_sizes(model, segment, tuple(others), splits[0])


def _handed_on(split: SplitSegment) -> dict[str, tuple[str, bytes]]:
    """By output: the input that it is, or the bytes that it always has."""
    found = {}
    for part in split.direct:
        for node in part.graph:
            source = node.inputs[0]
            assert source is not None
            constant = source.const_value
            told = ("", constant.tobytes()) if constant is not None else (source.name or "", b"")
            found.update(dict.fromkeys(_names(node.outputs), told))
    return found


def _from_sizes(model: ir.Model, segment: Segment, names: tuple[str, ...], split: SplitSegment) -> ir.Model:
    """What makes outputs of sizes alone, out of the segment.

    Raises:
        ModelError: it is the size of something that the host does not see.
    """
    inside = {name: node for node in model.graph if node.name in set(segment.nodes) for name in _names(node.outputs)}
    seen = {*segment.inputs, *segment.outputs, *_ends(split.chip)[0]} - set(names)
    nodes: dict[str, None] = {}
    reads: dict[str, None] = {}
    waiting: list[str] = list(names)
    while waiting:
        name = waiting.pop()
        node = inside.get(name)
        if name in seen or node is None:
            reads[name] = None
        elif node.name not in nodes:
            nodes[node.name or ""] = None
            read = _names(activations_read(node))
            hidden = [each for each in read if each not in seen] if node.op_type in _TELLS_SIZES else []
            if hidden:
                raise ModelError(f"output {names[0]!r} follows from the size of {hidden[0]!r}, which the chip keeps")
            waiting += read
    return flagir.extract(model, Segment("sizes", _in_order(model, nodes), tuple(reads), names))


def _in_order(model: ir.Model, wanted: Collection[str]) -> tuple[str, ...]:
    return tuple(node.name or "" for node in model.graph if node.name in wanted)
