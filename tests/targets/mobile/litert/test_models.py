"""Whole models and segments of them, in LiteRT beside ONNX Runtime; what they weigh, and what layouts cost."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tests.targets.mobile.litert.parts import Compiled, seed_weights, thirds, transposes

from flagsplit import flagir
from flagsplit.apps.zoo import pull
from flagsplit.flagir.segments import segment_of

MOST_ERROR = 1e-4
SHAPES = {"ppocr-det": (1, 3, 320, 320), "ppocr-rec": (1, 3, 48, 320), "ppocr-cls": (1, 3, 48, 192)}
TRANSPOSES = {"ppocr-det": 1, "ppocr-rec": 7, "ppocr-cls": 1, "light-squeezenet": 1, "light-shufflenet": 1}


def model_of(name: str) -> tuple[ir.Model, dict[str, int]]:
    """A model of the zoo and its sizes."""
    model = flagir.read_model(pull(name))
    flagir.canonicalize(model)
    (taken,) = model.graph.inputs
    assert taken.shape is not None
    shape = SHAPES.get(name, tuple(1 if not isinstance(dim, int) else dim for dim in taken.shape))
    known = {str(dim.value): size for dim, size in zip(taken.shape, shape, strict=True) if not isinstance(dim, int)}
    return model, known


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppocr-cls", "ppocr-rec", "light-squeezenet", "light-shufflenet"])
def test_models_answer_as_in_onnx_runtime(name: str, tmp_path: Path) -> None:
    model, dims = model_of(name)
    if name.startswith("light-"):
        seed_weights(model)
    segments = thirds(model, dims)
    compiled = Compiled(model, segments, dims, tmp_path)
    for each in segments:
        assert compiled.worst(each) <= MOST_ERROR, each
    before, after = transposes(model, segments["whole"], dims)
    assert after <= TRANSPOSES[name]
    assert before > 2 * after
    one = Compiled(model, {"whole": segments["whole"]}, dims, tmp_path)
    alone, three = (len(each.artifact.files["segments.tflite"]) for each in (one, compiled))  # type: ignore[arg-type]
    assert three <= 1.1 * alone


@pytest.mark.slow
def test_text_detection_without_its_last_sigmoid(tmp_path: Path) -> None:
    """On noise that sigmoid is 1e-5 everywhere, where ONNX Runtime's own is exact to 1e-7 only."""
    model, dims = model_of("ppocr-det")
    names = [node.name or "" for node in model.graph]
    assert [node.op_type for node in model.graph][-1] == "Sigmoid"
    segments = {"but the last": segment_of(model, names[:-1]), **thirds(model, dims)}
    compiled = Compiled(model, segments, dims, tmp_path)
    assert compiled.worst("but the last") <= MOST_ERROR
    assert compiled.worst("middle") <= MOST_ERROR
    assert transposes(model, segments["whole"], dims)[1] <= TRANSPOSES["ppocr-det"]


@pytest.mark.slow
@pytest.mark.parametrize(("weights", "most", "share"), [("fp16", 5e-3, 0.6), ("int8", 0.1, 0.45)])
def test_smaller_weights(weights: str, most: float, share: float, tmp_path: Path) -> None:
    model, dims = model_of("ppocr-cls")
    whole = {"whole": thirds(model, dims)["whole"]}
    small = Compiled(model, whole, dims, tmp_path, weights=weights)
    plain = Compiled(model, whole, dims, tmp_path)
    sizes = [len(each.artifact.files["segments.tflite"]) for each in (small, plain)]  # type: ignore[arg-type]
    assert sizes[0] <= share * sizes[1]
    again = Compiled(model, whole, dims, tmp_path, weights=weights)
    assert again.artifact.files["segments.tflite"] == small.artifact.files["segments.tflite"]
    picture = np.random.default_rng(1).random((1, 3, 48, 192)).astype(np.float32)
    assert 0 < again.worst("whole", {whole["whole"].inputs[0]: picture}) <= most
