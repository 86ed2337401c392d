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
from flagsplit.targets.chip_target import ChipArtifact
from flagsplit.targets.interface import Array, CompileOptions, LoadOptions
from flagsplit.targets.mobile.litert.target import LitertTarget
from flagsplit.targets.tflite.layout import settle_layouts
from flagsplit.targets.tflite.lower import lower_part

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


def compiled(parts: Sequence[ChipPart], **choices: str) -> ChipArtifact:
    """Parts in one file."""
    return LitertTarget().compile_parts(parts, CompileOptions(choices=choices))


def size_of(made: ChipArtifact) -> int:
    """Bytes of the file."""
    data = made.files["segments.tflite"]
    assert isinstance(data, bytes)
    return len(data)


def answered(made: ChipArtifact, part: ChipPart, folder: Path, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """What a part of a compiled file answers."""
    call = made.calls[part.segment]
    file = folder / call.file
    data = made.files[call.file]
    assert isinstance(data, bytes)
    file.write_bytes(data)
    return LitertTarget().load_part(file, call, made.options, HOST).run(tensors)


def ran(part: ChipPart, folder: Path, tensors: Mapping[str, Array], **choices: str) -> dict[str, Array]:
    """What a part that is compiled alone answers."""
    return answered(compiled([part], **choices), part, folder, tensors)


def worst(made: ChipArtifact, part: ChipPart, folder: Path, tensors: Mapping[str, Array] | None = None) -> float:
    """The largest norm-relative error of the outputs of a part, on seeded inputs if none are given."""
    given = noise(part) if tensors is None else tensors
    wanted, came = reference(part, given), answered(made, part, folder, given)
    assert list(came) == list(wanted)
    return max(norm_relative(came[each], array) for each, array in wanted.items())


def noise(part: ChipPart) -> dict[str, Array]:
    """Seeded inputs; zeros where integers are taken."""
    given: dict[str, Array] = {}
    for at, value in enumerate(part.model.graph.inputs):
        assert value.shape is not None
        assert value.dtype is not None
        shape = [dim for dim in value.shape if isinstance(dim, int)]
        floating = value.dtype == ir.DataType.FLOAT
        given[value.name or ""] = seeded(shape, at) if floating else np.zeros(shape, value.dtype.numpy())
    return given


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


def parts_of(model: ir.Model, segments: Sequence[Segment], dims: Mapping[str, int]) -> list[ChipPart]:
    """The chip parts of segments; each must have one."""
    splits = list(split_segments(model, segments, fixed_sizes(model, dims, segments)))
    parts = [each.chip for each in splits if each.chip is not None]
    assert len(parts) == len(segments)
    return parts


def thirds(model: ir.Model, dims: Mapping[str, int]) -> dict[str, Segment]:
    """The whole of a model, its middle third, and all but its first third, cut between blocks."""
    blocks = [block.nodes for block in flagir.block_graph(model, dict(dims)).blocks]
    third = len(blocks) // 3
    parts = {"whole": blocks, "middle": blocks[third : 2 * third], "rest": blocks[third:]}
    return {name: segment_of(model, [node for nodes in part for node in nodes]) for name, part in parts.items()}


def seed_weights(model: ir.Model) -> None:
    """Draw the weights at random, so that they differ; the variance of activations is kept."""
    for at, value in enumerate(model.graph.initializers.values()):
        tensor = value.const_value
        if tensor is not None and tensor.dtype == ir.DataType.FLOAT and len(tensor.shape) > 1:
            shape = [size for size in tensor.shape if isinstance(size, int)]
            drawn = seeded(shape, at) * np.sqrt(2 / np.prod(shape[1:])).astype(np.float32)
            value.const_value = ir.Tensor(drawn.astype(np.float32), name=value.name)


def transposes(part: ChipPart) -> tuple[int, int]:
    """How many TRANSPOSE operators the lowerings write, and how many remain."""
    before = lower_part(part)
    written = sum(each.code == "TRANSPOSE" for each in before.operators)
    return written, sum(each.code == "TRANSPOSE" for each in settle_layouts(before).operators)
