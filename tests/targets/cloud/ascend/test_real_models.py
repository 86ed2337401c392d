"""Readers of the zoo and a light network as files for Ascend, run by ONNX Runtime on the CPU."""

from pathlib import Path

import numpy as np
import pytest
from tests.targets.cloud.ascend.small import whole

from flagsplit import flagir
from flagsplit.apps.conformance_models import zoo_models
from flagsplit.apps.zoo import pull
from flagsplit.errors import PeerError
from flagsplit.targets.cloud.ascend.on_cpu import AscendOnCpu
from flagsplit.targets.cloud.ort import OrtTarget
from flagsplit.targets.conformance.seeded_weights import draw_weights
from flagsplit.targets.interface import CompileOptions, LoadOptions

HOST = LoadOptions(threads=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "cann"), [("ppocr-cls", "5.0"), ("ppocr-det", "8.0"), ("ppocr-rec", "5.0"), ("light-shufflenet", "8.0")]
)
def test_the_same_answers(tmp_path: Path, name: str, cann: str) -> None:
    try:
        model = flagir.read_model(pull(name))
    except PeerError as error:
        pytest.skip(str(error))
    flagir.canonicalize(model)
    (asked,) = zoo_models([name])
    inputs = asked.inputs
    if name.startswith("light"):
        draw_weights(model, inputs, np.random.default_rng(0))
    flagir.save(model, tmp_path)
    shapes = {key: array.shape for key, array in inputs.items()}
    dims = dict(flagir.dims_of_shapes(flagir.Skeleton(model), shapes))
    answers = []
    for target in (AscendOnCpu(), OrtTarget()):
        choices = {"cann": cann} if isinstance(target, AscendOnCpu) else {}
        made = target.compile(model, [whole(model)], CompileOptions(dims=dims, choices=choices))
        kept = made.store(tmp_path / type(target).__name__, tmp_path / flagir.WEIGHTS_NAME)
        loaded = target.load(kept, whole(model).id, HOST)
        answers.append(loaded.run(inputs))
        loaded.close()
    for key, array in answers[1].items():
        came, want = (np.asarray(each, np.float32).ravel() for each in (answers[0][key], array))
        assert np.linalg.norm(came - want) < 1e-6 * np.linalg.norm(want)
