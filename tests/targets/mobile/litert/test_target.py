"""What the litert target says, and what it says of what is wrong: choices, files, inputs, a missing SDK."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from tests.targets.mobile.litert.parts import HOST, answered, graph, norm_relative, ran, reference, seeded

from flagsplit.errors import BundleError, ConfigError, InputError, ModelError
from flagsplit.targets.catalogue import get_target
from flagsplit.targets.chip_parts import ChipPart
from flagsplit.targets.interface import CompileOptions
from flagsplit.targets.mobile.litert.delegates import DELEGATES, refusal_by
from flagsplit.targets.mobile.litert.target import LitertTarget
from flagsplit.targets.tflite.kernels import CODES
from flagsplit.targets.tflite.program import Operator, Tensor
from flagsplit.targets.tflite.registry import LOWERED


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


def _network(samples: int) -> ChipPart:
    part = graph(
        "c = Conv <pads = [1, 1, 1, 1]> (x, w)  r = Relu(c)  m = GlobalAveragePool(r)  y = Mul(r, m)",
        "float[1,3,9,8] x",
        "float[1,8,9,8] y",
        _conv(),
    )
    return replace(part, samples=[{"x": seeded((1, 3, 9, 8), seed=at)} for at in range(samples)])


def test_a_float_part_in_int8(tmp_path: Path) -> None:
    part = _network(8)
    options = CompileOptions(choices={"precision": "int8", "min_cosine": "0.99"}, real_samples=True)
    made = LitertTarget().compile_parts([part], options)
    assert made.options["precision"] == "int8"
    assert float(made.options["int8_cosine"]) >= 0.99
    assert json.loads(made.options["in_float"]) == {}
    given = {"x": seeded((1, 3, 9, 8), seed=20)}
    found = answered(made, part, tmp_path, given)["y"]
    wanted = reference(part, given)["y"]
    assert 1e-6 < norm_relative(found, wanted) < 0.05


def test_int8_wants_real_samples_and_a_number() -> None:
    part = _network(2)
    for choices, real, why in (
        ({"precision": "int8"}, False, "calibrated on real inputs"),
        ({"precision": "int8", "min_cosine": "much"}, True, "min_cosine"),
        ({"precision": "int8", "min_cosine": "1.5"}, True, "min_cosine"),
        ({"precision": "int9"}, True, "expected a precision"),
    ):
        with pytest.raises(ConfigError, match=why):
            LitertTarget().compile_parts([part], CompileOptions(choices=choices, real_samples=real))


def test_a_node_that_cannot_be_is_named() -> None:
    part = graph("n = NonZero(x) f = Cast <to = 1> (n) y = ReduceSum(f)", "float[2,2] x", "float[1,1] y")
    node = next(iter(part.model.graph))
    verdict = LitertTarget().supports(node)
    assert not verdict.supported
    with pytest.raises(ModelError, match="NonZero") as caught:
        LitertTarget().compile_parts([part], CompileOptions())
    assert verdict.reason in str(caught.value)
    assert repr(node.name) in str(caught.value)


def test_ranges_taken_at_run_time_are_refused() -> None:
    part = graph("y, s, z = DynamicQuantizeLinear(x)", "float[2,2] x", "uint8[2,2] y, float s, uint8 z")
    verdict = LitertTarget().supports(next(iter(part.model.graph)))
    assert "rounding" in verdict.reason
    with pytest.raises(ModelError, match="rounding"):
        LitertTarget().compile_parts([part], CompileOptions())


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


def test_segments_of_one_file_share_an_interpreter(tmp_path: Path) -> None:
    """Each answers for itself, also when another is closed."""
    first = graph("y = Relu(x)", "float[2,2] x", "float[2,2] y")
    second = replace(graph("y = Neg(x)", "float[2,2] x", "float[2,2] y"), segment="other")
    target = LitertTarget()
    made = target.compile_parts([first, second], CompileOptions())
    data = made.files["segments.tflite"]
    assert isinstance(data, bytes)
    file = tmp_path / "segments.tflite"
    file.write_bytes(data)
    given = {"x": np.array([[1, -1], [2, -3]], np.float32)}
    one, other = (target.load_part(file, made.calls[name], made.options, HOST) for name in ("part", "other"))
    kept = one.run(given)["y"]
    one.close()
    np.testing.assert_array_equal(other.run(given)["y"], -given["x"])
    np.testing.assert_array_equal(kept, np.maximum(given["x"], 0))


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


def test_an_interpreter_built_for_another_numpy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """tflite-runtime 2.14 can be imported beside NumPy 2, and fails so when it opens a file."""
    part = graph("y = Relu(x)", "float[2,2] x", "float[2,2] y")
    made = LitertTarget().compile_parts([part], CompileOptions())
    data = made.files["segments.tflite"]
    assert isinstance(data, bytes)
    (tmp_path / "segments.tflite").write_bytes(data)

    def interpreter(**_: object) -> None:
        raise SystemError("CreateWrapperFromFile returned a result with an exception set")

    interpreter.__module__ = "tflite_runtime.interpreter"
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    module = ModuleType("tflite_runtime.interpreter")
    module.Interpreter = interpreter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tflite_runtime", ModuleType("tflite_runtime"))
    monkeypatch.setitem(sys.modules, "tflite_runtime.interpreter", module)
    with pytest.raises(ConfigError, match=r"tflite_runtime does not work with NumPy \d.*flagsplit\[litert\]"):
        LitertTarget().load_part(tmp_path / "segments.tflite", made.calls["part"], made.options, HOST)


def test_too_large_an_error_of_smaller_weights_ends_the_build() -> None:
    """Weights that int8 cannot tell apart: real samples end the build, made up ones only let it say so."""
    wide = ", ".join(["1000", *["0.01"] * 2047])
    part = graph("y = MatMul(x, w)", "float[1,2048] x", "float[1,1] y", f"float[2048,1] w = {{{wide}}}")
    sample = {"x": np.concatenate([np.zeros((1, 1)), np.ones((1, 2047))], 1).astype(np.float32)}
    part = replace(part, samples=(sample,))
    target = LitertTarget()
    guessed = target.compile_parts([part], CompileOptions(choices={"weights": "int8"}))
    assert float(guessed.options["weights_error"]) > 0.5
    with pytest.raises(ModelError, match=r"choose weights of fp16 or fp32"):
        target.compile_parts([part], CompileOptions(choices={"weights": "int8"}, real_samples=True))
    fine = target.compile_parts([part], CompileOptions(choices={"weights": "fp16"}, real_samples=True))
    assert float(fine.options["weights_error"]) < 1e-2


def test_delegates_are_told_of() -> None:
    part = graph(
        "c = Conv(x, w) r = Relu(c) y = CumSum(r, a) i = ArgMax <axis = 1> (y)",
        "float[1,3,9,8] x",
        "float[1,8,7,6] y, int64[1,1,7,6] i",
        f"{_conv()}, int64 a = {{1}}",
    )
    files = LitertTarget().compile_parts([part], CompileOptions()).files
    told = {each["name"]: each for each in json.loads(files["delegates.json"])["delegates"]}  # type: ignore[arg-type]
    assert set(told) == {"gpu", "nnapi", "qualcomm", "mediatek", "google-tensor"}
    assert "deprecated" in told["nnapi"]["legacy"]
    for each in told.values():
        assert each["basis"] == "modelled"
        assert each["source"]
        assert each["confidence"] in ("medium", "low")
        found = each["segments"]["part"]
        assert found["taken"] + sum(found["left"].values()) == found["operators"]
    gpu, nnapi = (told[name]["segments"]["part"]["left"] for name in ("gpu", "nnapi"))
    assert gpu == {"knows no ARG_MAX": 1, "takes no int32": 1, "takes no int64": 1}
    assert nnapi == {"knows no CUMSUM": 1, "takes no int64": 1}


@pytest.mark.parametrize(
    ("code", "types", "why"),
    [
        ("ADD", ("float32", "float32", "float32"), ""),
        ("ADD", ("int32", "int32", "int32"), "takes no int32"),
        ("GREATER", ("float32", "float32", "bool"), ""),
        ("GREATER", ("int32", "int32", "bool"), "takes no int32"),
        ("GATHER", ("float32", "int32", "float32"), ""),
        ("SELECT_V2", ("bool", "float32", "float32"), ""),
        ("SQUEEZE", ("float32", "float32"), "knows no SQUEEZE"),
    ],
)
def test_types_that_the_gpu_takes_with_some_operators(code: str, types: tuple[str, ...], why: str) -> None:
    (gpu,) = [each for each in DELEGATES if each.name == "gpu"]
    *inputs, output = (Tensor((2, 2), each) for each in types)
    assert refusal_by(gpu, Operator(code, tuple(inputs), (output,))) == why


def test_delegates_know_only_operators_that_there_are() -> None:
    for each in DELEGATES:
        assert each.takes <= CODES
        assert set(each.also) <= each.takes
