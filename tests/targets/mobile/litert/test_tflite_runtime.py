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
from tests.targets.mobile.litert.parts import HOST, norm_relative, seed_weights, seeded, thirds
from tests.targets.mobile.litert.test_models import model_of

from flagsplit.errors import ModelError
from flagsplit.targets.chip_parts import fixed_sizes, split_segments
from flagsplit.targets.interface import Array, CompileOptions
from flagsplit.targets.mobile.litert import engine
from flagsplit.targets.mobile.litert.target import LitertTarget
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
    segments = list(thirds(model, dims).values())
    splits = split_segments(model, segments, fixed_sizes(model, dims, segments))
    parts = [each.chip for each in splits if each.chip is not None]
    assert len(parts) == len(segments)
    made = LitertTarget().compile_parts(parts, CompileOptions(choices={"weights": weights}))
    data = made.files["segments.tflite"]
    assert isinstance(data, bytes)
    (tmp_path / "segments.tflite").write_bytes(data)
    folders, wanted = {}, {}
    for at, (name_of, call) in enumerate(made.calls.items()):
        inputs: dict[str, Array] = {each.name: seeded([int(n) for n in each.shape], at) for each in call.inputs}
        wanted[name_of] = engine.open_signature(tmp_path / "segments.tflite", call, HOST.threads).run(inputs)
        folders[name_of] = tmp_path / str(at)
        _put(folders[name_of], data, call, inputs)
    for name_of, arrays in _answers(folders).items():
        for array, other in zip(arrays, wanted[name_of].values(), strict=True):
            assert norm_relative(array, other) <= MOST_DIFFERENCE
