"""ONNX Runtime's own files: read as any model, and never a reason to crash."""

import gc
import os
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from tests.flagir.models import assert_close, inputs_for, parse, run

from flagsplit.errors import ConfigError, ModelError
from flagsplit.flagir import canonicalize, read_model, save, violations
from flagsplit.flagir.frontends import ort_file

TEXT = """g (bool c, float[N, 64] x) => (float[N, 32] y) {
    a = MatMul(x, w)
    y = If (c) <then_branch = t () => (float[N, 32] p) { p = Relu(a) },
        else_branch = e () => (float[N, 32] q) { b = Add(a, v) q = com.microsoft.QuickGelu <alpha = 1.5> (b) }>
}"""


def original() -> onnx.ModelProto:
    proto = parse(TEXT, imports=', "com.microsoft" : 1')
    rng = np.random.default_rng(3)
    for name, shape in (("w", (64, 32)), ("v", (32,))):
        array = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return proto


@pytest.fixture
def path(tmp_path: Path) -> Path:
    target = tmp_path / "m.ort"
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(target)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.add_session_config_entry("session.save_model_format", "ORT")
    ort.InferenceSession(original().SerializeToString(), options, providers=["CPUExecutionProvider"])
    return target


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders go."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.mark.slow
def test_it_answers_as_the_model_that_it_was_made_of(path: Path, tmp_path: Path, scratch: Path) -> None:
    model = read_model(path)
    assert all(graph.name for graph in model.graphs())
    canonicalize(model)
    assert violations(model) == ()
    assert isinstance(model.graph.initializers["w"].const_value, ir.ExternalTensor)
    folder = tmp_path / "saved"
    folder.mkdir()
    save(model, folder)
    proto = original()
    for flag in (True, False):
        inputs = inputs_for(proto, {"N": 3}) | {"c": np.array(flag)}
        assert_close(run(onnx.load(folder / "model.onnx"), inputs), run(proto, inputs))


@pytest.mark.slow
def test_weights_stay_as_long_as_somebody_needs_them(path: Path, scratch: Path) -> None:
    model = read_model(path)
    tensor = model.graph.initializers["w"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    assert Path(tensor.path).is_relative_to(scratch)
    del model
    gc.collect()
    assert Path(tensor.path).is_file()
    wanted = onnx.numpy_helper.to_array(original().graph.initializer[0])
    np.testing.assert_array_equal(tensor.numpy(), wanted)
    del tensor
    gc.collect()
    assert list(scratch.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_truncated_file(path: Path, scratch: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ModelError, match="expected an ONNX Runtime file"):
        read_model(path)
    gc.collect()
    assert list(scratch.iterdir()) == []


@pytest.mark.slow
def test_mutated_bytes_are_an_error_or_a_model(path: Path, scratch: Path) -> None:
    data = path.read_bytes()
    rng = np.random.default_rng(11)
    for _ in range(12):
        mutated = bytearray(data)
        for at in rng.integers(8, len(mutated), 6):
            mutated[at] = int(rng.integers(256))
        path.write_bytes(mutated)
        with suppress(ModelError):
            canonicalize(read_model(path))


def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Put another program in the place of the one that converts."""
    path = tmp_path / "program.py"
    path.write_text(text)
    monkeypatch.setattr(ort_file, "_PROGRAM", path)


def fake(tmp_path: Path) -> Path:
    path = tmp_path / "fake.ort"
    path.write_bytes(b"\x18\0\0\0ORTM" + bytes(64))
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import os; os.abort()", "ended with signal 6"),
        ("import sys; sys.exit('no \x1b[31m kernel')", r"no \[31m kernel"),
        ("", "gave no reason"),
    ],
)
def test_an_engine_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str) -> None:
    program(tmp_path, monkeypatch, text)
    with pytest.raises(ModelError, match=message):
        read_model(fake(tmp_path))


def test_an_engine_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, monkeypatch, "import time; time.sleep(100)")
    monkeypatch.setattr(ort_file, "_TIME_LIMIT_S", 0.2)
    with pytest.raises(ModelError, match="not read within"):
        read_model(fake(tmp_path))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps to the limit of the address space")
def test_an_engine_that_needs_too_much(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_file, "_MEMORY_BYTES", 64 << 20)
    with pytest.raises(ModelError, match="cannot read"):
        read_model(path)


def test_no_room_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(ConfigError, match="TMPDIR"):
        read_model(fake(tmp_path))


def test_a_file_over_the_limit(tmp_path: Path) -> None:
    path = fake(tmp_path)
    os.truncate(path, 3 << 30)
    with pytest.raises(ModelError, match="at most 2 GiB"):
        read_model(path)
