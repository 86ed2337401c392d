"""The files for Ascend: models that stand alone, the script for ATC, the configuration of the provider; and loading."""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from tests.apps import models
from tests.targets.cloud.ascend.small import HOST, expected, model_of, numbers, ran, whole

from flagsplit import flagir
from flagsplit.errors import ConfigError
from flagsplit.targets.catalogue import get_target
from flagsplit.targets.cloud.ascend import artifact as files
from flagsplit.targets.cloud.ascend.on_cpu import AscendOnCpu
from flagsplit.targets.interface import CompileOptions, StoredArtifact

CANN, CPU = "CANNExecutionProvider", "CPUExecutionProvider"


@pytest.fixture
def model() -> ir.Model:
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 23]> g (float[2,3] a, float s) => (float[2,4] y) '
        "<float[3,4] w = {1,2,3,4,5,6,7,8,9,10,11,12}> { m = MatMul (a, w) y = Mul (m, s) }"
    )
    made = ir.serde.deserialize_model(proto)
    made.graph.inputs[0].name = 'it\'s; a:"picture" $(no)'
    flagir.canonicalize(made)
    return made


def stored(model: ir.Model, folder: Path, device: str = "", **choices: str) -> StoredArtifact:
    made = get_target("ascend").compile(model, [whole(model)], CompileOptions(device=device, choices=choices))
    return made.store(folder, folder / "weights.bin")


def atc(folder: Path, path: Path, **environment: str) -> list[list[str]]:
    """What the script calls a stand-in for ATC with, which writes what it is told to."""
    path.mkdir(exist_ok=True)
    stand_in = path / "atc"
    stand_in.write_text(
        '#!/bin/sh\nfor each in "$@"; do printf "%s\\n" "$each"; case "$each" in '
        '--model=*) test -f "${each#--model=}" || exit 2;; --output=*) : > "${each#--output=}.om";; esac; done\necho\n'
    )
    stand_in.chmod(0o755)
    found = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}", **environment}
    done = subprocess.run(
        ["sh", str(folder / "atc.sh")], check=True, capture_output=True, text=True, cwd="/", env=found
    )
    return [call.splitlines() for call in done.stdout.split("\n\n") if call]


def test_the_script(model: ir.Model, tmp_path: Path) -> None:
    made = stored(model, tmp_path / "a b", soc="Ascend310B1", precision="mixed")
    name = whole(model).id
    (call,) = atc(made.folder, tmp_path / "bin")
    assert call == [
        f"--model=parts/{name}.onnx",
        "--framework=5",
        f"--output=om/{name}",
        "--input_shape=in0_it_s__a__picture____no_:2,3;in1_s:",
        "--precision_mode=allow_fp32_to_fp16",
        "--soc_version=Ascend310B1",
    ]
    assert (made.folder / f"om/{name}.om").is_file()
    assert "--insert_op_conf" not in "".join(call)
    (call,) = atc(made.folder, tmp_path / "bin", SOC_VERSION="Ascend910B4")
    assert call[-1] == "--soc_version=Ascend910B4"


def test_without_atc(model: ir.Model, tmp_path: Path) -> None:
    made = stored(model, tmp_path)
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "dirname").symlink_to("/usr/bin/dirname")
    done = subprocess.run(
        ["/bin/sh", str(made.folder / "atc.sh")], check=False, capture_output=True, text=True, env={"PATH": str(tools)}
    )
    assert done.returncode == 127
    assert "atc is not on PATH: install the CANN toolkit" in done.stderr


def test_the_configuration(model: ir.Model, tmp_path: Path) -> None:
    made = stored(model, tmp_path, device="ascend910b")
    found = json.loads((tmp_path / "ascend.json").read_text())
    name = whole(model).id
    assert (found["soc_version"], found["cann"], found["opset"]) == ("Ascend910B3", "8.0.0", 17)
    assert (found["precision_mode"], found["aipp"]) == ("force_fp16", False)
    assert found["provider"][CANN]["precision_mode"] == "force_fp16"
    part = found["parts"][name]
    assert (part["onnx"], part["om"]) == (f"parts/{name}.onnx", f"om/{name}.om")
    assert [each["name"] for each in part["inputs"]] == ['it\'s; a:"picture" $(no)', "s"]
    assert made.options["soc"] == "Ascend910B3"
    assert made.options["precision"] == "fp16"
    with pytest.raises(ConfigError, match=r"does not know which chip 'h100' has; choose ascend\.soc="):
        stored(model, tmp_path, device="h100")


def test_files_stand_alone(tmp_path: Path) -> None:
    """No weights are needed beside, and the same model gives the same bytes."""
    model = flagir.read_model(models.save(models.wide(layers=2, width=64), tmp_path / "m.onnx"))
    flagir.canonicalize(model)
    flagir.save(model, tmp_path)
    options = CompileOptions(dims=dict.fromkeys(flagir.Skeleton(model).symbols, 3))
    first, second = (get_target("ascend").compile(model, [whole(model)], options) for _ in range(2))
    assert first == second
    made = first.store(tmp_path / "out", tmp_path / "nothing.bin")
    loaded = onnx.load(str(made.entry(whole(model).id)))
    onnx.checker.check_model(loaded, full_check=True)
    assert (loaded.ir_version, loaded.opset_import[0].version) == (8, 17)
    assert not any(each.external_data for each in loaded.graph.initializer)


def test_large_weights_lie_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_INLINE_BYTES", 1 << 14)
    weights = {"w": numbers(64, 64), "v": numbers(64, 64, seed=1), "b": numbers(64)}
    model = model_of("m = MatMul (x, w) n = MatMul (m, v) y = Add (n, b)", "float[2,64] x", "float[2,64] y", weights)
    came = ran(model, {"x": numbers(2, 64)}, tmp_path)
    assert (tmp_path / "parts/part.weights").stat().st_size == 2 * 64 * 64 * 4
    assert (tmp_path / "parts/part.onnx").stat().st_size < 4096
    np.testing.assert_array_equal(came["y"], expected(model, {"x": numbers(2, 64)}, tmp_path)["y"])


def test_what_segments_share_is_compiled_once(tmp_path: Path) -> None:
    body = " ".join(f"x{at + 1} = Relu (z{at}) z{at + 1} = MatMul (x{at + 1}, w)" for at in range(3))
    model = model_of(f"z0 = MatMul (x, w) {body}", "float[2,8] x", "float[2,8] z3", {"w": numbers(8, 8)})
    names = [node.name or "" for node in model.graph]
    segments = [flagir.segments.segment_of(model, names[:count]) for count in (3, 5, 7)]
    flagir.save(model, tmp_path)
    made = AscendOnCpu().compile(model, segments, CompileOptions())
    kept = made.store(tmp_path / "out", tmp_path / "weights.bin")
    assert len(list((tmp_path / "out/parts").iterdir())) == 3
    want = expected(model, {"x": numbers(2, 8)}, tmp_path)
    loaded = AscendOnCpu().load(kept, segments[-1].id, HOST)
    came = np.asarray(loaded.run({"x": numbers(2, 8)})["z3"], np.float32)
    np.testing.assert_allclose(came, want["z3"], rtol=1e-6)
    loaded.close()


def test_a_host_without_cann_refuses(model: ir.Model, tmp_path: Path) -> None:
    if CANN in onnxruntime.get_available_providers():
        pytest.skip(f"this host lists {CANN}")
    made = stored(model, tmp_path)
    with pytest.raises(ConfigError, match=f"has no {CANN}, .*onnxruntime-cann .*never fall back to the CPU"):
        get_target("ascend").load(made, whole(model).id, HOST)


class _Listed:
    """A stand-in for onnxruntime-cann: it lists its provider, and its session is the CPU's, which it says or not."""

    def __init__(self, got: Sequence[str]) -> None:
        self.got, self.real = got, onnxruntime.InferenceSession
        self.asked: Any = None
        self.settings: Any = None

    def __call__(self, data: bytes, settings: Any, providers: Sequence[Any], enable_fallback: int) -> Any:
        assert enable_fallback == 0
        self.asked, self.settings = list(providers), settings
        plain = self.real(data, providers=[CPU])
        return SimpleNamespace(
            get_providers=lambda: list(self.got),
            get_inputs=plain.get_inputs,
            get_outputs=plain.get_outputs,
            run=plain.run,
        )


def listed(monkeypatch: pytest.MonkeyPatch, got: Sequence[str]) -> _Listed:
    stand_in = _Listed(got)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CANN, CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", stand_in)
    return stand_in


def test_a_silent_fallback_is_refused(model: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = stored(model, tmp_path)
    listed(monkeypatch, [CPU])
    with pytest.raises(ConfigError, match=f"lists {CANN}, but its session got {CPU}"):
        get_target("ascend").load(made, whole(model).id, HOST)


def test_all_of_a_part_or_none(model: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = stored(model, tmp_path, precision="mixed")
    stand_in = listed(monkeypatch, [CANN, CPU])
    loaded = get_target("ascend").load(made, whole(model).id, HOST)
    ((name, options),) = stand_in.asked
    assert (name, options["precision_mode"]) == (CANN, "allow_fp32_to_fp16")
    assert stand_in.settings.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
    inputs = {'it\'s; a:"picture" $(no)': np.ones((2, 3), np.float32), "s": np.array(2, np.float32)}
    assert loaded.run(inputs)["y"].tolist() == [[30, 36, 42, 48]] * 2
    loaded.close()
