"""Chip parts of models and texts, compiled for LiteRT and run beside ONNX Runtime."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from flagsplit import flagir
from flagsplit.flagir import Segment
from flagsplit.flagir.segments import segment_of
from flagsplit.flagir.specialize import settle
from flagsplit.targets.chip_parts import ChipPart, fixed_sizes, split_segments
from flagsplit.targets.cloud.ort import OrtTarget
from flagsplit.targets.interface import Array, CompileOptions, LoadOptions
from flagsplit.targets.mobile.litert.layout import settle_layouts
from flagsplit.targets.mobile.litert.lower import lower_part
from flagsplit.targets.mobile.litert.target import LitertTarget

HOST = LoadOptions(threads=1)


def part_of(text: str) -> ChipPart:
    """A chip part from ONNX's text format."""
    model = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    flagir.canonicalize(model)
    settle(model)
    return ChipPart("part", model)


def graph(body: str, inputs: str, outputs: str, constants: str = "") -> ChipPart:
    """A chip part from the pieces of ONNX's text format."""
    known = f"<{constants}>" if constants else ""
    return part_of(f'<ir_version: 10, opset_import: ["" : 23]>\ng ({inputs}) => ({outputs}) {known} {{ {body} }}')


def codes(part: ChipPart) -> Counter[str]:
    """How often the program of a part has each of TFLite's operators."""
    return Counter(operator.code for operator in settle_layouts(lower_part(part)).operators)


def ran(part: ChipPart, folder: Path, tensors: Mapping[str, Array], **choices: str) -> dict[str, Array]:
    """What a compiled part answers."""
    target = LitertTarget()
    made = target.compile_parts([part], CompileOptions(choices=choices))
    call = made.calls[part.segment]
    file = folder / call.file
    data = made.files[call.file]
    assert isinstance(data, bytes)
    file.write_bytes(data)
    loaded = target.load_part(file, call, made.options, HOST)
    return loaded.run(tensors)


def reference(part: ChipPart, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """What ONNX Runtime answers."""
    import onnxruntime as ort

    session = ort.InferenceSession(flagir.to_bytes(part.model), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(tensors)), strict=True))


def seeded(shape: Sequence[int], seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(tuple(shape)).astype(np.float32)


def norm_relative(came: Array, wanted: Array) -> float:
    """The norm of the difference, relative to the norm of what is wanted."""
    difference = np.linalg.norm(came.astype(np.float64) - wanted.astype(np.float64))
    return float(difference / max(float(np.linalg.norm(wanted.astype(np.float64))), 1e-30))


class Compiled:
    """Segments of a model, compiled for LiteRT and for ONNX Runtime."""

    def __init__(
        self, model: ir.Model, segments: Mapping[str, Segment], dims: Mapping[str, int], folder: Path, **choices: str
    ) -> None:
        self.segments = dict(segments)
        self.sizes = fixed_sizes(model, dims, list(segments.values()))
        options = CompileOptions(dims=dims, choices=choices)
        weights = folder / "weights.bin"
        weights.write_bytes(b"")
        self.artifact = LitertTarget().compile(model, list(segments.values()), options)
        self._stored = self.artifact.store(folder / "litert", weights)
        self._reference = OrtTarget().compile(model, list(segments.values()), options).store(folder / "ort", weights)

    def worst(self, name: str, inputs: Mapping[str, Array] | None = None) -> float:
        """The largest norm-relative error of the outputs of a segment, on seeded inputs if none are given."""
        segment = self.segments[name]
        given = dict(inputs or {})
        for at, each in enumerate(segment.inputs):
            kind = self.sizes.types[each]
            if each not in given:
                shape = [int(size) for size in kind.shape]
                given[each] = (
                    seeded(shape, at) if kind.dtype == ir.DataType.FLOAT else np.zeros(shape, kind.dtype.numpy())
                )
        wanted = OrtTarget().load(self._reference, segment.id, HOST).run(given)
        came = LitertTarget().load(self._stored, segment.id, HOST).run(given)
        assert list(came) == list(segment.outputs)
        return max(norm_relative(came[each], array) for each, array in wanted.items())


def thirds(model: ir.Model) -> dict[str, Segment]:
    """The whole of a model, its middle third, and all but its first third."""
    names = [node.name or "" for node in model.graph]
    third = len(names) // 3
    return {
        "whole": segment_of(model, names),
        "middle": segment_of(model, names[third : 2 * third]),
        "rest": segment_of(model, names[third:]),
    }


def transposes(model: ir.Model, segment: Segment, dims: Mapping[str, int]) -> tuple[int, int]:
    """How many TRANSPOSE operators the lowerings write, and how many remain."""
    (split,) = split_segments(model, [segment], fixed_sizes(model, dims, [segment]))
    assert split.chip is not None
    before, after = lower_part(split.chip), settle_layouts(lower_part(split.chip))
    counts = [sum(each.code == "TRANSPOSE" for each in program.operators) for program in (before, after)]
    return counts[0], counts[1]
