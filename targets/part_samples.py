"""What the samples of a build are at the inputs of chip parts: one run of the whole model tells."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from flagsplit import flagir
from flagsplit.flagir import Segment
from flagsplit.targets.chip_parts import ChipPart
from flagsplit.targets.interface import Array, CompileOptions
from flagsplit.targets.onnx_engine import open_onnx


def with_samples(model: ir.Model, parts: Sequence[ChipPart], options: CompileOptions) -> list[ChipPart]:
    """Give parts the values of their inputs.

    Args:
        model: the canonical model that they were cut from.
        parts: whose inputs are values of it.
        options: with the samples of the build; without any, parts get none. Nor do those that take values in another
            form than the model has them in.

    Raises:
        InputError: the model cannot be run on a sample.
    """
    inputs = [value.name or "" for value in model.graph.inputs]
    known = {*inputs, *(value.name for node in model.graph for value in node.outputs)}
    asked = [part for part in parts if all(value.name in known for value in part.model.graph.inputs)]
    wanted = dict.fromkeys(value.name or "" for part in asked for value in part.model.graph.inputs)
    made = tuple(name for name in wanted if name not in inputs)
    if not options.samples or not wanted:
        return list(parts)
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
    told = {id(part): replace(part, samples=tuple(_at_inputs(part, sample) for sample in every)) for part in asked}
    return [told.get(id(part), part) for part in parts]


def _at_inputs(part: ChipPart, sample: Mapping[str, Array]) -> dict[str, Array]:
    return {name: sample[name] for value in part.model.graph.inputs if (name := value.name or "")}
