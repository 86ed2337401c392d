"""A decoder cut between two layers, for two tiers: who has the first part never shows its tokens to the other.

The cut is found in the graph, not by names: the value that all of the second part reads of the first.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import onnx_ir as ir

from flagsplit.errors import ModelError, UsageError
from flagsplit.flagir.programs.parts import inputs_of, part_of
from flagsplit.flagir.programs.program import Program

ROWS = "rows"
"""What the first part gives and the second takes in place of tokens: float32 [batch, chunk, width]."""


def split_step(program: Program, layers: int) -> tuple[ir.Model, ir.Model]:
    """The graph `step` as two.

    Args:
        program: a decoder without encoder; it stays as it is, the parts share its weights.
        layers: how many go to the first part.

    Returns:
        The first part, from `tokens` to `rows`, and the second, from `rows` to `logits`. Both also have the other
        inputs of `step` that they need, and the caches of their own layers.

    Raises:
        UsageError: the program has an encoder, or not more layers than that.
        ModelError: nothing in the graph is between these layers alone.
    """
    facts = program.facts
    if facts.kind != "decoder-only":
        raise UsageError(f"expected a decoder without encoder to cut between layers, {facts.name} is {facts.kind}")
    if not 0 < layers < facts.layers:
        raise UsageError(f"expected to cut after 1 to {facts.layers - 1} layers, came {layers}")
    early, late = facts.past_names[: 2 * layers], facts.past_names[2 * layers :]
    a, b = program.graphs["step"].clone(), program.graphs["step"].clone()
    _take_sizes_of(a.graph, dict.fromkeys(late, early[0]))
    _take_sizes_of(b.graph, {**dict.fromkeys(early, late[0]), "tokens": "positions"})
    first = _outputs(a, facts.new_names[: 2 * layers])
    second = _outputs(b, ("logits", *facts.new_names[2 * layers :]))
    # From the end: the rows within the last layer of the first part, after its attention, would do as well.
    for before, after in reversed(list(_rows_of(a, b, facts.width))):
        read = inputs_of(second, after)
        makes = inputs_of([before, *first])
        if after in read and _names(read).isdisjoint(("tokens", *early)) and _names(makes).isdisjoint(late):
            before.name = after.name = ROWS
            return part_of(a, [before, *first], "step_to_rows"), part_of(b, second, "step_from_rows", after)
    raise ModelError(f"no value of {facts.name} has all that layers from {layers} on read of those before")


def _take_sizes_of(graph: ir.Graph, others: Mapping[str, str]) -> None:
    """Let nodes that only ask for the size of an input ask another of the same size."""
    inputs = {value.name or "": value for value in graph.inputs}
    for old, new in others.items():
        for use in list(inputs[old].uses()):
            if use.node.op_type == "Shape":
                use.node.replace_input_with(use.idx, inputs[new])


def _outputs(model: ir.Model, names: Sequence[str]) -> list[ir.Value]:
    outputs = {value.name or "": value for value in model.graph.outputs}
    return [outputs[name] for name in names]


def _rows_of(a: ir.Model, b: ir.Model, width: int) -> Iterator[tuple[ir.Value, ir.Value]]:
    """The values of two copies of a graph that can be rows, in the order of the graph."""
    for node, twin in zip(a.graph, b.graph, strict=True):
        yield from (pair for pair in zip(node.outputs, twin.outputs, strict=True) if _is_rows(pair[0], width))


def _is_rows(value: ir.Value, width: int) -> bool:
    shape = value.shape
    return value.dtype == ir.DataType.FLOAT and shape is not None and len(shape) == 3 and shape[2] == width


def _names(values: Iterable[ir.Value]) -> set[str]:
    return {value.name or "" for value in values}
