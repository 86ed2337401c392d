"""Channels last at the ends of a program: the host permutes what goes in and comes out, in place of a TRANSPOSE there.

A TRANSPOSE at the start that the compiler does not map would leave all that follows to the CPU.
"""

from collections.abc import Collection
from dataclasses import replace

import onnx_ir as ir

from flagsplit.targets.chip_parts import ChipPart, SplitSegment
from flagsplit.targets.edge.edgetpu.forms import lowered
from flagsplit.targets.quantized_ends import joined
from flagsplit.targets.tflite.layout import permutation_of
from flagsplit.targets.tflite.program import Program, Tensor, nchw, nhwc

SUFFIX = ".channels_last"


def channels_last_at_ends(split: SplitSegment) -> SplitSegment:
    """A segment whose host part permutes what its program would transpose first or last."""
    if split.chip is None:
        return split
    program = lowered(split.chip)
    graph = split.chip.model.graph
    first = [
        value for value, tensor in zip(graph.inputs, program.inputs, strict=True) if _turned_first(program, tensor)
    ]
    last = [
        value for value, tensor in zip(graph.outputs, program.outputs, strict=True) if _turned_last(program, tensor)
    ]
    if not first and not last:
        return split
    names_in, names_out = [value.name or "" for value in first], [value.name or "" for value in last]
    before, after = _permuting(first, back=False), _permuting(last, back=True)
    chip = with_channels_last(split.chip, names_in, names_out)
    return replace(
        split,
        before=joined(split.before, before),
        chip=chip,
        direct=(*([after] if after is not None else []), *split.direct),
    )


def _turned_first(program: Program, x: Tensor) -> bool:
    readers = [each for each in program.operators if x in each.inputs]
    return bool(readers) and all(permutation_of(each) == nhwc(x.rank) for each in readers) and x not in program.outputs


def _turned_last(program: Program, x: Tensor) -> bool:
    maker = next((each for each in program.operators if x in each.outputs), None)
    alone = not any(x in each.inputs for each in program.operators)
    return maker is not None and alone and permutation_of(maker) == nchw(x.rank)


def _permuting(values: list[ir.Value], back: bool) -> ir.Model | None:
    """A model that puts channels last, or second again."""
    if not values:
        return None
    inputs, outputs, nodes = [], [], []
    for value in values:
        rank, shape = len(_sizes(value)), _sizes(value)
        plain = ir.Value(name=value.name, type=value.type, shape=ir.Shape(shape))
        last = ir.Value(name=f"{value.name}{SUFFIX}", type=value.type, shape=_permuted(shape))
        source, made, perm = (last, plain, nchw(rank)) if back else (plain, last, nhwc(rank))
        nodes.append(ir.node("Transpose", [source], {"perm": perm}, outputs=[made], name=f"{made.name}.transpose"))
        inputs.append(source)
        outputs.append(made)
    graph = ir.Graph(inputs, outputs, nodes=nodes, opset_imports={"": 23}, name="permuted")
    return ir.Model(graph, ir_version=10)


def with_channels_last(part: ChipPart, inputs: Collection[str], outputs: Collection[str]) -> ChipPart:
    """A part that takes and gives some of its values with channels last."""
    model = part.model.clone()
    graph = model.graph
    for at, value in enumerate(list(graph.inputs)):
        if value.name in inputs:
            shape = _sizes(value)
            last = ir.Value(name=f"{value.name}{SUFFIX}", type=value.type, shape=_permuted(shape))
            node = ir.node("Transpose", [last], {"perm": nchw(len(shape))}, name=f"{last.name}.transpose")
            made = node.outputs[0]
            value.replace_all_uses_with(made, replace_graph_outputs=True)
            graph.inputs[at] = last
            graph.insert_before(graph[0], [node])
            made.name, made.type, made.shape = value.name, value.type, ir.Shape(shape)
    for at, value in enumerate(list(graph.outputs)):
        if value.name in outputs:
            shape = _sizes(value)
            node = ir.node("Transpose", [value], {"perm": nhwc(len(shape))}, name=f"{value.name}{SUFFIX}.transpose")
            made = node.outputs[0]
            made.name, made.type, made.shape = f"{value.name}{SUFFIX}", value.type, _permuted(shape)
            graph.append(node)
            graph.outputs[at] = made
    return replace(part, model=model)


def _sizes(value: ir.Value) -> list[int]:
    assert value.shape is not None
    return [dim for dim in value.shape if isinstance(dim, int)]


def _permuted(shape: list[int]) -> ir.Shape:
    return ir.Shape([shape[at] for at in nhwc(len(shape))])
