"""What the samples of a build are at the inputs of chip parts: one run of the whole model tells."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from flagsplit import flagir
from flagsplit.flagir import Segment
from flagsplit.flagir.reads import activations_read
from flagsplit.targets.chip_parts import ChipPart, RestOfModel
from flagsplit.targets.interface import Array, CompileOptions
from flagsplit.targets.onnx_engine import open_onnx


def with_samples(
    model: ir.Model, parts: Sequence[ChipPart], options: CompileOptions, rest: bool = False
) -> list[ChipPart]:
    """Give parts the values of their inputs.

    Args:
        model: the canonical model that they were cut from.
        parts: whose inputs are values of it.
        options: with the samples of the build; without any, parts get none. Nor do those that take values in another
            form than the model has them in.
        rest: whether they get what comes after them, too; those that give values in another form do not.

    Raises:
        InputError: the model cannot be run on a sample.
    """
    inputs = [value.name or "" for value in model.graph.inputs]
    known = {*inputs, *(value.name for node in model.graph for value in node.outputs)}
    asked = [part for part in parts if all(value.name in known for value in part.model.graph.inputs)]
    wanted = dict.fromkeys(value.name or "" for part in asked for value in part.model.graph.inputs)
    if not options.samples or not wanted:
        return list(parts)
    behind = {part.segment: _after(model, part) for part in asked} if rest else {}
    answers = [value.name or "" for value in model.graph.outputs]
    for after in behind.values():
        if after is not None:
            wanted.update(dict.fromkeys([*(value.name or "" for value in after.graph.inputs), *answers]))
    made = tuple(name for name in wanted if name not in inputs)
    every = [dict(sample) for sample in options.samples]
    if made:
        nodes = tuple(node.name or "" for node in model.graph)
        whole = flagir.extract(model, Segment("samples", nodes, tuple(inputs), made))
        with tempfile.TemporaryDirectory(prefix="flagsplit-samples-") as folder:
            file = Path(folder) / "samples.onnx"
            file.write_bytes(flagir.to_bytes(whole))
            engine = open_onnx(file, options.weights, options.numerics, 0)
            for sample in every:
                sample.update(engine.run({name: sample[name] for name in inputs}))
            engine.close()
    told = {
        id(part): replace(
            part,
            samples=tuple(_at_inputs(part.model, sample) for sample in every),
            rest=_rest(part, after, every, answers) if (after := behind.get(part.segment)) is not None else None,
        )
        for part in asked
    }
    return [told.get(id(part), part) for part in parts]


def _after(model: ir.Model, part: ChipPart) -> ir.Model | None:
    """What depends on a part's outputs; None if nothing does, or they are not the model's own."""
    reached = {value.name for value in part.model.graph.outputs}
    if not reached <= {value.name for node in model.graph for value in node.outputs}:
        return None
    inner = {value.name for node in part.model.graph for value in node.outputs}
    nodes = []
    for node in model.graph:
        read = {value.name for value in activations_read(node)}
        if read & reached and not any(value.name in inner for value in node.outputs):
            nodes.append(node)
            reached.update(value.name for value in node.outputs)
    answers = [value.name for value in model.graph.outputs if value.name in reached - inner]
    if not nodes or not answers:
        return None
    made = {value.name for node in nodes for value in node.outputs}
    inputs = dict.fromkeys(
        value.name or "" for node in nodes for value in activations_read(node) if value.name not in made
    )
    names = tuple(node.name or "" for node in nodes)
    return flagir.extract(model, Segment("rest", names, tuple(inputs), tuple(name or "" for name in answers)))


def _rest(part: ChipPart, after: ir.Model, every: Sequence[Mapping[str, Array]], answers: Sequence[str]) -> RestOfModel:
    made = {value.name for value in part.model.graph.outputs}
    others = [value.name or "" for value in after.graph.inputs if value.name not in made]
    ends = [value.name or "" for value in after.graph.outputs if value.name in answers]
    return RestOfModel(
        after,
        tuple({name: sample[name] for name in others} for sample in every),
        tuple({name: sample[name] for name in ends} for sample in every),
    )


def _at_inputs(model: ir.Model, sample: Mapping[str, Array]) -> dict[str, Array]:
    return {name: sample[name] for value in model.graph.inputs if (name := value.name or "")}
