"""Our corpus as cases: whole models, and their middle third, against ONNX Runtime on the canonical model.

Where the models come from is the caller's: the target layer knows files only.
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from flagsplit import flagir
from flagsplit.errors import FlagsplitError
from flagsplit.flagir import Segment
from flagsplit.flagir.quantization import QuantizeOptions, quantize
from flagsplit.flagir.segments import segment_of
from flagsplit.targets.conformance.cases import DTYPES, Case
from flagsplit.targets.conformance.seeded_weights import draw_weights
from flagsplit.targets.interface import Array
from flagsplit.targets.onnx_engine import PAIRS_AS_THEY_ARE, open_onnx

_LIMIT_S = 600.0
_SEED = 20


@dataclass(frozen=True)
class CorpusModel:
    """A model and what to ask it.

    Attributes:
        name: what its cases are called after.
        path: an `.onnx` or `.ort` file; None if it could not be had.
        inputs: arrays by name.
        seed_weights: whether to draw its weights by a seed: some files have the shape of a network, and weights that
            are all alike.
        quantize: whether to make an int8 model of it, with ranges from its inputs: for targets that compute in nothing
            else.
        missing: why there is no file.
    """

    name: str
    path: Path | None
    inputs: Mapping[str, Array] = field(default_factory=dict)
    seed_weights: bool = False
    quantize: bool = False
    missing: str = ""


def corpus_cases(models: Sequence[CorpusModel], folder: Path) -> list[Case]:
    """Two cases for each model, `NAME/whole` and `NAME/middle`.

    Args:
        models: of different names.
        folder: where the canonical models are written; it has to stay while the cases are used.

    Returns:
        One or two cases per model; a model that cannot be had, imported or run by ONNX Runtime is one that is skipped.
    """
    found: list[Case] = []
    for model in models:
        try:
            found.extend(_cases(model, folder / model.name))
        except FlagsplitError as error:
            found.append(Case(f"{model.name}/whole", "corpus", (), Path(), skip=f"no reference: {error}"))
    return found


def _cases(model: CorpusModel, folder: Path) -> list[Case]:
    if model.path is None:
        return [Case(f"{model.name}/whole", "corpus", (), Path(), skip=model.missing or "the file is missing")]
    graph = flagir.read_model(model.path)
    flagir.canonicalize(graph)
    if model.seed_weights:
        draw_weights(graph, model.inputs, np.random.default_rng(_SEED))
    folder.mkdir(parents=True)
    if model.quantize:
        graph = _quantized(graph, model.inputs, folder)
    flagir.save(graph, folder)
    names = [node.name or "" for node in graph.graph]
    first, last = (_cut_at(graph, count * len(names) // 3, model.quantize) for count in (1, 2))
    parts = {"whole": segment_of(graph, names), "middle": segment_of(graph, names[first:last])}
    values = _reference(graph, folder, model.inputs, {name for part in parts.values() for name in _edge(part)})
    operators = tuple(sorted({node.op_type for node in graph.graph}))
    return [
        Case(
            name=f"{model.name}/{which}",
            source="corpus",
            operators=operators,
            model=folder / flagir.MODEL_NAME,
            inputs={name: values[name] for name in part.inputs},
            outputs={name: values[name] for name in part.outputs},
            nodes=part.nodes if which == "middle" else (),
            sample=model.inputs if which == "middle" else {},
            skip=_odd(part, values),
            limit_s=_LIMIT_S,
        )
        for which, part in parts.items()
    ]


def _cut_at(graph: ir.Model, at: int, quantized: bool) -> int:
    """Where a model is cut; one that was quantized behind what takes integers back."""
    kinds = [node.op_type for node in graph.graph]
    return kinds.index("QuantizeLinear", at) + 2 if quantized and "QuantizeLinear" in kinds[at:] else at


def _quantized(graph: ir.Model, inputs: Mapping[str, Array], folder: Path) -> ir.Model:
    """An int8 model, however good: what it answers is what counts."""

    def run(model: ir.Model, samples: Iterable[Mapping[str, Array]]) -> Iterator[dict[str, Array]]:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            flagir.save(model.clone(), Path(scratch))
            file, weights = Path(scratch) / flagir.MODEL_NAME, Path(scratch) / flagir.WEIGHTS_NAME
            engine = open_onnx(file, weights if weights.is_file() else None, "fast", 0, PAIRS_AS_THEY_ARE)
            try:
                for sample in samples:
                    yield engine.run({name: sample[name] for name in inputs})
            finally:
                engine.close()

    return quantize(graph, [inputs], run, QuantizeOptions(min_cosine=-1.0)).model


def _edge(part: Segment) -> tuple[str, ...]:
    return (*part.inputs, *part.outputs)


def _odd(part: Segment, values: Mapping[str, Array]) -> str:
    odd = sorted({values[name].dtype.name for name in _edge(part)} - set(DTYPES))
    return f"it has a tensor of {odd[0]}; cases are of {', '.join(DTYPES)}" if odd else ""


def _reference(graph: ir.Model, folder: Path, inputs: Mapping[str, Array], wanted: set[str]) -> dict[str, Array]:
    """What ONNX Runtime makes of these values, the inputs among them."""
    whole = segment_of(graph, [node.name or "" for node in graph.graph])
    made = tuple(sorted(wanted - set(whole.inputs)))
    traced = flagir.extract(graph, Segment(whole.id, whole.nodes, whole.inputs, made))
    (folder / "reference.onnx").write_bytes(flagir.to_bytes(traced))
    engine = open_onnx(folder / "reference.onnx", folder / flagir.WEIGHTS_NAME, "exact", 0, PAIRS_AS_THEY_ARE)
    try:
        return {**inputs, **engine.run({name: inputs[name] for name in whole.inputs})}
    finally:
        engine.close()
