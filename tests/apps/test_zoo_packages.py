"""Packages that others made, in the interpreter: against the same networks in ONNX Runtime."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from flagsplit.apps import ocr, zoo
from flagsplit.errors import PeerError
from flagsplit.targets.mobile.mil import load_package


@pytest.fixture(scope="session")
def basic_pitch() -> tuple[Path, Path]:
    """Pulled into the user's own cache, so that not every run fetches it again."""
    try:
        return zoo.pull("basic-pitch.mlpackage"), zoo.pull("basic-pitch")
    except PeerError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_basic_pitch_means_the_same_as_its_onnx_file(basic_pitch: tuple[Path, Path]) -> None:
    package, model = basic_pitch
    function = load_package(package).function()
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    x = (np.random.default_rng(1).standard_normal((1, 43844, 1)) * 0.1).astype(np.float32)
    came = function.run({function.inputs[0].name: x})
    names = [output.name for output in session.get_outputs()]
    wanted = dict(zip(names, session.run(names, {session.get_inputs()[0].name: x}), strict=True))
    assert len(came) == len(wanted) == 3
    # Both files number their outputs in the order of the original network.
    for at, name in enumerate(("Identity", "Identity_1", "Identity_2")):
        np.testing.assert_allclose(came[name], wanted[f"StatefulPartitionedCall:{at}"], atol=1e-4, rtol=0)


SHAPES = {
    "ppocr-cls": (1, 3, 48, 192),
    "ppocr-det": (1, 3, 96, 128),
    "light-squeezenet": (1, 3, 224, 224),
    "light-densenet121": (1, 3, 224, 224),
}


def _of_fixed_shape(model: Path, shape: tuple[int, ...], folder: Path) -> onnx.ModelProto:
    """A model with its open sizes set, and what follows from them folded."""
    proto = onnx.load(model)
    stored = {each.name for each in proto.graph.initializer}
    taken = [each for each in proto.graph.input if each.name not in stored]
    del proto.graph.input[:]
    proto.graph.input.extend(taken)
    (x,) = proto.graph.input
    for dim, size in zip(x.type.tensor_type.shape.dim, shape, strict=True):
        dim.dim_value = size
    for each in proto.graph.output:
        for at, dim in enumerate(each.type.tensor_type.shape.dim):
            dim.dim_param = f"{each.name}.{at}"
    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    settings.optimized_model_filepath = str(folder / "fixed.onnx")
    settings.log_severity_level = 4
    ort.InferenceSession(proto.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    folded = onnx.load(folder / "fixed.onnx")
    # Before version 4, initializers had to be inputs too.
    folded.ir_version = max(folded.ir_version, 4)
    return onnx.shape_inference.infer_shapes(folded)


def _sample(name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Something printed where a model looks for that, else noise."""
    if name == "ppocr-det":
        page = ocr.first_page()[:96, :128] / np.float32(127.5) - 1
        return np.repeat(page[None, None], 3, axis=1).astype(np.float32)
    return np.random.default_rng(1).uniform(-1, 1, SHAPES[name]).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_packages_of_another_converter(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skipped where onnx2coreml is not installed (`make test-onnx2coreml`)."""
    onnx2coreml = pytest.importorskip("onnx2coreml", reason="onnx2coreml is not installed")
    monkeypatch.delenv("FLAGSPLIT_CACHE", raising=False)
    try:
        model = _of_fixed_shape(zoo.pull(name), SHAPES[name], tmp_path)
    except PeerError as error:
        pytest.skip(str(error))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        onnx2coreml.convert(model, compute_precision="fp32").save(str(tmp_path / "made.mlpackage"))
    function = load_package(tmp_path / "made.mlpackage").function()
    x = _sample(name)
    (came,) = function.run({function.inputs[0].name: x}).values()
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, {session.get_inputs()[0].name: x})
    assert came.shape == wanted.shape
    assert np.linalg.norm(came - wanted) <= 1e-4 * np.linalg.norm(wanted)
