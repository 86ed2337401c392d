"""onnxruntime-cann itself, where it is installed: make test-cann. It lists its provider on any host."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from tests.targets.cloud.ascend.small import HOST, expected, model_of, numbers, whole

from flagsplit.errors import ConfigError
from flagsplit.targets.cloud.ascend.target import AscendTarget
from flagsplit.targets.interface import CompileOptions

pytestmark = pytest.mark.skipif(
    "CANNExecutionProvider" not in onnxruntime.get_available_providers(), reason="onnxruntime-cann is not here"
)
HAS_ASCEND = AscendTarget().describe().runs_here == "yes"


@pytest.mark.skipif(HAS_ASCEND, reason="this host has an Ascend")
def test_without_an_ascend_it_is_refused(tmp_path: Path) -> None:
    model = model_of("y = Relu (x)", "float[2,2] x", "float[2,2] y")
    made = AscendTarget().compile(model, [whole(model)], CompileOptions()).store(tmp_path, tmp_path / "weights.bin")
    said = r"lists CANNExecutionProvider, but cannot make it: .*never fall back to the CPU"
    with pytest.raises(ConfigError, match=said):
        AscendTarget().load(made, whole(model).id, HOST)


@pytest.mark.skipif(not HAS_ASCEND, reason="this host has no Ascend")
@pytest.mark.parametrize("precision", ["fp16", "mixed"])
def test_on_an_ascend(tmp_path: Path, precision: str) -> None:
    """Never run yet: no host of this project has one."""
    weights = {"w": numbers(8, 3, 3, 3), "v": numbers(8, 5, seed=1)}
    body = "a = Conv <pads: ints = [1, 1, 1, 1]> (x, w) b = Relu (a) c = ReduceMean <keepdims: int = 0> (b, n)"
    model = model_of(
        f"{body} y = MatMul (c, v)", "float[1,3,16,16] x", "float[1,5] y", {**weights, "n": np.array([2, 3], np.int64)}
    )
    options = CompileOptions(choices={"precision": precision})
    want = expected(model, {"x": numbers(1, 3, 16, 16)}, tmp_path)["y"]
    made = AscendTarget().compile(model, [whole(model)], options).store(tmp_path / "out", tmp_path / "weights.bin")
    loaded = AscendTarget().load(made, whole(model).id, HOST)
    came = np.asarray(loaded.run({"x": numbers(1, 3, 16, 16)})["y"], np.float32)
    loaded.close()
    assert np.linalg.norm(came - want) <= 1e-2 * np.linalg.norm(want)
