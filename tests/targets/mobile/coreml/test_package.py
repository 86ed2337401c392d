"""The written package: what is in it, that equal weights are in it once, and that it is the same each time."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.targets.mobile.coreml import programs
from tests.targets.mobile.coreml.graphs import difference, floats

from flagsplit.targets.mobile.coreml.compression import compress
from flagsplit.targets.mobile.coreml.package import PACKAGE
from flagsplit.targets.mobile.coreml.sdk import import_sdk

WEIGHT = floats(32, 64, 3, 3, scale=0.1)
WEIGHTS_FILE = f"{PACKAGE}/Data/com.apple.CoreML/weights/weight.bin"


def _conv(*, relu: bool = False, fp16: bool = False) -> Any:
    def body(mb: Any, given: Any) -> Any:
        y = mb.conv(x=given["x"], weight=WEIGHT, name="c")
        return mb.relu(x=y, name="y") if relu else y

    return programs.build({"x": (1, 64, 8, 8)}, body, fp16=fp16)


def test_functions_share_equal_weights(tmp_path: Path) -> None:
    one = programs.write(tmp_path / "one", {"a": _conv()})
    two = programs.write(tmp_path / "two", {"a": _conv(), "b": _conv(relu=True)})
    assert two[WEIGHTS_FILE] == one[WEIGHTS_FILE]
    assert len(one[WEIGHTS_FILE]) < WEIGHT.nbytes + 4096
    x = {"x": floats(1, 64, 8, 8)}
    package = programs.load(tmp_path / "two")
    assert package.functions == ("a", "b")
    (plain,) = package.function("a").run(x).values()
    (cut,) = package.function("b").run(x).values()
    assert plain.min() < 0
    np.testing.assert_array_equal(np.maximum(plain, 0), cut)


def test_other_weights_are_not_shared(tmp_path: Path) -> None:
    """Equal bytes of another element type are other weights."""
    files = programs.write(tmp_path / "both", {"a": _conv(), "b": _conv(fp16=True)})
    assert len(files[WEIGHTS_FILE]) > 1.45 * WEIGHT.nbytes


def test_the_same_bytes_each_time(tmp_path: Path) -> None:
    made = [programs.write(tmp_path / str(at), {"a": _conv(), "b": _conv(relu=True)}) for at in range(2)]
    assert made[0] == made[1]
    manifest = json.loads(made[0][f"{PACKAGE}/Manifest.json"])
    paths = sorted(item["path"] for item in manifest["itemInfoEntries"].values())
    assert paths == ["com.apple.CoreML/model.mlmodel", "com.apple.CoreML/weights"]
    root = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]
    assert root["name"] == "model.mlmodel"


@pytest.mark.parametrize("convolved", [False, True], ids=["alone", "after a convolution"])
def test_scales_stay_what_they_are(tmp_path: Path, convolved: bool) -> None:
    """Of each channel, scaled and shifted again and again: no pass may take an epsilon into the scale."""
    scales, shifts = floats(8, 4, 1, 1, scale=0.2) + 1, floats(8, 4, 1, 1, seed=1)
    kernel = np.eye(4, dtype=np.float32).reshape(4, 4, 1, 1)

    def body(mb: Any, given: Any) -> Any:
        y = mb.conv(x=given["x"], weight=kernel) if convolved else given["x"]
        for at in range(8):
            y = mb.add(x=mb.mul(x=y, y=scales[at]), y=shifts[at])
        return mb.relu(x=y, name="y")

    programs.write(tmp_path, {"a": programs.build({"x": (1, 4, 3, 3)}, body)})
    x = floats(1, 4, 3, 3, seed=2)
    wanted = x.astype(np.float64)
    for at in range(8):
        wanted = wanted * scales[at] + shifts[at]
    (made,) = programs.load(tmp_path).function("a").run({"x": x}).values()
    assert difference(made, np.maximum(wanted, 0)) <= 5e-7


@pytest.mark.parametrize(
    ("how", "bytes_each", "worst"), [("full", 4.0, 1e-6), ("int8", 1.0, 0.01), ("int4", 0.5, 0.17), ("lut4", 0.5, 0.17)]
)
@pytest.mark.parametrize("kind", ["conv", "linear", "matmul", "deconv", "look-up", "look-up by vectors"])
def test_compressed_weights(tmp_path: Path, how: str, bytes_each: float, worst: float, kind: str) -> None:
    weights = {
        "conv": floats(64, 64, 1, 1),
        "linear": floats(96, 64),
        "matmul": floats(64, 96),
        "deconv": floats(64, 32, 2, 2),
        "look-up": floats(40, 64),
        "look-up by vectors": floats(40, 64),
    }
    weight = weights[kind] * np.linspace(0.1, 2, weights[kind].shape[0], dtype=np.float32).reshape(
        [-1] + [1] * (weights[kind].ndim - 1)
    )

    def body(mb: Any, given: Any) -> Any:
        x = given["x"]
        if kind == "conv":
            return mb.conv(x=x, weight=weight, name="y")
        if kind == "linear":
            return mb.linear(x=x, weight=weight, name="y")
        if kind == "matmul":
            return mb.matmul(x=x, y=weight, name="y")
        if kind == "deconv":
            return mb.conv_transpose(x=x, weight=weight, strides=[2, 2], name="y")
        rows = mb.cast(x=x, dtype="int32")
        if kind == "look-up":
            return mb.gather(x=weight, indices=rows, axis=0, name="y")
        return mb.gather_nd(x=weight, indices=mb.expand_dims(x=rows, axes=[1]), name="y")

    sizes = {"conv": (1, 64, 4, 4), "deconv": (1, 64, 4, 4), "look-up": (12,), "look-up by vectors": (12,)}.get(
        kind, (5, 64)
    )
    x = np.arange(12, dtype=np.float32) if kind.startswith("look-up") else floats(*sizes, seed=1)
    answers = []
    for at, way in enumerate(("full", how)):
        program = programs.build({"x": sizes}, body)
        compress(program, way)
        files = programs.write(tmp_path / str(at), {"f": program})
        (answer,) = programs.load(tmp_path / str(at)).function("f").run({"x": x}).values()
        answers.append(answer)
    overhead = 600 + weight.size * 0.15
    assert len(files[WEIGHTS_FILE]) <= weight.size * bytes_each + overhead
    error = difference(answers[1], answers[0])
    assert error <= worst
    assert (error > 0) == (how != "full")


def test_small_weights_stay(tmp_path: Path) -> None:
    def small() -> Any:
        return programs.build({"x": (5, 8)}, lambda mb, given: mb.linear(x=given["x"], weight=floats(8, 8), name="y"))

    program = small()
    compress(program, "int4")
    assert programs.write(tmp_path / "a", {"f": program}) == programs.write(tmp_path / "b", {"f": small()})


def test_equal_constants_are_told_once(tmp_path: Path) -> None:
    """Two convolutions say the same strides, paddings and groups; two of other strides do not."""

    def convs(strides: int) -> Any:
        def body(mb: Any, given: Any) -> Any:
            y = mb.conv(x=given["x"], weight=WEIGHT[:, :32], name="c")
            return mb.conv(x=y, weight=WEIGHT[:, :32], strides=[strides, strides], name="d")

        return programs.build({"x": (1, 32, 8, 8)}, body)

    files = programs.write(tmp_path, {"same": convs(1), "other": convs(2)})
    spec = import_sdk().proto.Model_pb2.Model()
    spec.ParseFromString(files[f"{PACKAGE}/Data/com.apple.CoreML/model.mlmodel"])
    counts = {}
    for name, function in spec.mlProgram.functions.items():
        (block,) = function.block_specializations.values()
        counts[name] = sum(operation.type == "const" for operation in block.operations)
    assert counts["other"] == counts["same"] + 1
    shapes = {name: made.shape for name in counts for made in _run(tmp_path, name, floats(1, 32, 8, 8)).values()}
    assert shapes == {"same": (1, 32, 4, 4), "other": (1, 32, 2, 2)}


def _run(folder: Path, name: str, x: Any) -> Any:
    return programs.load(folder).function(name).run({"x": x})
