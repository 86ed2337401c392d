"""`flagsplit show` and `flagsplit diff`, on models and on bundles."""

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from tests.flagir.models import parse

import flagsplit

pytestmark = pytest.mark.usefixtures("own_folders")


def cli(*words: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "flagsplit.apps.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "head.onnx"
    text = "g (float[N, 4] x) => (float[N, 4] y) <float[4] w = {1.0, 2.0, 3.0, 4.0}> { a = Add (x, w) y = Relu (a) }"
    onnx.save(parse(text, opset=13), path)
    return path


def test_a_model_and_its_bundle_are_shown_and_compared(model: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "head.flagsplit"
    flagsplit.build(model, "phone,cloud", bundle)
    shown = cli("show", bundle, "--plan", "all-cloud")
    assert shown.returncode == 0, shown.stderr
    assert "[cloud]" in shown.stdout
    data = json.loads(cli("show", model, "--dim", "N=7", "--json").stdout)
    assert data["dims"] == {"N": 7}
    assert [node["op"] for block in data["blocks"] for node in block["nodes"]] == ["Add", "Relu"]
    assert "Relu" in cli("show", model, "--onnx").stdout
    same = cli("diff", model, model, "--json")
    assert (same.returncode, json.loads(same.stdout)) == (0, {"same": True, "changes": []})
    differ = cli("diff", bundle, model)
    assert differ.returncode == 1
    assert differ.stdout.startswith("plan ")
    assert differ.stderr == ""


def test_mistakes_are_one_line(model: Path, tmp_path: Path) -> None:
    for words in (("show", model, "--plan", "none"), ("show", tmp_path / "absent.onnx"), ("diff", model, tmp_path)):
        done = cli(*words)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith("flagsplit: ")
        assert done.stderr.count("\n") == 1
