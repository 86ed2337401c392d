"""Files of another converter beside ours, in the same interpreter: models of the zoo, and the middle of an encoder.

Skipped where `FLAGSPLIT_ONNX2TF` does not name the program (`make test-onnx2tf`).
"""

import os
import subprocess
import warnings
import wave
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.targets.mobile.litert.parts import noise, norm_relative, parts_of, ran, seed_weights, thirds

from flagsplit import flagir
from flagsplit.apps import ocr
from flagsplit.apps.zoo import pull
from flagsplit.errors import PeerError
from flagsplit.flagir import Skeleton
from flagsplit.flagir.passes.float_products import float_products
from flagsplit.targets.chip_parts import ChipPart
from flagsplit.targets.interface import Array

MOST_DIFFERENCE = 1e-4
SPEECH, TOKENS = 32_000, 16
SHAPES: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "ppocr-cls": {"x": (1, 3, 48, 192)},
    "ppocr-rec": {"x": (1, 3, 48, 320)},
    "ppocr-det": {"x": (1, 3, 96, 128)},
    "light-squeezenet": {"data_0": (1, 3, 224, 224)},
    "light-shufflenet": {"gpu_0/data_0": (1, 3, 224, 224)},
    "light-resnet50": {"gpu_0/data_0": (1, 3, 224, 224)},
    "light-inception-v1": {"data_0": (1, 3, 224, 224)},
    "light-densenet121": {"data_0": (1, 3, 224, 224)},
    "moonshine-encoder": {"input_values": (1, SPEECH), "attention_mask": (1, SPEECH)},
    "minilm": {"ids": (1, TOKENS), "mask": (1, TOKENS)},
}


def _onnx2tf() -> Path:
    named = os.environ.get("FLAGSPLIT_ONNX2TF", "")
    if not named:
        pytest.skip("FLAGSPLIT_ONNX2TF names no onnx2tf")
    program = Path(named)
    assert program.is_file(), f"FLAGSPLIT_ONNX2TF names {program}, which is not there"
    return program


def _model(name: str, monkeypatch: pytest.MonkeyPatch) -> ir.Model:
    monkeypatch.delenv("FLAGSPLIT_CACHE", raising=False)
    if name == "minilm":
        return _minilm()
    try:
        model = flagir.read_model(pull(name))
    except PeerError as error:
        pytest.skip(str(error))
    flagir.canonicalize(model)
    float_products(model)
    if name.startswith("light-"):
        seed_weights(model)
    return model


def _minilm() -> ir.Model:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from flagsplit.apps.zoo.minilm import minilm_module
    from flagsplit.flagir.frontends import torch_program

    given = torch.zeros(1, TOKENS, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch_program.from_module(minilm_module(), (given, given + 1))
    flagir.canonicalize(model)
    return model


def _sample(name: str) -> dict[str, Array]:
    """Something printed or said where a model looks for that, else noise."""
    if name == "moonshine-encoder":
        with wave.open(str(pull("beckett.wav"))) as recording:
            heard = np.frombuffer(recording.readframes(SPEECH), np.int16).astype(np.float32) / 32768
        return {"input_values": heard[None], "attention_mask": np.ones((1, SPEECH), np.int64)}
    if name == "minilm":
        words = np.random.default_rng(1).integers(1000, 20_000, (1, TOKENS))
        return {"ids": words, "mask": np.ones((1, TOKENS), np.int64)}
    ((given, shape),) = SHAPES[name].items()
    if name == "ppocr-det":
        page = ocr.first_page()[:96, :128] / np.float32(127.5) - 1
        return {given: np.repeat(page[None, None], 3, axis=1).astype(np.float32)}
    return {given: np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)}


def _part(model: ir.Model, name: str, share: str) -> ChipPart:
    dims = flagir.dims_of_shapes(Skeleton(model), SHAPES[name])
    segment = thirds(model, dims)[share]
    (part,) = parts_of(model, [segment], dims)
    return part


def _renamed(part: ChipPart, folder: Path) -> tuple[Path, dict[str, str]]:
    """A part as an ONNX file whose values have plain names, and those by the old ones: slashes mean something to the
    other converter."""
    flagir.save(part.model, folder)
    proto = onnx.load(folder / flagir.MODEL_NAME)
    graph = proto.graph
    names: dict[str, str] = {}

    def plain(name: str) -> str:
        return names.setdefault(name, f"v{len(names)}") if name else ""

    for each in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        each.name = plain(each.name)
    for node in graph.node:
        given, made = [plain(each) for each in node.input], [plain(each) for each in node.output]
        del node.input[:], node.output[:]
        node.input.extend(given)
        node.output.extend(made)
    onnx.save(proto, folder / "part.onnx")
    return folder / "part.onnx", names


def _theirs(part: ChipPart, tensors: Mapping[str, Array], folder: Path) -> dict[str, Array]:
    """What the other converter's file answers."""
    from ai_edge_litert.interpreter import Interpreter

    program = _onnx2tf()
    model, names = _renamed(part, folder)
    kept = [names[each] for each in tensors]
    command = [str(each) for each in (program, "-i", model, "-o", folder / "made", "-tb", "flatbuffer_direct", "-n")]
    done = subprocess.run([*command, "-kat", *kept], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    interpreter = Interpreter(model_path=str(folder / "made" / "part_float32.tflite"), num_threads=1)
    interpreter.allocate_tensors()
    places = {each["name"]: each for each in interpreter.get_input_details()}
    for name, array in tensors.items():
        place = places[names[name]]
        interpreter.set_tensor(place["index"], array.astype(place["dtype"]))
    interpreter.invoke()
    made = {each["name"]: interpreter.get_tensor(each["index"]) for each in interpreter.get_output_details()}
    return {value.name or "": made[names[value.name or ""]] for value in part.model.graph.outputs}


def _laid_out(came: Array, shape: tuple[int, ...]) -> Array:
    """In ONNX's layout: the other converter leaves some outputs with channels last."""
    if came.shape == shape:
        return came
    moved: Array = np.moveaxis(came, -1, 1)
    assert moved.shape == shape
    return moved


@pytest.mark.slow
@pytest.mark.parametrize(("name", "share"), [*((name, "whole") for name in SHAPES), ("moonshine-encoder", "middle")])
def test_files_of_another_converter_answer_alike(
    name: str, share: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _onnx2tf()
    part = _part(_model(name, monkeypatch), name, share)
    given = _sample(name) if share == "whole" else noise(part)
    given = {value.name or "": given[value.name or ""] for value in part.model.graph.inputs}
    ours = ran(part, tmp_path, given)
    theirs = _theirs(part, given, tmp_path)
    for each, array in ours.items():
        assert norm_relative(array, _laid_out(theirs[each], array.shape)) <= MOST_DIFFERENCE, each
