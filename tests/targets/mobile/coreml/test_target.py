"""The target as a build uses it: segments in, a package and its table out, and each segment run again."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tests.targets.mobile.coreml.graphs import difference, floats, node_of, parse

from flagsplit.errors import BundleError, ConfigError, InputError
from flagsplit.flagir.segments import segment_of
from flagsplit.targets.catalogue import get_target, missing_sdk
from flagsplit.targets.interface import Array, Artifact, CompileOptions, LoadOptions, StoredArtifact
from flagsplit.targets.mobile.coreml import executable
from flagsplit.targets.mobile.coreml.ranges import answers
from flagsplit.targets.mobile.coreml.target import CoremlTarget
from flagsplit.targets.segment_table import read_table

HOST = LoadOptions(threads=1)
_TEXT = """g (float[N, 32] x, int64[N] shift, bool[N, 32] keep)
=> (float[N, 32] y, int64[N, 1] best, bool[N, 32] big) {
    a = MatMul(x, wa)
    s = Cast <to = 1> (shift)
    u = Unsqueeze(s, one)
    b = Add(a, u)
    c = Where(keep, b, x)
    y = MatMul(c, wb)
    best = ArgMax <axis = 1> (y)
    big = Greater(y, zero)
}"""


def _model() -> ir.Model:
    weights = {"wa": floats(32, 32, seed=1, scale=0.2), "wb": floats(32, 32, seed=2, scale=0.2)}
    return parse(_TEXT, {**weights, "one": np.array([1]), "zero": np.float32(0)})


def _inputs() -> dict[str, Array]:
    keep = np.random.default_rng(3).integers(0, 2, (2, 32)).astype(bool)
    return {"x": floats(2, 32), "shift": np.array([3, -4]), "keep": keep}


def _compiled(
    model: ir.Model, choices: Mapping[str, str] | None = None, parts: Sequence[Sequence[int]] = ()
) -> tuple[Artifact, list[str]]:
    nodes = [node.name or "" for node in model.graph]
    segments = [segment_of(model, [nodes[at] for at in part]) for part in parts or [range(len(nodes))]]
    options = CompileOptions(dims={"N": 2}, choices=choices or {}, samples=[_inputs()])
    return CoremlTarget().compile(model, segments, options), [segment.id for segment in segments]


def _stored(artifact: Artifact, folder: Path) -> StoredArtifact:
    return artifact.store(folder, folder / "weights.bin")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("choices", "worst"),
    [
        ({"precision": "fp32"}, 1e-6),
        ({"precision": "fp16"}, 2e-3),
        ({"precision": "mixed", "io": "fp16"}, 2e-3),
        ({"precision": "fp32", "weights": "int8"}, 0.02),
        ({"precision": "fp16", "deployment": "iOS26"}, 2e-3),
    ],
)
def test_a_segment_gives_what_the_model_gives(tmp_path: Path, choices: Mapping[str, str], worst: float) -> None:
    model = _model()
    artifact, (segment,) = _compiled(model, choices)
    stored = _stored(artifact, tmp_path)
    loaded = CoremlTarget().load(stored, segment, HOST)
    assert [(spec.name, spec.dtype, spec.shape) for spec in loaded.outputs] == [
        ("y", "float32", (2, 32)),
        ("best", "int64", (2, 1)),
        ("big", "bool", (2, 32)),
    ]
    given = _inputs()
    (wanted,) = answers(model, [given])
    made = loaded.run(given)
    for name, array in wanted.items():
        assert (made[name].dtype, made[name].shape) == (array.dtype, array.shape)
    assert difference(made["y"], wanted["y"]) <= worst
    np.testing.assert_array_equal(made["best"], wanted["best"])
    loaded.close()
    with pytest.raises(InputError, match="closed"):
        loaded.run(given)


def test_scalars_stay_scalars(tmp_path: Path) -> None:
    model = parse("g (float x, int64 i) => (float y, int64 j) { y = Tanh(x) j = Neg(i) }")
    segment = segment_of(model, [node.name or "" for node in model.graph])
    stored = _stored(CoremlTarget().compile(model, [segment], CompileOptions()), tmp_path)
    made = CoremlTarget().load(stored, segment.id, HOST).run({"x": np.array(0.5, np.float32), "i": np.array(7)})
    assert {name: (array.shape, array.dtype.name) for name, array in made.items()} == {
        "y": ((), "float32"),
        "j": ((), "int64"),
    }
    assert made["j"] == -7


@pytest.mark.slow
@pytest.mark.parametrize("deep", [-np.inf, -3.4028235e38, -1e9])
def test_fp16_gives_no_infinity_where_fp32_gives_none(tmp_path: Path, deep: float) -> None:
    """Values past fp16's end, a norm of values whose variance is below its least number, and a mask."""
    model = parse(
        """g (float[2, 8] x, bool[2, 8] keep) => (float[2, 8] y, float[2, 8] z) {
            a = Mul(x, large) b = Mul(a, a) c = Sqrt(b) d = Div(c, large) e = Mul(d, small)
            y = LayerNormalization <epsilon = 1e-12> (e, scale)
            m = Where(keep, zero, deep) s = Add(x, m) z = Softmax(s)
        }""",
        {
            "large": np.float32(1e3),
            "small": np.float32(1e-4),
            "scale": np.ones(8, np.float32),
            "zero": np.float32(0),
            "deep": np.float32(deep),
        },
    )
    keep = np.arange(16).reshape(2, 8) % 3 > 0
    given: dict[str, Array] = {"x": floats(2, 8), "keep": keep}
    segment = segment_of(model, [node.name or "" for node in model.graph])
    artifact = CoremlTarget().compile(model, [segment], CompileOptions(samples=[given]))
    kept = json.loads(artifact.options["in_fp32"])[segment.id]
    operators = {node.op_type for node in model.graph if node.name in kept}
    assert {"Sqrt", "LayerNormalization"} <= operators
    assert "Softmax" not in operators
    made = CoremlTarget().load(_stored(artifact, tmp_path), segment.id, HOST).run(given)
    (wanted,) = answers(model, [given])
    assert difference(made["y"], wanted["y"]) <= 5e-3
    assert difference(made["z"], wanted["z"]) <= 2e-3
    assert (made["z"][~keep] == 0).all()


_MOVED = """g (float[1, 12] x, float[4, 3] z) => (float[3, 1, 4] y, float[2, 4, 3] both, float[4, 3] c) {
    a = Unsqueeze(x, one)
    b = Reshape(a, sizes)
    y = Transpose <perm = [2, 0, 1]> (b)
    first = Unsqueeze(z, zero)
    both = Concat <axis = 0> (first, b)
    d = Squeeze(b, zero)
    c = Add(d, z)
}"""


@pytest.mark.parametrize("precision", ["fp16", "mixed"])
def test_what_is_only_moved_comes_back_bit_by_bit(tmp_path: Path, precision: str) -> None:
    weights = {"one": np.array([1]), "zero": np.array([0]), "sizes": np.array([1, 4, 3])}
    model = parse(_MOVED, weights)
    given: dict[str, Array] = {"x": floats(1, 12), "z": floats(4, 3, seed=1)}
    segment = segment_of(model, [node.name or "" for node in model.graph])
    options = CompileOptions(samples=[given], choices={"precision": precision})
    artifact = CoremlTarget().compile(model, [segment], options)
    kept = json.loads(artifact.options["in_fp32"])[segment.id]
    computed = [node.op_type for node in model.graph if node.name not in kept]
    assert computed == ["Squeeze", "Add"]
    made = CoremlTarget().load(_stored(artifact, tmp_path), segment.id, HOST).run(given)
    (wanted,) = answers(model, [given])
    np.testing.assert_array_equal(made["y"], wanted["y"])
    np.testing.assert_array_equal(made["both"], wanted["both"])
    assert 1e-5 < difference(made["c"], wanted["c"]) < 2e-3, "computed in fp16"


def test_the_table_says_what_is_passed(tmp_path: Path) -> None:
    artifact, (segment,) = _compiled(_model(), {"io": "fp16"})
    _stored(artifact, tmp_path)
    call = read_table(tmp_path / "segments.json").segments[segment].chip
    assert call is not None
    assert (call.file, call.function) == ("segments.mlpackage", f"segment_{segment}")
    passed = {each.name: (each.dtype, each.passed_as) for each in (*call.inputs, *call.outputs)}
    assert passed == {
        "x": ("float32", "float16"),
        "shift": ("int64", "int32"),
        "keep": ("bool", "int32"),
        "y": ("float32", "float16"),
        "best": ("int64", "int32"),
        "big": ("bool", "int32"),
    }


@pytest.mark.slow
def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    artifact, (segment,) = _compiled(_model(), {"io": "fp16"})
    loaded = CoremlTarget().load(_stored(artifact, tmp_path), segment, HOST)
    given = _inputs()
    for name, array, why in (
        ("shift", np.array([0, 1 << 31]), "int32, which cannot hold 2147483648"),
        ("shift", np.array([0, -(1 << 40)]), "cannot hold -1099511627776"),
        ("x", np.full((2, 32), 1e5, np.float32), "float16, which cannot hold"),
        ("x", given["x"].astype(np.float64), "expected 'x' as float32"),
        ("x", given["x"][:1], "expected 'x' as float32"),
    ):
        with pytest.raises(InputError, match=why):
            loaded.run({**given, name: array})


def _size(artifact: Artifact) -> int:
    return sum(len(data) for name, data in artifact.files.items() if ".mlpackage" in name and isinstance(data, bytes))


def test_segments_share_weights() -> None:
    model = parse(
        "g (float[N, 256] x) => (float[N, 256] y) { a = MatMul(x, w) b = Tanh(a) c = MatMul(b, v) y = Relu(c) }",
        {"w": floats(256, 256, seed=1), "v": floats(256, 256, seed=2)},
    )
    nodes = [node.name or "" for node in model.graph]
    plans = [segment_of(model, nodes[low:high]) for low, high in ((0, 4), (0, 2), (2, 4), (1, 4))]
    options = CompileOptions(dims={"N": 2}, choices={"precision": "fp32"})
    alone = CoremlTarget().compile(model, plans[:1], options)
    assert _size(CoremlTarget().compile(model, plans, options)) <= 1.1 * _size(alone)


_AGAIN = """
import hashlib, json
from tests.targets.mobile.coreml.test_target import _compiled, _model
files = _compiled(_model(), {"weights": "lut4"}, [range(8), range(2, 7)])[0].files
print(json.dumps({name: hashlib.sha256(data).hexdigest() for name, data in files.items()}))
"""


@pytest.mark.slow
def test_the_same_bytes_in_another_process() -> None:
    files = _compiled(_model(), {"weights": "lut4"}, [range(8), range(2, 7)])[0].files
    here = {name: hashlib.sha256(data).hexdigest() for name, data in files.items() if isinstance(data, bytes)}
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        made = subprocess.run(
            [sys.executable, "-c", _AGAIN], env=environment, capture_output=True, text=True, check=True
        )
        assert json.loads(made.stdout) == here


def test_damage_is_said(tmp_path: Path) -> None:
    artifact, (segment,) = _compiled(_model(), {"precision": "fp32"})
    stored = _stored(artifact, tmp_path)
    package = tmp_path / "segments.mlpackage"
    table = tmp_path / "segments.json"
    text = table.read_text()
    for damaged, why in (
        (text.replace(f"segment_{segment}", "segment_x"), "no function"),
        (text.replace('"called": "x"', '"called": "z"'), "is not the one of segments.json"),
    ):
        table.write_text(damaged)
        with pytest.raises(BundleError, match=why):
            CoremlTarget().load(stored, segment, HOST)
    table.write_text(text)
    for name in ("Manifest.json", "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin"):
        file = package / name
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(BundleError):
            CoremlTarget().load(stored, segment, HOST).run(_inputs())
        file.unlink()
        with pytest.raises(BundleError):
            CoremlTarget().load(stored, segment, HOST).run(_inputs())
        file.write_bytes(whole)
    CoremlTarget().load(stored, segment, HOST).run(_inputs())


def test_without_the_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "coremltools", None)
    target = get_target("coreml")
    assert target.describe().extra == "coreml"
    assert target.supports(node_of(_model(), "MatMul")).reason != "there is no lowering of MatMul"
    with pytest.raises(ConfigError, match=r"pip install 'flagsplit\[coreml\]'"):
        _compiled(_model())
    assert "flagsplit[coreml]" in missing_sdk("coreml")


def test_what_it_says_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    told = CoremlTarget().describe()
    assert told.runs_here == ("yes" if executable.HAS_CORE_ML else "emulated")
    assert (told.static_shapes, told.max_rank) == (True, 5)
    assert told.choices["precision"][0] == "fp16"
    for choices, why in (({"precision": "fp8"}, "one of fp16, fp32, mixed"), ({"speed": "1"}, "expected a choice")):
        with pytest.raises(ConfigError, match=why):
            _compiled(_model(), choices)


def test_verdicts() -> None:
    model = parse(
        "g (float[2, 4] x, int64[2] i) => (float[2, 4] y, float[2, 4] z, int64[2] j) "
        "{ y = MatMul(x, w) z = Gather(t, i) j = Mul(i, i) }",
        {"w": floats(4, 4), "t": floats(9, 4)},
    )
    target = CoremlTarget()
    product, look_up, whole = (target.supports(node_of(model, op)) for op in ("MatMul", "Gather", "Mul"))
    assert (product.supported, product.unit, product.confidence) == (True, "accelerator", "high")
    assert "projections" in product.reason
    assert product.extra_bytes == {"x": 64, "y": 64}, "8 floats each, turned there and back"
    assert (look_up.supported, look_up.unit, look_up.confidence) == (True, "cpu", "medium")
    assert "embedding tables" in look_up.reason
    assert (whole.supported, whole.unit) == (True, "cpu")
    odd = parse("g (double[2] x) => (double[2] y) { y = Tanh(x) }")
    refused = target.supports(node_of(odd, "Tanh"))
    assert not refused.supported
    assert "double" in refused.reason


def test_names_that_programs_cannot_have(tmp_path: Path) -> None:
    """Words of the language, names that differ in signs alone, digits in front: each gets a name of its own."""
    names = ("state", "tensor", "main", "_x", "1", "ein/gang", "ein.gang", "größe", "bool")
    values = [f"v{at}" for at in range(len(names))]
    model = parse(
        f"g ({', '.join(f'float[2] {v}' for v in values)}) => (float[2] y) {{ y = Sum({', '.join(values)}) }}"
    )
    for value, name in zip(model.graph.inputs, names, strict=True):
        value.name = name
    model.graph.outputs[0].name = "fp16"
    segment = segment_of(model, [node.name or "" for node in model.graph])
    inputs: dict[str, Array] = {name: floats(2, seed=at) for at, name in enumerate(names)}
    artifact = CoremlTarget().compile(model, [segment], CompileOptions(samples=[inputs]))
    made = CoremlTarget().load(_stored(artifact, tmp_path), segment.id, HOST).run(inputs)
    assert difference(made["fp16"], np.sum(list(inputs.values()), axis=0)) < 1e-2
