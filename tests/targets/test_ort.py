"""ONNX Runtime as a target: what it says of itself, what it takes, what it writes, and how it fails."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from tests.apps import models
from tests.flagir.models import canonical as canonical_of
from tests.flagir.models import run

from flagsplit import flagir
from flagsplit.errors import BundleError, InputError, PolicyError
from flagsplit.flagir import Segment
from flagsplit.targets.catalogue import TARGETS, get_target
from flagsplit.targets.cloud.ort import OrtTarget
from flagsplit.targets.interface import Artifact, CompileOptions, Executable, LoadOptions, StoredArtifact, Target
from flagsplit.targets.onnx_engine import open_onnx

LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"
HERE = LoadOptions(threads=1)


@pytest.fixture
def ort() -> Target:
    return get_target("ort")


def canonical(path: Path, folder: Path) -> ir.Model:
    """The model in `folder`, its weights mapped from the shared file there."""
    model = flagir.read_model(path)
    flagir.canonicalize(model)
    flagir.save(model, folder)
    return model


def halves(model: ir.Model) -> tuple[Segment, ...]:
    """The segments of two tiers: the first half of the nodes, and the rest."""
    names = [node.name or "" for node in model.graph]
    tiers = {name: int(index >= len(names) // 2) for index, name in enumerate(names)}
    return tuple(step.segment for step in flagir.cut_into_steps(model, tiers, 2))


@pytest.fixture
def compiled(ort: Target, tmp_path: Path) -> tuple[tuple[Segment, ...], Artifact]:
    """A small network of 260 kB in two segments, written as the bundle would."""
    model = canonical(models.save(models.wide(layers=4, width=128), tmp_path / "m.onnx"), tmp_path)
    segments = halves(model)
    artifact = ort.compile(model, segments, CompileOptions())
    artifact.store(tmp_path / "out", tmp_path / "weights.bin")
    return segments, artifact


def load(ort: Target, artifact: Artifact, segment: Segment, folder: Path) -> Executable:
    stored = StoredArtifact(folder / "out", artifact.entries, artifact.options, folder / "weights.bin")
    return ort.load(stored, segment.id, HERE)


def test_catalogue() -> None:
    assert "ort" in TARGETS
    with pytest.raises(PolicyError, match=r"expected a target \(.*\bort\b.*\), came 'tpu'"):
        get_target("tpu")


def test_describe(ort: Target) -> None:
    described = ort.describe()
    assert (described.name, described.version) == ("ort", onnxruntime.__version__)
    assert {"float32", "int64", "bool"} <= set(described.dtypes)
    assert described.runs_here == "yes"
    assert not described.static_shapes
    assert described.source
    assert described.confidence == "high"


def test_supports_all_of_a_real_network(ort: Target, tmp_path: Path) -> None:
    model = canonical(LIGHT / "light_squeezenet.onnx", tmp_path)
    assert len(model.graph) > 60
    for node in model.graph:
        verdict = ort.supports(node)
        assert verdict.supported, verdict.reason
        assert verdict.reason == ""


def node(op: str, version: int | None, dtype: ir.DataType | None = None, domain: str = "") -> ir.Node:
    kind = None if dtype is None else ir.TensorType(dtype)
    values = [ir.Value(name=name, type=kind) for name in "xyz"]
    return ir.Node(domain, op, values[:2], outputs=values[2:], version=version)


def batch_first(op: str) -> ir.Node:
    made = node(op, 23, ir.DataType.FLOAT)
    made.attributes.add(ir.AttrInt64("layout", 1))
    return made


def of_one(op: str) -> ir.Node:
    return ir.Node("", op, [ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT))], version=23)


def beside(asked: ir.Node, other: str) -> ir.Node:
    """The node in a graph with another one."""
    ir.Graph([], [], nodes=[asked, ir.Node("", other, [])], opset_imports={"": 23})
    return asked


def within(op: str, inner: ir.Node) -> ir.Node:
    """A node that runs another."""
    body = ir.Graph([], list(inner.outputs), nodes=[inner], opset_imports={"": 23})
    return ir.Node("", op, [ir.Value(name="c")], [ir.AttrGraph("then_branch", body)], version=23)


def test_an_empty_set_of_bools_is_refused(ort: Target) -> None:
    for shape, supported in (([2, 0], False), ([2, 3], True)):
        asked = node("ReduceMax", 23, ir.DataType.BOOL)
        assert asked.inputs[0] is not None
        asked.inputs[0].shape = ir.Shape(shape)
        assert ort.supports(asked).supported is supported


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (node("Foo", 1, domain="com.acme"), "ONNX Runtime has no CPU kernel for com.acme.Foo of opset 1"),
        (node("NoSuch", 23), "ONNX Runtime has no CPU kernel for NoSuch of opset 23"),
        (node("ImageDecoder", 23), "ONNX Runtime has no CPU kernel for ImageDecoder of opset 23"),
        (node("BitShift", 1), "ONNX Runtime has no CPU kernel for BitShift of opset 1"),
        (node("Add", 23, ir.DataType.BFLOAT16), "no CPU kernel for Add of opset 23 on bfloat16"),
        (node("Conv", 23, ir.DataType.DOUBLE), "no CPU kernel for Conv of opset 23 on float64"),
        (beside(node("RoiAlign", 23), "Attention"), "ONNX Runtime has no CPU kernel for RoiAlign of opset 23"),
        (
            beside(node("Bernoulli", 23, ir.DataType.FLOAT), "Attention"),
            "no CPU kernel for RandomUniformLike of opset 23",
        ),
        (within("If", node("Conv", 23, ir.DataType.DOUBLE)), "no CPU kernel for Conv of opset 23 on float64"),
        (batch_first("GRU"), "ONNX Runtime runs no GRU with layout 1, batch first"),
        (batch_first("LSTM"), "ONNX Runtime runs no LSTM with layout 1, batch first"),
    ],
)
def test_a_no_has_its_reason(ort: Target, asked: ir.Node, reason: str) -> None:
    verdict = ort.supports(asked)
    assert not verdict.supported
    assert reason in verdict.reason


@pytest.mark.parametrize(
    "asked",
    [
        node("Add", 23),
        node("Add", 23, ir.DataType.INT16),
        node("Conv", 23, ir.DataType.FLOAT),
        node("Conv", 23, ir.DataType.FLOAT16),
        node("Gelu", 23, ir.DataType.FLOAT),
        node("RoiAlign", 20),
        node("RoiAlign", 23),
        of_one("RandomUniformLike"),
        of_one("Bernoulli"),
        within("If", node("Conv", 23, ir.DataType.FLOAT)),
        within("If", ir.Node("", "Constant", [], version=23)),
        node("LSTM", 23, ir.DataType.FLOAT),
    ],
)
def test_a_yes(ort: Target, asked: ir.Node) -> None:
    assert ort.supports(asked).supported


def test_compile_and_run(ort: Target, compiled: tuple[tuple[Segment, ...], Artifact], tmp_path: Path) -> None:
    segments, artifact = compiled
    assert artifact.entries == {segment.id: f"{segment.id}.onnx" for segment in segments}
    assert set(artifact.files) == set(artifact.entries.values())
    assert artifact.options == {"numerics": "exact"}
    assert all(isinstance(data, bytes) and len(data) < 10_000 for data in artifact.files.values())
    x = np.asarray(np.random.default_rng(0).standard_normal((3, 128))).astype(np.float32)
    held: dict[str, models.Array] = {"y0": x}
    for segment in segments:
        with_weights = load(ort, artifact, segment, tmp_path)
        assert [spec.name for spec in with_weights.inputs] == list(segment.inputs)
        assert [spec.name for spec in with_weights.outputs] == list(segment.outputs)
        assert {spec.dtype for spec in with_weights.inputs + with_weights.outputs} == {"float32"}
        assert with_weights.inputs[0].shape[1] == 128
        held = with_weights.run({name: held[name] for name in segment.inputs})
        with_weights.close()
    expected = models.answers_of(tmp_path / "m.onnx", {"y0": x})
    np.testing.assert_array_equal(held["y4"], expected["y4"])


def test_files_are_plain_onnx(compiled: tuple[tuple[Segment, ...], Artifact], tmp_path: Path) -> None:
    """Any tool opens a segment when the weights file lies beside it."""
    compiled[1].store(tmp_path, tmp_path / "weights.bin")
    for name in compiled[1].files:
        onnx.checker.check_model(str(tmp_path / name))
        loaded = onnx.load(str(tmp_path / name))
        assert sum(onnx.numpy_helper.to_array(each).nbytes for each in loaded.graph.initializer) == 2 * 4 * 128**2
        onnxruntime.InferenceSession(tmp_path / name, providers=["CPUExecutionProvider"])


def test_same_model_same_bytes(ort: Target, tmp_path: Path) -> None:
    made = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        model = canonical(LIGHT / "light_squeezenet.onnx", folder)
        made.append(ort.compile(model, halves(model), CompileOptions("fast")))
    assert made[0] == made[1]
    assert made[0].options == {"numerics": "fast"}


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_damaged_files(
    ort: Target, compiled: tuple[tuple[Segment, ...], Artifact], tmp_path: Path, keep: float
) -> None:
    segments, artifact = compiled
    file = tmp_path / "out" / artifact.entries[segments[0].id]
    data = file.read_bytes()
    file.write_bytes(data[: int(keep if keep >= 1 else keep * len(data))])
    with pytest.raises(BundleError, match=r"ONNX Runtime cannot load .*; build the bundle again") as raised:
        load(ort, artifact, segments[0], tmp_path)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500


def _no_file(folder: Path, file: Path) -> None:
    file.unlink()


def _no_weights(folder: Path, file: Path) -> None:
    (folder / "weights.bin").unlink()


def _few_weights(folder: Path, file: Path) -> None:
    (folder / "weights.bin").write_bytes(b"few")


@pytest.mark.parametrize("damage", [_no_file, _no_weights, _few_weights])
def test_missing_files(
    ort: Target,
    compiled: tuple[tuple[Segment, ...], Artifact],
    tmp_path: Path,
    damage: Callable[[Path, Path], None],
) -> None:
    segments, artifact = compiled
    damage(tmp_path, tmp_path / "out" / artifact.entries[segments[0].id])
    with pytest.raises(BundleError, match="cannot load"):
        load(ort, artifact, segments[0], tmp_path)


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"y0": np.zeros((3, 127), np.float32)},
        {"y0": np.zeros((3, 128))},
        {"y0": np.zeros(128, np.float32)},
        {"other": np.zeros((3, 128), np.float32)},
    ],
)
def test_wrong_tensors(
    ort: Target,
    compiled: tuple[tuple[Segment, ...], Artifact],
    tmp_path: Path,
    tensors: Mapping[str, models.Array],
) -> None:
    segments, artifact = compiled
    executable = load(ort, artifact, segments[0], tmp_path)
    with pytest.raises(InputError, match="ONNX Runtime could not run the model on these inputs") as raised:
        executable.run(tensors)
    assert "\n" not in str(raised.value)
    assert executable.run({"y0": np.zeros((1, 128), np.float32)})
    executable.close()


def test_close_twice(ort: Target, compiled: tuple[tuple[Segment, ...], Artifact], tmp_path: Path) -> None:
    segments, artifact = compiled
    executable = load(ort, artifact, segments[0], tmp_path)
    executable.close()
    executable.close()
    assert executable.inputs


def test_inputs_are_not_changed(ort: Target, compiled: tuple[tuple[Segment, ...], Artifact], tmp_path: Path) -> None:
    segments, artifact = compiled
    executable = load(ort, artifact, segments[0], tmp_path)
    x = np.ones((2, 128), np.float32)
    x.setflags(write=False)
    first = executable.run({"y0": x})
    second = executable.run({"y0": x})
    assert all(np.array_equal(first[name], second[name]) for name in first)
    executable.close()


def test_operators_without_a_kernel_in_this_opset_run_in_an_older_one(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 16]>
    g (float[1, 2, 6, 6] x, float[n, 4] rois, bool c) => (float[n, 2, 2, 2] y) {
        at = Shape <start = 0, end = 1> (rois)
        first = ConstantOfShape <value = int64[1] {0}> (at)
        y = If (c) <
            then_branch = yes () => (float[n, 2, 2, 2] a) {
                s = Sigmoid (x)
                a = RoiAlign <output_height = 2, output_width = 2, coordinate_transformation_mode = "half_pixel">
                    (s, rois, first)
            },
            else_branch = no () => (float[n, 2, 2, 2] b) {
                b = RoiAlign <output_height = 2, output_width = 2, mode = "max"> (x, rois, first)
            }
        >
    }"""
    proto = onnx.parser.parse_model(text)
    model = canonical_of(proto)
    assert all(OrtTarget().supports(node).supported for node in model.graph)
    file = tmp_path / "model.onnx"
    file.write_bytes(flagir.to_bytes(model))
    x = np.asarray(np.random.default_rng(0).standard_normal((1, 2, 6, 6))).astype(np.float32)
    rois = np.array([[0, 0, 4, 4], [1, 2, 5, 5]], np.float32)
    engine = open_onnx(file, None, "exact", 1)
    for chosen in (True, False):
        inputs = {"x": x, "rois": rois, "c": np.array(chosen)}
        made = np.asarray(engine.run(inputs)["y"], np.float64)
        np.testing.assert_allclose(made, run(proto, inputs)[0], rtol=1e-5)
