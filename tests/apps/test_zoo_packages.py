"""A package that others made, in the interpreter: the same network is in the zoo as ONNX."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from flagsplit.apps import zoo
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
