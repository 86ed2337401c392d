"""Small models as segments, compiled for a Snapdragon, and what ONNX Runtime makes of them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from flagsplit import flagir
from flagsplit.flagir import Segment
from flagsplit.flagir.segments import segment_of
from flagsplit.targets.cloud.ort import OrtTarget
from flagsplit.targets.interface import Array, CompileOptions, Executable, LoadOptions, StoredArtifact
from flagsplit.targets.mobile.qnn.target import QnnTarget

HOST = LoadOptions()


def model_of(text: str, weights: Mapping[str, Array] | None = None) -> ir.Model:
    """A canonical model from ONNX text, opset 23; weights by name."""
    proto = onnx.parser.parse_model('<ir_version: 11, opset_import: ["" : 23]>\n' + text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(w, name) for name, w in (weights or {}).items())
    model = ir.serde.deserialize_model(proto)
    flagir.canonicalize(model)
    return model


def whole(model: ir.Model) -> Segment:
    """All of a model as one segment."""
    return segment_of(model, [node.name or "" for node in model.graph])


def stored(model: ir.Model, folder: Path, options: CompileOptions | None = None) -> StoredArtifact:
    """A model as one segment, compiled and on disk."""
    artifact = QnnTarget().compile(model, [whole(model)], options or CompileOptions())
    return artifact.store(folder / "qnn", folder / "weights.bin")


def loaded(model: ir.Model, folder: Path, options: CompileOptions | None = None) -> Executable:
    """The same, open."""
    return QnnTarget().load(stored(model, folder, options), whole(model).id, HOST)


def expected(model: ir.Model, folder: Path, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """What ONNX Runtime gives."""
    target = OrtTarget()
    artifact = target.compile(model, [whole(model)], CompileOptions())
    return target.load(artifact.store(folder / "ort", folder / "weights.bin"), whole(model).id, HOST).run(inputs)


def cosine(first: Array, second: Array) -> float:
    """Of the angle between two arrays."""
    a, b = floats(first).ravel(), floats(second).ravel()
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def floats(array: Array) -> NDArray[np.float64]:
    """In double precision."""
    return array.astype(np.float64)


def numbers(*shape: int, seed: int = 0) -> Array:
    """Normally distributed."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
