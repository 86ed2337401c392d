"""What the litert target says, and what it says of what is wrong: choices, files, inputs, a missing SDK."""

import sys
from pathlib import Path

import numpy as np
import pytest
from tests.targets.mobile.litert.parts import HOST, graph, norm_relative, ran, reference, seeded

from flagsplit.errors import BundleError, ConfigError, InputError, ModelError
from flagsplit.targets.catalogue import get_target
from flagsplit.targets.interface import CompileOptions
from flagsplit.targets.mobile.litert.registry import LOWERED
from flagsplit.targets.mobile.litert.target import LitertTarget


def _conv() -> str:
    numbers = ", ".join(f"{each:.3f}" for each in np.random.default_rng(0).standard_normal(216))
    return f"float[8,3,3,3] w = {{{numbers}}}"


def test_it_says_what_it_is() -> None:
    described = get_target("litert").describe()
    assert (described.name, described.extra, described.static_shapes) == ("litert", "litert", True)
    assert described.runs_here == "yes"
    assert described.choices["weights"] == ("fp32", "fp16", "int8")
    assert len(LOWERED) >= 110


def test_a_convolution_with_two_transposes_at_most(tmp_path: Path) -> None:
    part = graph(
        "c = Conv <pads = [1, 0, 2, 1]> (x, w)  r = Relu(c)  y = Add(r, c)",
        "float[1,3,9,8] x",
        "float[1,8,10,7] y",
        _conv(),
    )
    given = {"x": seeded((1, 3, 9, 8))}
    assert norm_relative(ran(part, tmp_path, given)["y"], reference(part, given)["y"]) < 1e-6


def test_same_bytes_each_time_without_and_with_the_sdk_asked_before() -> None:
    part = graph("c = Conv(x, w) y = Relu(c)", "float[1,3,9,8] x", "float[1,8,7,6] y", _conv())
    target = LitertTarget()
    first, second = (target.compile_parts([part], CompileOptions()).files["segments.tflite"] for _ in range(2))
    assert first == second


def test_wrong_choices() -> None:
    for choices, why in (({"weights": "int3"}, "expected weights of"), ({"speed": "high"}, "came 'speed'")):
        with pytest.raises(ConfigError, match=why):
            LitertTarget().compile_parts([], CompileOptions(choices=choices))


def test_a_node_that_cannot_be_is_named() -> None:
    part = graph("n = NonZero(x) f = Cast <to = 1> (n) y = ReduceSum(f)", "float[2,2] x", "float[1,1] y")
    node = next(iter(part.model.graph))
    verdict = LitertTarget().supports(node)
    assert not verdict.supported
    with pytest.raises(ModelError, match="NonZero") as caught:
        LitertTarget().compile_parts([part], CompileOptions())
    assert verdict.reason in str(caught.value)
    assert repr(node.name) in str(caught.value)


def test_wrong_inputs(tmp_path: Path) -> None:
    part = graph("y = Relu(x)", "float[2,2] x", "float[2,2] y")
    for given, why in (
        ({}, "expected an input 'x'"),
        ({"x": np.zeros((2, 3), np.float32)}, "shape"),
        ({"x": np.zeros((2, 2))}, "float64"),
    ):
        with pytest.raises(InputError, match=why):
            ran(part, tmp_path, given)


def test_damaged_files(tmp_path: Path) -> None:
    part = graph("c = Conv(x, w) y = Relu(c)", "float[1,3,9,8] x", "float[1,8,7,6] y", _conv())
    target = LitertTarget()
    made = target.compile_parts([part], CompileOptions())
    call, data = made.calls["part"], made.files["segments.tflite"]
    assert isinstance(data, bytes)
    file = tmp_path / "segments.tflite"
    for damaged in (b"", data[:100], b"\0" * len(data), data[: len(data) // 2], data[:8] + b"\xff" * (len(data) - 8)):
        file.write_bytes(damaged)
        with pytest.raises(BundleError, match=r"segments\.tflite"):
            target.load_part(file, call, made.options, HOST)
    file.write_bytes(data)
    with pytest.raises(BundleError, match=r"segments\.tflite"):
        target.load_part(file, call.model_copy(update={"function": "other"}), made.options, HOST)
    file.unlink()
    with pytest.raises(BundleError, match=r"segments\.tflite"):
        target.load_part(file, call, made.options, HOST)


def test_closed_is_closed(tmp_path: Path) -> None:
    part = graph("y = Relu(x)", "float[2,2] x", "float[2,2] y")
    target = LitertTarget()
    made = target.compile_parts([part], CompileOptions())
    data = made.files["segments.tflite"]
    assert isinstance(data, bytes)
    (tmp_path / "segments.tflite").write_bytes(data)
    loaded = target.load_part(tmp_path / "segments.tflite", made.calls["part"], made.options, HOST)
    loaded.close()
    loaded.close()
    with pytest.raises(InputError, match="closed"):
        loaded.run({"x": np.zeros((2, 2), np.float32)})


def test_without_the_sdk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It describes itself and answers for nodes, and says what to install for the rest."""
    part = graph("y = Relu(x)", "float[2,2] x", "float[2,2] y")
    made = LitertTarget().compile_parts([part], CompileOptions())
    data = made.files["segments.tflite"]
    assert isinstance(data, bytes)
    (tmp_path / "segments.tflite").write_bytes(data)
    for name in ("ai_edge_litert", "ai_edge_litert.interpreter", "tflite_runtime", "tflite_runtime.interpreter"):
        monkeypatch.setitem(sys.modules, name, None)
    target = LitertTarget()
    assert target.supports(next(iter(part.model.graph))).supported
    for act in (
        lambda: target.compile_parts([part], CompileOptions()),
        lambda: target.load_part(tmp_path / "segments.tflite", made.calls["part"], made.options, HOST),
    ):
        with pytest.raises(ConfigError, match=r"pip install 'flagsplit\[litert\]'"):
            act()
    assert target.describe().runs_here == "no"
