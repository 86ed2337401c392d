"""The cuda target on a GPU, where there is one: compiled, recorded, run from host memory, found again."""

import threading
from pathlib import Path

import numpy as np
import pytest
from tests.targets.cloud.cuda.graphs import PATTERNS, Pattern
from tests.targets.cloud.cuda.parts import drawn, expected, graph, ran

from flagsplit import flagir

torch = pytest.importorskip("torch", reason="torch is not installed", exc_type=ImportError)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.filterwarnings("default"),
]
_NET = (
    "a = Conv <pads = [1, 1, 1, 1]> (x, w, b) c = Relu (a) d = Conv <group = 8, pads = [1, 1, 1, 1]> (c, e, f) "
    "g = Add (c, d) h = Relu (g) y = GlobalAveragePool (h)"
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAGSPLIT_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_patterns(pattern: Pattern, tmp_path: Path) -> None:
    model = graph(pattern.body, pattern.inputs, pattern.outputs, pattern.weights)
    made = ran(model, tmp_path, pattern.tensors, device="gpu", precision="fp16")
    for name, array in expected(tmp_path, pattern.tensors).items():
        assert np.linalg.norm(made[name] - array) <= 5e-3 * np.linalg.norm(array)


@pytest.mark.parametrize("tune", ["fast", "some"])
def test_what_was_compiled_is_found_again(tmp_path: Path, tune: str) -> None:
    weights = {"w": drawn(8, 3, 3, 3), "b": drawn(8), "e": drawn(8, 1, 3, 3), "f": drawn(8)}
    model = graph(_NET, "float[2,3,16,16] x", "float[2,8,1,1] y", weights)
    tensors = {"x": drawn(2, 3, 16, 16)}
    first = ran(model, tmp_path, tensors, device="gpu", io="fp16", tune=tune)
    assert list((tmp_path / "cache" / "cuda").iterdir())
    again = ran(flagir.load(tmp_path), tmp_path / "again", tensors, device="gpu", io="fp16", tune=tune)
    np.testing.assert_array_equal(again["y"], first["y"])
    wanted = expected(tmp_path, tensors)["y"]
    assert np.linalg.norm(first["y"] - wanted) <= 5e-3 * np.linalg.norm(wanted)


def test_one_is_loaded_while_another_runs(tmp_path: Path) -> None:
    """Recording a program is not disturbed by what other threads do on the GPU."""
    stop, busy = threading.Event(), torch.randn(512, 512, device="cuda")

    def work() -> None:
        while not stop.is_set():
            (busy @ busy).sum().item()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        model = graph("y = MatMul (x, w)", "float[4,64] x", "float[4,32] y", {"w": drawn(64, 32)})
        made = ran(model, tmp_path, {"x": drawn(4, 64)}, device="gpu", precision="fp32")
    finally:
        stop.set()
        thread.join()
    wanted = expected(tmp_path, {"x": drawn(4, 64)})["y"]
    np.testing.assert_allclose(made["y"], wanted, rtol=1e-3, atol=1e-3)
