"""The reader that the specification promises a stranger can write, on what flagsplit writes."""

import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from tests.flagir.models import canonical, parse, with_weights

from flagsplit.flagir import save, write_placement

READER = Path(__file__).parents[2] / "examples" / "read_flagir.py"

MODEL = """g (float[N, 32] x, bool c) => (float[N, 32] y) {
    a = MatMul (x, w)
    b = If (c) <then_branch = t () => (float[N, 32] p) { p = Add (a, v) },
                else_branch = e () => (float[N, 32] q) { q = Relu (a) }>
    y = MatMul (b, w) }"""


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = canonical(with_weights(parse(MODEL, opset=21), w=(32, 32), v=(32,)))
    names = [node.name or "" for node in model.graph]
    write_placement(model, "split", ("phone", "cloud"), dict(zip(names, (0, 1, 1), strict=True)))
    write_placement(model, "home", ("phone", "cloud"), dict.fromkeys(names, 0))
    save(model, tmp_path)
    return tmp_path / "model.onnx"


def run(*words: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-W", "error", str(READER), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_tiers_nodes_and_weights_of_a_plan(saved: Path) -> None:
    done = run(saved, "split")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if not line.startswith("  ")] == [
        "split: phone runs 1 nodes and holds 1 weights",
        "split: cloud runs 2 nodes and holds 2 weights",
    ]
    assert [line.split(": ")[1].split("(")[0] for line in lines if "->" in line] == ["MatMul", "If", "MatMul"]
    assert sum("'location': 'weights.bin', 'offset': '0', 'length': '4096'" in line for line in lines) == 2
    assert sum(line.startswith("  v: [32] inside") for line in lines) == 1


def test_all_plans_without_a_name(saved: Path) -> None:
    assert "home: phone runs 3 nodes and holds 2 weights" in run(saved).stdout


def test_a_newer_major_version_is_refused(saved: Path) -> None:
    model = onnx.load(saved, load_external_data=False)
    model.metadata_props[0].value = "2.0"
    saved.write_bytes(model.SerializeToString())
    done = run(saved)
    assert done.returncode == 1
    assert done.stderr.strip() == f"{saved} is FlagIR 2.0; this reader knows version 1"


def test_it_is_short_and_needs_only_onnx() -> None:
    lines = READER.read_text().splitlines()
    assert len(lines) <= 60
    imports = {line.split()[1] for line in lines if line.startswith(("import ", "from "))}
    assert imports == {"sys", "pathlib", "onnx"}
