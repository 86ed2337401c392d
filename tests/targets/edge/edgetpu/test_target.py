"""Segments for the Edge TPU: what is refused, what the files hold, and that they answer as ONNX Runtime."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from tests.flagir.quantization.engine import run
from tests.flagir.quantization.test_quantize import _pictures, _small
from tests.targets.edge.edgetpu.test_compiler import stand_in
from tests.targets.tflite.int8_parts import canonical, int8_part, off_by_one_step, samples_of

from flagsplit import flagir
from flagsplit.errors import ConfigError, ModelError
from flagsplit.flagir.quantization import QuantizeOptions, quantize
from flagsplit.flagir.segments import segment_of
from flagsplit.targets.catalogue import get_target
from flagsplit.targets.edge.edgetpu import target as edgetpu
from flagsplit.targets.edge.edgetpu.facts import refusal_of
from flagsplit.targets.edge.edgetpu.forms import lowered
from flagsplit.targets.edge.edgetpu.verdicts import QUANTIZE_FIRST
from flagsplit.targets.interface import Array, Artifact, CompileOptions, LoadOptions, TensorSpec
from flagsplit.targets.segment_table import SegmentTable

TARGET = edgetpu.EdgetpuTarget()


def int8_model(body: str, inputs: str, outputs: str, constants: str = "") -> ir.Model:
    model = canonical(body, inputs, outputs, constants)
    return quantize(model, samples_of(model, 6), run, QuantizeOptions(min_cosine=-1)).model


@pytest.fixture(scope="module")
def network() -> ir.Model:
    return quantize(_small(), _pictures(8), run).model


def compiled(model: ir.Model, names: list[str] | None = None, **choices: str) -> tuple[str, Artifact]:
    """All of a model as one segment, or some of its nodes."""
    segment = segment_of(model, names or [node.name or "" for node in model.graph])
    return segment.id, TARGET.compile(model, [segment], CompileOptions(choices=choices))


def answered(made: tuple[str, Artifact], folder: Path, tensors: dict[str, Array]) -> dict[str, Array]:
    segment, artifact = made
    loaded = TARGET.load(artifact.store(folder, folder / "none"), segment, LoadOptions(threads=1))
    try:
        return loaded.run(tensors)
    finally:
        loaded.close()


def report(artifact: Artifact) -> dict[str, Any]:
    data = artifact.files["edgetpu.json"]
    assert isinstance(data, bytes)
    (found,) = json.loads(data)["segments"].values()
    return dict(found)


def test_it_is_in_the_catalogue_and_says_that_it_is_emulated() -> None:
    about = get_target("edgetpu").describe()
    assert (about.name, about.extra, about.runs_here) == ("edgetpu", "edgetpu", "emulated")
    assert about.static_shapes


@pytest.mark.parametrize("devices", ["1", "2", "4"])
def test_a_network_answers_as_in_onnx_runtime(network: ir.Model, devices: str, tmp_path: Path) -> None:
    made = compiled(network, devices=devices)
    sample = _pictures(1, 5)[0]
    wanted = next(iter(run(network, [sample])))
    assert off_by_one_step(network, answered(made, tmp_path, sample), wanted)
    parts = report(made[1])["parts"]
    assert isinstance(parts, list)
    assert all(each["mapped"] == each["operators"] and each["stopped_by"] is None for each in parts)
    assert len(parts) <= int(devices)


def test_the_host_quantizes_and_puts_channels_last(network: ir.Model) -> None:
    segment, artifact = compiled(network)
    data = artifact.files["segments.json"]
    assert isinstance(data, bytes)
    calls = SegmentTable.model_validate_json(data).segments[segment]
    assert calls.chip is not None
    assert [(each.dtype, each.shape) for each in calls.chip.inputs] == [("int8", [1, 12, 12, 3])]
    assert [(each.dtype, each.shape) for each in calls.chip.outputs] == [("int8", [1, 5])]
    assert len(calls.before) == 1
    assert len(calls.after) == 1


def test_channels_come_out_last_too_and_the_host_puts_them_back(tmp_path: Path) -> None:
    model = int8_model("r = Add(x, x) y = MaxPool<kernel_shape=[2,2]>(r)", "float[1,4,6,6] x", "float[1,4,5,5] y")
    made = compiled(model)
    sample = samples_of(model, 1, 4)[0]
    assert off_by_one_step(model, answered(made, tmp_path, sample), next(iter(run(model, [sample]))))
    data = made[1].files["segments.json"]
    assert isinstance(data, bytes)
    chip = SegmentTable.model_validate_json(data).segments[made[0]].chip
    assert chip is not None
    assert [each.shape for each in (*chip.inputs, *chip.outputs)] == [[1, 6, 6, 4], [1, 5, 5, 4]]


def test_a_segment_may_begin_and_end_at_int8(network: ir.Model, tmp_path: Path) -> None:
    names = [node.name or "" for node in network.graph]
    kinds = [node.op_type for node in network.graph]
    first = kinds.index("MaxPool")
    last = max(at for at, kind in enumerate(kinds) if kind == "Concat")
    begin = max(at for at in range(first) if kinds[at] == "DequantizeLinear")
    some = segment_of(network, names[begin : last + 2])
    whole = flagir.extract(network, segment_of(network, names))
    artifact = TARGET.compile(network, [some], CompileOptions())
    assert report(artifact)
    loaded = TARGET.load(artifact.store(tmp_path, tmp_path / "none"), some.id, LoadOptions(threads=1))
    assert loaded.inputs[0].dtype == "int8"
    part = flagir.extract(network, some)
    given = {spec.name: _noise(spec) for spec in loaded.inputs}
    wanted, came = next(iter(run(part, [given]))), loaded.run(given)
    loaded.close()
    assert whole.graph.name
    for name, array in wanted.items():
        assert np.abs(came[name].astype(np.float64) - array).max() <= 1


def test_what_crosses_as_floating_point_is_the_same_integers_again(tmp_path: Path) -> None:
    """The value before a shortcut is read on both sides of the cut, so that its integers were taken back already."""
    model = int8_model(
        "a = Relu(x) c = Conv<pads=[1,1,1,1]>(a, w) y = Add(c, a)",
        "float[1,2,6,6] x",
        "float[1,2,6,6] y",
        f"float[2,2,3,3] w = {{{', '.join(str(0.1 * at - 1.5) for at in range(36))}}}",
    )
    names = [node.name or "" for node in model.graph]
    kinds = [node.op_type for node in model.graph]
    at = kinds.index("Conv") + 2  # with the QuantizeLinear behind it
    first, second = segment_of(model, names[:at]), segment_of(model, names[at:])
    assert "a" in second.inputs
    artifact = TARGET.compile(model, [first, second], CompileOptions())
    stored = artifact.store(tmp_path, tmp_path / "none")
    values = samples_of(model, 1, 7)[0]
    for segment in (first, second):
        loaded = TARGET.load(stored, segment.id, LoadOptions(threads=1))
        values |= loaded.run({spec.name: values[spec.name] for spec in loaded.inputs})
        loaded.close()
    wanted = next(iter(run(model, samples_of(model, 1, 7))))
    assert off_by_one_step(model, {"y": values["y"]}, wanted)
    data = artifact.files["segments.json"]
    assert isinstance(data, bytes)
    chip = SegmentTable.model_validate_json(data).segments[second.id].chip
    assert chip is not None
    assert {each.dtype for each in (*chip.inputs, *chip.outputs)} == {"int8"}


def _noise(spec: TensorSpec) -> Array:
    shape = [int(size) for size in spec.shape]
    return np.random.default_rng(3).integers(-128, 128, shape).astype(np.int8)


def test_floating_point_is_told_to_be_quantized_first() -> None:
    for node in _small().graph:
        verdict = TARGET.supports(node)
        assert not verdict.supported
        assert verdict.reason == QUANTIZE_FIRST


def test_all_nodes_of_a_quantized_network_are_taken(network: ir.Model) -> None:
    assert [node.name for node in network.graph if not TARGET.supports(node).supported] == []


REFUSED = {
    "left in floating point": ("a = Add(x, x) e = Erf(a) y = Add(e, e)", "float[1,5] x", "float[1,5] y", "", "Erf", ""),
    "products of activations": (
        "y = MatMul(x, z)",
        "float[1,3,4] x, float[1,4,5] z",
        "float[1,3,5] y",
        "",
        "MatMul",
        "BATCH_MATMUL",
    ),
    "a batch": ("y = Mul(x, x)", "float[2,3,4,5] x", "float[2,3,4,5] y", "", "Mul", "three innermost"),
    "many softmaxes": ("y = Softmax<axis=-1>(x)", "float[3,7] x", "float[3,7] y", "", "Softmax", "one dimension"),
    "strides": (
        "r = Add(x, x) y = Slice(r, a, e, d, t)",
        "float[1,4,6,6] x",
        "float[1,4,3,6] y",
        "int64[1] a = {0}, int64[1] e = {6}, int64[1] d = {2}, int64[1] t = {2}",
        "Slice",
        "strides",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_node_is_refused_with_its_reason(name: str, tmp_path: Path) -> None:
    body, inputs, outputs, constants, op_type, reason = REFUSED[name]
    model = int8_model(body, inputs, outputs, constants)
    (node,) = (each for each in model.graph if each.op_type == op_type)
    verdict = TARGET.supports(node)
    assert not verdict.supported
    assert reason in verdict.reason
    with pytest.raises(ModelError, match="all after it would run on the CPU"):
        compiled(model)
    assert not list(tmp_path.iterdir())


FORMS = {
    "hard swish": ("y = HardSwish(x)", "float[1,4,6,6] x", "float[1,4,6,6] y", "", {"ADD": 1, "MUL": 2}),
    "leaky": (
        "y = LeakyRelu<alpha=0.1>(x)",
        "float[1,4,6,6] x",
        "float[1,4,6,6] y",
        "",
        {"QUANTIZE": 1, "MUL": 1, "MAXIMUM": 1},
    ),
    "rows": (
        "y = MatMul(x, w)",
        "float[1,3,4] x",
        "float[1,3,2] y",
        "float[4,2] w = {1, -2, 0.5, 3, 0.1, 0.7, -1, 2}",
        {"RESHAPE": 2, "CONV_2D": 1},
    ),
    "flattened": (
        "m = MaxPool<kernel_shape=[2,2]>(x) f = Flatten(m) y = MatMul(f, w)",
        "float[1,2,3,3] x",
        "float[1,2] y",
        "float[8,2] w = {1, -2, 0.5, 3, 0.1, 0.7, -1, 2, 1.5, -1, 0.3, 2, 0.2, 0.9, -2, 1}",
        {"MAX_POOL_2D": 1, "RESHAPE": 3, "CONV_2D": 1},
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_what_it_lacks_is_written_in_what_it_has(name: str, tmp_path: Path) -> None:
    body, inputs, outputs, constants, wanted = FORMS[name]
    model = int8_model(body, inputs, outputs, constants)
    made = compiled(model)
    sample = samples_of(model, 1, 4)[0]
    assert off_by_one_step(model, answered(made, tmp_path, sample), next(iter(run(model, [sample]))), most=2.01)
    program = lowered(int8_part(body, inputs, outputs, constants))
    found = [each.code for each in program.operators if refusal_of(each) is None]
    assert {code: found.count(code) for code in wanted} == wanted


@pytest.fixture
def with_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    stand_in(folder, monkeypatch)
    return tmp_path


@pytest.mark.usefixtures("with_compiler")
def test_what_the_compiler_makes_and_says_is_in_the_artifact(network: ir.Model) -> None:
    segment, artifact = compiled(network)
    made, plain = artifact.files[f"{segment}_edgetpu.tflite"], artifact.files[f"{segment}.tflite"]
    assert isinstance(made, bytes)
    assert isinstance(plain, bytes)
    assert made == plain + b"compiled"
    assert artifact.options["compiler"] == "16.0.384591198"
    (said,) = report(artifact)["compiler"]
    assert said["mapped"] == 4
    assert said["left"]["GATHER"] == "Operation not supported"


def test_choices_that_there_are_not() -> None:
    model = int8_model("y = Tanh(x)", "float[1,5] x", "float[1,5] y")
    with pytest.raises(ConfigError, match="devices from 1 to 8"):
        compiled(model, devices="9")
    with pytest.raises(ConfigError, match="the choices devices"):
        compiled(model, chips="2")
    with pytest.raises(ConfigError, match="computes in int8"):
        compiled(model, precision="fp16")
