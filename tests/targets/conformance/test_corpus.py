"""Models as cases: whole and in part, their answers, and weights by a seed."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.apps import models

from flagsplit import flagir
from flagsplit.targets.cloud.ort import OrtTarget
from flagsplit.targets.conformance import CorpusModel, certify, corpus_cases, run_case
from flagsplit.targets.conformance.seeded_weights import draw_weights

LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"


def test_whole_and_middle(tmp_path: Path) -> None:
    path = models.save(models.wide(layers=6, width=8), tmp_path / "m.onnx")
    x = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    whole, middle = corpus_cases([CorpusModel("wide", path, {"y0": x})], tmp_path / "corpus")
    assert (whole.name, middle.name, whole.source) == ("wide/whole", "wide/middle", "corpus")
    expected = models.answers_of(path, {"y0": x})
    for name, array in expected.items():
        np.testing.assert_array_equal(whole.outputs[name], array)
    nodes = len(flagir.load(tmp_path / "corpus" / "wide").graph)
    assert (whole.nodes, len(middle.nodes)) == ((), nodes // 3)
    assert not set(middle.inputs) & set(whole.inputs)
    card = certify(OrtTarget(), [whole, middle])
    assert (card.counts.passed, card.sources["corpus"].passed, card.operators) == (2, 2, {})
    wrong = {name: (array.astype(np.float64) * 1.01).astype(array.dtype) for name, array in middle.outputs.items()}
    off = type(middle)(middle.name, "corpus", (), middle.model, middle.inputs, wrong, middle.nodes, middle.sample)
    assert "the error's norm is 0.0099 of the answer's" in run_case(OrtTarget(), off).why


def test_what_cannot_be_had_is_skipped(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(b"no model")
    found = corpus_cases(
        [CorpusModel("gone", None, missing="no network"), CorpusModel("damaged", damaged)], tmp_path / "corpus"
    )
    assert [case.name for case in found] == ["gone/whole", "damaged/whole"]
    assert found[0].skip == "no network"
    assert found[1].skip.startswith("no reference: expected an ONNX model")
    assert certify(OrtTarget(), found).counts.skipped == 2


@pytest.mark.slow
def test_drawn_weights_keep_values_in_bounds() -> None:
    """As it comes, every answer of the network is the same number."""
    x = {"gpu_0/data_0": np.random.default_rng(1).standard_normal((1, 3, 224, 224)).astype(np.float32)}
    drawn = []
    for _ in range(2):
        model = flagir.read_model(LIGHT / "light_shufflenet.onnx")
        flagir.canonicalize(model)
        before = len(model.graph)
        draw_weights(model, x, np.random.default_rng(7))
        flagir.check(model)
        assert len(model.graph) == before
        drawn.append(model)
    assert flagir.to_bytes(drawn[0]) == flagir.to_bytes(drawn[1])
    answers = _run(drawn[0], x)
    assert np.isfinite(answers).all()
    assert answers.sum() == pytest.approx(1, abs=1e-4)
    assert 1e-3 < answers.max() < 0.99
    assert len(np.unique(answers)) > 900


def _run(model: ir.Model, inputs: dict[str, models.Array]) -> models.Array:
    import onnxruntime

    engine = onnxruntime.InferenceSession(flagir.to_bytes(model), providers=["CPUExecutionProvider"])
    return np.asarray(engine.run(None, dict(inputs))[0])
