"""Small graphs for the cuda target, compiled and run on the CPU beside ONNX Runtime."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from flagsplit import flagir
from flagsplit.flagir.specialize import settle
from flagsplit.targets.chip_parts import ChipPart
from flagsplit.targets.cloud.cuda.passes import optimize
from flagsplit.targets.cloud.cuda.target import CudaTarget
from flagsplit.targets.interface import Array, CompileOptions, LoadOptions
from flagsplit.targets.onnx_engine import open_onnx


def graph(body: str, inputs: str, outputs: str, weights: Mapping[str, Array] | None = None) -> ir.Model:
    """A canonical model from the pieces of ONNX's text format, and constants."""
    text = f'<ir_version: 10, opset_import: ["" : 23]>\ng ({inputs}) => ({outputs}) {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in (weights or {}).items())
    model = ir.serde.deserialize_model(proto)
    flagir.canonicalize(model)
    settle(model)
    return model


def operators(model: ir.Model) -> list[str]:
    """What is left after the passes, in order."""
    copy = model.clone()
    optimize(copy)
    return [f"{node.domain}.{node.op_type}".lstrip(".") for node in copy.graph]


Floats = NDArray[np.float32]


def ran(model: ir.Model, folder: Path, tensors: Mapping[str, Array], **choices: str) -> dict[str, Floats]:
    """What the target answers on the CPU."""
    folder.mkdir(exist_ok=True)
    flagir.save(model, folder)
    weights = folder / flagir.WEIGHTS_NAME
    options = CompileOptions(choices={"device": "cpu", "precision": "fp32", **choices}, weights=weights)
    made = CudaTarget().compile_parts([ChipPart("part", model)], options)
    for name, data in made.files.items():
        assert isinstance(data, bytes)
        (folder / name).write_bytes(data)
    call = made.calls["part"]
    told = {**made.options, "weights file": str(weights)}
    loaded = CudaTarget().load_part(folder / call.file, call, told, LoadOptions())
    try:
        return {name: np.asarray(array, np.float32) for name, array in loaded.run(tensors).items()}
    finally:
        loaded.close()


def expected(folder: Path, tensors: Mapping[str, Array]) -> dict[str, Floats]:
    """What ONNX Runtime makes of the model that `ran` left in a folder."""
    engine = open_onnx(folder / flagir.MODEL_NAME, folder / flagir.WEIGHTS_NAME, "exact", 1)
    try:
        return {name: np.asarray(array, np.float32) for name, array in engine.run(tensors).items()}
    finally:
        engine.close()


def drawn(*shape: int, seed: int = 0) -> Floats:
    """float32 of a fixed seed."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
