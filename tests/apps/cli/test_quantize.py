"""`flagsplit quantize`: from a model and samples on disk to an int8 model that builds and answers."""

import json
import wave
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.apps import models
from tests.apps.cli.conftest import Cli

from flagsplit.apps import zoo
from flagsplit.apps.models import canonical_graph


def _arrays(folder: Path, count: int) -> Path:
    folder.mkdir()
    for at in range(count):
        image = np.random.default_rng(at).standard_normal((2, 3, 32, 40)).astype(np.float32)
        np.savez(folder / f"{at}.npz", image=image)
    return folder


def test_a_model_becomes_int8_and_builds(cli: Cli, small_model: Path, tmp_path: Path) -> None:
    samples = _arrays(tmp_path / "samples", 6)
    data = cli(
        *("quantize", small_model, "-o", "int8.onnx", "--calibrate", samples, "--report", "report.json", "--json"),
        *("--min-cosine", "0.99"),
    ).data
    assert data["basis"] == "measured"
    assert data["nodes_int8"] > 0
    assert 0 < data["flops_int8"] <= 1
    assert (data["samples"], data["checked"]) == (3, 3)
    assert min(data["cosines"].values()) >= 0.99
    assert json.loads(Path("report.json").read_text()) == data
    onnx.checker.check_model("int8.onnx", full_check=True)
    with np.load(samples / "0.npz") as sample:
        inputs = {"image": sample["image"]}
    wanted, found = models.answers_of(small_model, inputs), models.answers_of(Path("int8.onnx"), inputs)
    for name, array in wanted.items():
        assert np.linalg.norm(found[name] - array) < 0.15 * np.linalg.norm(array)
    assert cli("build", "int8.onnx", "--tiers", "phone,cloud", "-o", "int8.flagsplit").code == 0


@pytest.mark.slow
def test_a_picture_of_the_zoo(cli: Cli) -> None:
    model = zoo.pull("ppocr-cls")
    done = cli(
        *("quantize", model, "-o", "cls.onnx", "--calibrate", "zoo:page.png", "--min-cosine", "0.9"),
        *("--task", "argmax", "--min-task", "0.5"),
    )
    assert done.code == 0
    assert "nodes are int8" in done.out
    assert "comes out the same" in done.out
    assert Path("cls.onnx").stat().st_size < model.stat().st_size


def test_what_stays_is_told(cli: Cli, small_model: Path, tmp_path: Path) -> None:
    samples = _arrays(tmp_path / "samples", 2)
    graph, _ = canonical_graph(small_model)
    name = next(node.name or "" for node in graph.graph if node.op_type == "Conv")
    done = cli(
        *("quantize", small_model, "-o", "q.onnx", "--calibrate", samples, "--keep", name, "--min-cosine", "-1"),
    )
    assert done.code == 0
    assert "the user keeps it so" in done.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--calibrate", "nothing"], "nothing is none"),
        (["--calibrate", "empty"], "came none"),
        (["--calibrate", "note.txt"], "cannot calibrate on"),
        (["--calibrate", "zoo:ppocr-rec"], "expected a picture or a recording of the zoo"),
        (["--calibrate", "sound"], "give .npz files"),
        (["--calibrate", "good", "--keep", "nobody"], "expects a node of the model"),
        (["--calibrate", "good", "--min-cosine", "2"], "least cosine"),
        (["--calibrate", "good", "--min-cosine", "1"], "no node can be int8"),
    ],
)
def test_misuse(cli: Cli, small_model: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    _arrays(tmp_path / "good", 2)
    for name in ("empty", "sound"):
        (tmp_path / name).mkdir()
    (tmp_path / "note.txt").write_text("hello")
    with wave.open(str(tmp_path / "sound" / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(16))
    done = cli("quantize", small_model, "-o", "q.onnx", *arguments)
    assert done.code == 2
    assert said in done.err
    assert not (tmp_path / "q.onnx").exists()
