"""The same files in tflite-runtime's interpreter: operator tests of the onnx package, and models with three signatures.

Skipped where `FLAGSPLIT_TFLITE_RUNTIME` does not name the Python that has it (`make test-tflite-runtime`).
"""

import json
import os
import subprocess
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.targets.mobile.litert import node_worker
from tests.targets.mobile.litert.parts import answered, compiled, noise, norm_relative, parts_of, seed_weights, thirds
from tests.targets.mobile.litert.test_models import model_of

from flagsplit.errors import ModelError
from flagsplit.targets.interface import Array
from flagsplit.targets.segment_table import ChipCall

WORKER = Path(__file__).with_name("runtime_worker.py")
SOURCES = Path(__file__).parents[4] / "src"
MOST_DIFFERENCE = 1e-4
SATURATED = frozenset(
    {
        "test_attention_4d_causal_nonpad_negative_offset_structural_empty",
        "test_attention_4d_with_past_and_present_qk_matmul_bias_3d_mask_causal",
        "test_attention_4d_with_past_and_present_qk_matmul_bias_4d_mask_causal",
        "test_attention_causal_boolmask_nan_robustness",
        "test_mod_float_edge_cases_fmod_0_float32",
    }
)
"""Tests where a sum is infinite: tflite-runtime gives the largest float instead."""


def _python() -> str:
    named = os.environ.get("FLAGSPLIT_TFLITE_RUNTIME", "")
    if not named:
        pytest.skip("FLAGSPLIT_TFLITE_RUNTIME names no Python that has tflite-runtime")
    assert Path(named).is_file(), f"FLAGSPLIT_TFLITE_RUNTIME names {named}, which is not there"
    return named


def _put(folder: Path, data: bytes, call: ChipCall, inputs: Mapping[str, Array]) -> None:
    folder.mkdir()
    (folder / "segments.tflite").write_bytes(data)
    (folder / "call.json").write_text(call.model_dump_json())
    arrays: dict[str, Any] = {f"x{at}": inputs[spec.name] for at, spec in enumerate(call.inputs)}
    np.savez(folder / "inputs.npz", **arrays)


def _answers(folders: Mapping[str, Path]) -> dict[str, list[Array]]:
    """What tflite-runtime answers, in the order of the outputs. It must not crash, and it must refuse none."""
    done = subprocess.run(
        [_python(), str(WORKER)],
        input="\n".join(str(each) for each in folders.values()),
        env={**os.environ, "PYTHONPATH": str(SOURCES)},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, (lines[-1:], done.stderr[-2000:])
    unwell = {line["name"]: line["why"] for line in lines if line.get("why")}
    assert not unwell
    found = {}
    for name, folder in folders.items():
        with np.load(folder / "outputs.npz") as made:
            found[name] = [made[f"y{at}"] for at in range(len(made.files))]
    return found


@pytest.mark.slow
def test_operator_tests_of_onnx(tmp_path: Path) -> None:
    _python()
    folders: dict[str, Path] = {}
    wanted: dict[str, list[Any]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, case in node_worker.cases().items():
            try:
                built = node_worker.build(case)
            except ModelError:
                continue
            data = built.made.files["segments.tflite"]
            assert isinstance(data, bytes)
            folders[name], wanted[name] = tmp_path / str(len(folders)), built.wanted
            _put(folders[name], data, built.made.calls["case"], built.given)
    came = _answers(folders)
    wrong = {}
    for name, arrays in wanted.items():
        reasons = [node_worker.difference(*pair) for pair in zip(came[name], map(np.asarray, arrays), strict=True)]
        if any(reasons):
            wrong[name] = reasons
    assert len(came) >= 830
    assert set(wrong) == SATURATED, wrong


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("name", ["ppocr-cls", "ppocr-rec", "light-squeezenet", "light-shufflenet"])
def test_models_answer_as_in_this_interpreter(name: str, weights: str, tmp_path: Path) -> None:
    """A file with three signatures: the whole, its middle and its end."""
    _python()
    model, dims = model_of(name)
    if name.startswith("light-"):
        seed_weights(model)
    parts = parts_of(model, list(thirds(model, dims).values()), dims)
    made = compiled(parts, weights=weights)
    data = made.files["segments.tflite"]
    assert isinstance(data, bytes)
    folders, wanted = {}, {}
    for at, part in enumerate(parts):
        inputs = noise(part)
        wanted[part.segment] = answered(made, part, tmp_path, inputs)
        folders[part.segment] = tmp_path / str(at)
        _put(folders[part.segment], data, made.calls[part.segment], inputs)
    for segment, arrays in _answers(folders).items():
        for array, other in zip(arrays, wanted[segment].values(), strict=True):
            assert norm_relative(array, other) <= MOST_DIFFERENCE
