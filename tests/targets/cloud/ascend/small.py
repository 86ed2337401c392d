"""Small models for Ascend, lowered and run by ONNX Runtime on the CPU beside the models themselves."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from flagsplit import flagir
from flagsplit.flagir import Segment
from flagsplit.flagir.segments import segment_of
from flagsplit.flagir.specialize import settle
from flagsplit.targets.chip_parts import ChipPart
from flagsplit.targets.cloud.ascend.on_cpu import AscendOnCpu
from flagsplit.targets.interface import Array, CompileOptions, LoadOptions
from flagsplit.targets.onnx_engine import open_onnx

Floats = NDArray[np.float32]
HOST = LoadOptions(threads=1)


def model_of(body: str, inputs: str, outputs: str, weights: Mapping[str, Array] | None = None) -> ir.Model:
    """A canonical model from the pieces of ONNX's text format, and constants."""
    text = f'<ir_version: 10, opset_import: ["" : 23]>\ng ({inputs}) => ({outputs}) {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in (weights or {}).items())
    model = ir.serde.deserialize_model(proto)
    flagir.canonicalize(model)
    settle(model)
    return model


def whole(model: ir.Model) -> Segment:
    """All of a model as one segment."""
    return segment_of(model, [node.name or "" for node in model.graph])


def numbers(*shape: int, seed: int = 0) -> Array:
    """float32 of a fixed seed."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ran(model: ir.Model, inputs: Mapping[str, Array], folder: Path, cann: str = "8.0") -> dict[str, Floats]:
    """What ONNX Runtime makes on the CPU of the files for Ascend."""
    target = AscendOnCpu()
    made = target.compile_parts([ChipPart("part", model)], CompileOptions(choices={"cann": cann}))
    for name, data in made.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        assert isinstance(data, bytes)
        (folder / name).write_bytes(data)
    call = made.calls["part"]
    onnx.checker.check_model(str(folder / call.file), full_check=True)
    loaded = target.load_part(folder / call.file, call, made.options, HOST)
    try:
        return _floats(loaded.run(inputs))
    finally:
        loaded.close()


def expected(model: ir.Model, inputs: Mapping[str, Array], folder: Path) -> dict[str, Floats]:
    """What it makes of the model itself."""
    flagir.save(model, folder)
    engine = open_onnx(folder / flagir.MODEL_NAME, folder / flagir.WEIGHTS_NAME, "exact", 1)
    try:
        return _floats(engine.run(inputs))
    finally:
        engine.close()


def _floats(made: Mapping[str, Array]) -> dict[str, Floats]:
    return {name: np.asarray(array, np.float32) for name, array in made.items()}


def only_node(model: ir.Model) -> ir.Node:
    """The node of a model of one."""
    (node,) = model.graph
    return node
