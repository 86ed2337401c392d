"""The example that speaks the wire protocol without flagsplit, against a real worker."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.runtime.bundles import write_model

import flagsplit
from flagsplit.apps.local import LocalWorkers
from flagsplit.runtime.bundle import Bundle
from flagsplit.splitter.sla import SLA
from flagsplit.targets.interface import LoadOptions
from flagsplit.transport.security import KeyStore

EXAMPLE = Path(__file__).parents[2] / "examples" / "wire_client.py"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("cloudy")
    path = folder / "cloudy.flagsplit"
    flagsplit.build(write_model(folder / "tiny.onnx"), "phone,cloud", path, sla=SLA(mode="only_in_cloud"))
    return flagsplit.open(path, cache=folder / "cache")


def test_it_takes_a_hundred_lines_and_imports_nothing_of_ours() -> None:
    text = EXAMPLE.read_text()
    assert len(text.splitlines()) <= 100
    assert "import flagsplit" not in text
    assert "import numpy" not in text


@pytest.mark.slow
@pytest.mark.parametrize("batch", [2, 20_000])
def test_it_gets_the_answer_of_the_unsplit_model(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setenv("FLAGSPLIT_HOME", str(tmp_path / "home"))
    keys = KeyStore()
    x = np.random.default_rng(batch).standard_normal((batch, 24)).astype(np.float32)
    given, got = tmp_path / "in.bin", tmp_path / "out.bin"
    given.write_bytes(x.tobytes())
    with LocalWorkers(bundle.path, ["cloud"]) as workers:
        address = workers.addresses["cloud"].address
        secret = str(keys.directory / "identity.secret")
        words = [str(bundle.path), "cloud", address, secret, keys.public_key, str(given), str(got), f"{batch}x24"]
        subprocess.run([sys.executable, "-W", "error", str(EXAMPLE), *words], check=True, timeout=60)
    whole = bundle.load_whole(LoadOptions(threads=1))
    wanted = whole.run({"x": x})["y"]
    whole.close()
    assert np.array_equal(np.frombuffer(got.read_bytes(), np.float32).reshape(wanted.shape), wanted)
