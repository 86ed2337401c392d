"""What works without Qualcomm's SDK: the description, the verdicts, and errors that say what is missing."""

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
from tests.targets.mobile.qnn.small import model_of, stored

from flagsplit.errors import ConfigError
from flagsplit.targets.interface import CompileOptions
from flagsplit.targets.mobile.qnn import process, table, target
from flagsplit.targets.mobile.qnn.socs import soc_of, socs
from flagsplit.targets.mobile.qnn.target import QnnTarget


@pytest.fixture
def no_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(process, "find_spec", lambda name: None)
    monkeypatch.setattr(metadata, "version", missing)


def _node(operator: str, shape: tuple[int, ...], dtype: ir.DataType = ir.DataType.FLOAT, **attributes: Any) -> ir.Node:
    x = ir.Value(name="x", shape=ir.Shape(shape), type=ir.TensorType(dtype))
    return ir.node(operator, [x], attributes=attributes or None)


@pytest.mark.usefixtures("no_sdk")
def test_described_without_the_sdk(tmp_path: Path) -> None:
    described = QnnTarget().describe()
    assert (described.name, described.extra, described.static_shapes) == ("qnn", "qnn", True)
    assert described.version == "2.7.0"
    assert described.choices["soc"][0] == "SM8650"
    assert QnnTarget().supports(_node("Relu", (1, 8))).supported
    model = model_of("g (float[2, 8] x) => (float[2, 8] y) { y = Relu(x) }")
    with pytest.raises(ConfigError, match=r"the qnn target needs onnxruntime-qnn.*pip install 'flagsplit\[qnn\]'"):
        stored(model, tmp_path)


def test_every_no_has_its_reason() -> None:
    for node, why in (
        (_node("Acosh", (2, 8)), "are not supported by QNN EP"),
        (_node("BatchNormalization", (1, 2, 3, 4, 5)), "ranks of size <= 4"),
        (_node("Relu", (1, 1, 1, 1, 1, 1)), "6 dimensions; the NPU takes 5"),
        (_node("Relu", (2, 8), ir.DataType.DOUBLE), "'x' is float64"),
        (_node("Relu", (2, 0)), "no elements"),
        (_node("Pad", (1, 2, 3, 4), mode="edge"), "mode=edge: gives wrong numbers"),
        (_node("Resize", (1, 2, 3, 4), nearest_mode="floor"), "nearest_mode=floor"),
        (
            _node("AveragePool", (1, 2, 6, 6), kernel_shape=[3, 3], pads=[0, 0, 1, 1], ceil_mode=1),
            "with ceil_mode=1",
        ),
        (_node("Unheard", (2, 8)), "not among the operators that were probed"),
        (_node("DynamicQuantizeLinear", (2, 8)), "build with --float-products"),
        (ir.node("Relu", [], domain="com.example"), "not an operator of the standard"),
    ):
        verdict = QnnTarget().supports(node)
        assert not verdict.supported
        assert why in verdict.reason
        assert verdict.source
    for node in (
        _node("Resize", (1, 2, 3, 4)),
        _node("Pad", (1, 2, 3, 4)),
        _node("Relu", ()),
        _node("Not", (3,), ir.DataType.BOOL),
    ):
        assert QnnTarget().supports(node).supported


def test_a_table_of_another_version_counts_for_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAGSPLIT_CACHE", str(tmp_path))
    monkeypatch.setattr(target, "installed_version", lambda: "2.7.99")
    table.support_table.cache_clear()
    assert QnnTarget().supports(_node("Relu", (2, 8))).confidence == "low"
    table.support_table.cache_clear()
    rows = {"Relu": {"types": {"float32": {"yes": [], "no": {"it went away": [2]}}}}}
    kept = table.kept_file("2.7.99")
    kept.parent.mkdir(parents=True)
    kept.write_text(json.dumps({"version": "2.7.99", "tables": [{"socs": ["SM8650"], "operators": rows}]}))
    verdict = QnnTarget().supports(_node("Relu", (2, 8)))
    assert (verdict.supported, verdict.confidence) == (False, "high")
    assert "it went away" in verdict.reason
    table.support_table.cache_clear()


def test_the_system_on_a_chip_is_chosen_or_the_devices() -> None:
    assert soc_of(CompileOptions()).name == "SM8650"
    assert soc_of(CompileOptions(device="galaxy-s24")) == socs()["SM8650"]
    assert soc_of(CompileOptions(device="galaxy-s23")).architecture == 73
    assert soc_of(CompileOptions(device="pixel8", choices={"soc": "SM8750"})).model == 69
    with pytest.raises(ConfigError, match="does not know which Snapdragon 'pixel8' has"):
        soc_of(CompileOptions(device="pixel8"))
    with pytest.raises(ConfigError, match="came 'SM1'"):
        soc_of(CompileOptions(choices={"soc": "SM1"}))
    with pytest.raises(ConfigError, match="precision as one of fp16, qdq, came 'fp7'"):
        QnnTarget().compile_parts([], CompileOptions(choices={"precision": "fp7"}))


def test_a_host_that_is_neither_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert QnnTarget().describe().runs_here == "no"
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("sys.platform", "darwin")
    assert QnnTarget().describe().runs_here == "no"
