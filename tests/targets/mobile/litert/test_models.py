"""Whole models and segments of them, in LiteRT beside ONNX Runtime; what they weigh, and what layouts cost."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tests.targets.mobile.litert.parts import compiled, parts_of, seed_weights, size_of, thirds, transposes, worst

from flagsplit import flagir
from flagsplit.apps.zoo import pull
from flagsplit.flagir.segments import segment_of
from flagsplit.targets.chip_parts import ChipPart

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
    """The whole, its middle and its end in one file, which is hardly larger than that of the whole alone."""
    model, dims = model_of(name)
    if name.startswith("light-"):
        seed_weights(model)
    whole, *rest = parts_of(model, list(thirds(model, dims).values()), dims)
    made = compiled([whole, *rest])
    for part in (whole, *rest):
        assert worst(made, part, tmp_path) <= MOST_ERROR, part.segment
    before, after = transposes(whole)
    assert after <= TRANSPOSES[name]
    assert before > 2 * after
    assert size_of(made) <= 1.1 * size_of(compiled([whole]))


@pytest.mark.slow
def test_text_detection_without_its_last_sigmoid(tmp_path: Path) -> None:
    """On noise that sigmoid is 1e-5 everywhere, where ONNX Runtime's own is exact to 1e-7 only."""
    model, dims = model_of("ppocr-det")
    names = [node.name or "" for node in model.graph]
    assert [node.op_type for node in model.graph][-1] == "Sigmoid"
    cut = thirds(model, dims)
    most, middle, whole = parts_of(model, [segment_of(model, names[:-1]), cut["middle"], cut["whole"]], dims)
    made = compiled([most, middle, whole])
    for part in (most, middle):
        assert worst(made, part, tmp_path) <= MOST_ERROR
    assert transposes(whole)[1] <= TRANSPOSES["ppocr-det"]


@pytest.fixture(scope="module")
def direction() -> ChipPart:
    model, dims = model_of("ppocr-cls")
    (part,) = parts_of(model, [thirds(model, dims)["whole"]], dims)
    return part


@pytest.mark.slow
@pytest.mark.parametrize(("weights", "most", "share"), [("fp16", 5e-3, 0.6), ("int8", 0.1, 0.45)])
def test_smaller_weights(direction: ChipPart, weights: str, most: float, share: float, tmp_path: Path) -> None:
    small, again = (compiled([direction], weights=weights) for _ in range(2))
    assert size_of(small) <= share * size_of(compiled([direction]))
    assert again.files["segments.tflite"] == small.files["segments.tflite"]
    picture = np.random.default_rng(1).random((1, 3, 48, 192)).astype(np.float32)
    (given,) = direction.model.graph.inputs
    assert 0 < worst(again, direction, tmp_path, {given.name or "": picture}) <= most
