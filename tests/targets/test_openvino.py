"""ONNX Runtime with OpenVINO, where it is installed: make test-openvino."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from tests.apps import models

import flagsplit
from flagsplit import flagir
from flagsplit.apps.conformance_models import zoo_models
from flagsplit.apps.zoo import pull
from flagsplit.errors import BundleError, PeerError
from flagsplit.flagir.segments import segment_of
from flagsplit.targets.cloud.ort import OrtTarget
from flagsplit.targets.conformance.seeded_weights import draw_weights
from flagsplit.targets.interface import Array, CompileOptions, LoadOptions

pytestmark = pytest.mark.skipif(
    "OpenVINOExecutionProvider" not in onnxruntime.get_available_providers(), reason="onnxruntime-openvino is not here"
)
HERE = LoadOptions(threads=1)


def answers(name: str, folder: Path, provider: str) -> dict[str, Array]:
    try:
        model = flagir.read_model(pull(name))
    except PeerError as error:
        pytest.skip(str(error))
    flagir.canonicalize(model)
    (asked,) = zoo_models([name])
    if asked.seed_weights:
        draw_weights(model, asked.inputs, np.random.default_rng(0))
    folder.mkdir(exist_ok=True)
    flagir.save(model, folder)
    whole = segment_of(model, [node.name or "" for node in model.graph])
    made = OrtTarget().compile(model, [whole], CompileOptions("fast", choices={"provider": provider}))
    loaded = OrtTarget().load(made.store(folder / "out", folder / flagir.WEIGHTS_NAME), whole.id, HERE)
    found = loaded.run(asked.inputs)
    loaded.close()
    return found


@pytest.mark.parametrize("name", ["ppocr-cls", "ppocr-det", "ppocr-rec", "light-shufflenet", "light-squeezenet"])
def test_within_what_verify_allows(tmp_path: Path, name: str) -> None:
    came, want = (answers(name, tmp_path / provider, provider) for provider in ("openvino", "cpu"))
    for key, array in want.items():
        expected = np.asarray(array, np.float32).ravel()
        off = np.linalg.norm(np.asarray(came[key], np.float32).ravel() - expected)
        assert off <= 1e-4 * np.linalg.norm(expected)


def test_what_it_cannot_load_is_the_model_s_fault(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"with OpenVINOExecutionProvider: .*build again with ort\.provider=cpu"):
        answers("silero-vad", tmp_path, "openvino")


def test_a_bundle_for_it_agrees(tmp_path: Path) -> None:
    model = models.save(models.small(), tmp_path / "small.onnx")
    flagsplit.build(
        model,
        "phone,cloud",
        tmp_path / "small.flagsplit",
        targets={"phone": ["ort"]},
        shapes={"image": (2, 3, 16, 16)},
        numerics="fast",
        choices={"ort": {"provider": "openvino"}},
    )
    report = flagsplit.verify(tmp_path / "small.flagsplit")
    assert {each.verdict for each in report.segments} == {"agrees"}
