"""What the host does beside a chip, on real bundles: codecs, constants, inputs handed on; and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tests.apps import lossy
from tests.targets.onnx_chip import OnnxChip

from flagsplit import flagir
from flagsplit.apps.plan_graphs import cut_plans
from flagsplit.errors import BundleError, ModelError
from flagsplit.flagir.segments import segment_of
from flagsplit.runtime.bundle import GRAPH_NAME, WEIGHTS_MEMBER, Bundle
from flagsplit.targets.interface import Array, CompileOptions, LoadOptions, StoredArtifact
from flagsplit.targets.segment_table import read_table

HOST = LoadOptions(threads=1)


class OnChip:
    """Every segment of a bundle, compiled for the chip as well."""

    def __init__(self, bundle: Bundle, folder: Path, *, pieces: bool = False) -> None:
        self.bundle = bundle
        dims = dict(bundle.facts.nominal_dims)
        model = flagir.load((bundle.folder / GRAPH_NAME).parent)
        for plan in flagir.plans_on(model):
            model.remove_device_configuration(plan, cascade=True)
        graphs = cut_plans(model, flagir.block_graph(model, dims), bundle.plans.pool.plans)
        segments = {step.segment.id: step.segment for steps in graphs.steps.values() for step in steps}
        weights = bundle.folder / WEIGHTS_MEMBER
        self.chip = OnnxChip(pieces=pieces)
        artifact = self.chip.compile(graphs.model, list(segments.values()), CompileOptions(dims=dims))
        self.stored = artifact.store(folder, weights)

    def check(self, plan: str, x: Array) -> None:
        """Every step of a plan gives what ONNX Runtime gives."""
        values = {"x": x}
        for step in self.bundle.plans.steps[plan]:
            given = {name: values[name] for name in step.inputs}
            reference = self.bundle.load(step.tier, step.segment, HOST)
            loaded = self.chip.load(self.stored, step.segment, HOST)
            assert [spec.name for spec in loaded.inputs] == list(step.inputs)
            expected, came = reference.run(given), loaded.run(given)
            assert list(came) == list(step.outputs)
            for name, array in expected.items():
                assert came[name].dtype == array.dtype
                np.testing.assert_array_equal(came[name], array)
            values.update(expected)
            loaded.close()


@pytest.mark.slow
@pytest.mark.parametrize(("codec", "pieces"), [("u8", True), *((codec, False) for codec in ("none", *lossy.CODECS))])
def test_codecs_stay_with_the_host(tmp_path: Path, codec: str, pieces: bool) -> None:
    line = OnChip(lossy.build_with(tmp_path, codec), tmp_path / "chip", pieces=pieces)
    assert {node.domain for part in line.chip.parts for node in part.model.graph} == {""}
    for plan in lossy.PLACES:
        line.check(plan, lossy.inputs_of(1)["x"])


def _model(text: str) -> ir.Model:
    import onnx

    model = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    flagir.canonicalize(model)
    return model


_SHAPES = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 4] x, float[N, 4] y) => (float[N, 2, 2] r, float[N, 4] same, int64[2] size) {
    [s] size = Shape(x)
    [n] n = Slice(size, zero, one)
    [t] wanted = Concat <axis = 0> (n, two, two)
    [a] a = Relu(x)
    [r] r = Reshape(a, wanted)
    [i] same = Identity(y)
}"""


def _with_numbers(text: str) -> str:
    return text.replace(
        "{\n    [s]",
        "<int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}>\n{\n    [s]",
    )


def test_sizes_inputs_and_constants_are_the_hosts(tmp_path: Path) -> None:
    """`size` is a constant once N is known, `same` an input as it came; the chip reshapes to a constant shape."""
    model = _model(_with_numbers(_SHAPES))
    chip = OnnxChip()
    nodes = [node.name or "" for node in model.graph]
    whole, late = segment_of(model, nodes), segment_of(model, [n for n in nodes if n in ("a", "r")])
    assert len(late.inputs) == 2, "x, and the shape that was computed elsewhere"
    artifact = chip.compile(model, [whole, late], CompileOptions(dims={"N": 3}))
    assert [[node.op_type for node in part.model.graph] for part in chip.parts] == [["Relu", "Reshape"]] * 2
    assert [[value.name for value in part.model.graph.inputs] for part in chip.parts] == [["x"], ["x"]]
    stored = artifact.store(tmp_path, tmp_path / "weights.bin")
    x, y = (np.random.default_rng(at).standard_normal((3, 4)).astype(np.float32) for at in range(2))
    loaded = chip.load(stored, whole.id, HOST)
    made = loaded.run({"x": x, "y": y})
    np.testing.assert_array_equal(made["r"], np.maximum(x, 0).reshape(3, 2, 2))
    np.testing.assert_array_equal(made["same"], y)
    np.testing.assert_array_equal(made["size"], [3, 4])
    given = {name: np.array([3, 2, 2]) if name != "x" else x for name in late.inputs}
    np.testing.assert_array_equal(chip.load(stored, late.id, HOST).run(given)["r"], made["r"])


def test_a_cut_inside_of_shape_arithmetic(tmp_path: Path) -> None:
    """What crosses the cut is a constant that the folded model has no use for."""
    model = _model(_with_numbers(_SHAPES))
    late = segment_of(model, [node.name or "" for node in model.graph if node.name in ("t", "a", "r")])
    assert sorted(late.inputs) == ["n", "x"]
    chip = OnnxChip()
    stored = chip.compile(model, [late], CompileOptions(dims={"N": 3})).store(tmp_path, tmp_path / "weights.bin")
    assert [node.op_type for node in chip.parts[0].model.graph] == ["Relu", "Reshape"]
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    made = chip.load(stored, late.id, HOST).run({"x": x, "n": np.array([3])})
    np.testing.assert_array_equal(made["r"], x.reshape(3, 2, 2))


_LAYERS = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 4] x) => (float[N, 4] y, int64[2] size) {
    [a] a = Relu(x)
    [b] b = Neg(a)
    [s] size = Shape(b)
    [c] c = Add(a, b)
    [d] d = Abs(c)
    [y] y = Sub(d, a)
}"""


def test_overlapping_segments_in_pieces(tmp_path: Path) -> None:
    """Every node is compiled once, whatever segments have it; what they give stays the same."""
    model = _model(_LAYERS)
    segments = [segment_of(model, names) for names in ("abscdy", "abs", "cdy", "abscd")]
    chip = OnnxChip(pieces=True)
    artifact = chip.compile(model, segments, CompileOptions(dims={"N": 3}))
    assert set(artifact.entries) == {segment.id for segment in segments}
    compiled = [node.name or "" for part in chip.parts for node in part.model.graph]
    assert sorted(compiled) == ["a", "b", "c", "d", "y"]
    stored = artifact.store(tmp_path, tmp_path / "weights.bin")
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    a = np.maximum(x, 0)
    values = {"x": x, "a": a, "b": -a, "c": a - a, "d": a - a, "y": -a, "size": np.array([3, 4])}
    for segment in segments:
        loaded = chip.load(stored, segment.id, HOST)
        assert [spec.name for spec in loaded.inputs] == list(segment.inputs)
        made = loaded.run({name: values[name] for name in segment.inputs})
        assert list(made) == list(segment.outputs)
        for name, array in made.items():
            np.testing.assert_array_equal(array, values[name])
        loaded.close()


def test_one_piece_that_gives_more_than_its_segment(tmp_path: Path) -> None:
    """`a` is read elsewhere, but this segment does not send it: after a codec another value goes in its place."""
    model = _model(_LAYERS)
    narrow, late = replace(segment_of(model, "abs"), outputs=("size",)), segment_of(model, "cdy")
    chip = OnnxChip(pieces=True)
    stored = chip.compile(model, [narrow, late], CompileOptions(dims={"N": 3})).store(
        tmp_path, tmp_path / "weights.bin"
    )
    made = chip.load(stored, narrow.id, HOST).run({"x": np.zeros((3, 4), np.float32)})
    assert list(made) == ["size"]
    np.testing.assert_array_equal(made["size"], [3, 4])


def test_damaged_pieces_are_said(tmp_path: Path) -> None:
    model = _model(_LAYERS)
    whole, head = segment_of(model, "abscdy"), segment_of(model, "abs")
    chip = OnnxChip(pieces=True)
    artifact = chip.compile(model, [whole, head], CompileOptions(dims={"N": 3}))
    stored = artifact.store(tmp_path, tmp_path / "weights.bin")
    table = json.loads((tmp_path / "segments.json").read_text())
    pieces = table["segments"][whole.id]["pieces"]
    for name, why in (("gone", "does not tell of segment 'gone'"), (whole.id, "is in pieces itself")):
        table["segments"][whole.id]["pieces"] = [*pieces[:1], name]
        (tmp_path / "segments.json").write_text(json.dumps(table))
        with pytest.raises(BundleError, match=why):
            chip.load(stored, whole.id, HOST)


def test_a_shape_that_depends_on_data_is_refused() -> None:
    model = _model("""<ir_version: 8, opset_import: ["" : 17]>
g (float[N] x) => (float[M] y) {
    [c] c = Greater(x, x)
    [k] k = Compress(x, c)
    [y] y = Relu(k)
}""")
    nodes = [node.name or "" for node in model.graph]
    for names in (nodes, nodes[-1:]):
        with pytest.raises(ModelError, match="depends on data"):
            OnnxChip().compile(model, [segment_of(model, names)], CompileOptions(dims={"N": 3}))


def test_damage_is_said(tmp_path: Path) -> None:
    model = _model(_with_numbers(_SHAPES))
    segment = segment_of(model, [node.name or "" for node in model.graph])
    chip = OnnxChip()
    stored = chip.compile(model, [segment], CompileOptions(dims={"N": 3})).store(tmp_path, tmp_path / "weights.bin")
    table = tmp_path / "segments.json"
    assert set(read_table(table).segments) == {segment.id}
    with pytest.raises(BundleError, match="no artifact"):
        chip.load(stored, "nonsense", HOST)
    text = table.read_text()
    for damaged, why in (
        (text.replace(segment.id, "other"), "does not tell"),
        (text.replace("host/", "../../host/"), "outside"),
        (text[:100], "damaged"),
        (text.replace('"shape"', '"form"'), "damaged"),
    ):
        table.write_text(damaged)
        with pytest.raises(BundleError, match=why):
            chip.load(stored, segment.id, HOST)
    table.unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        chip.load(StoredArtifact(stored.folder, stored.entries, {}, stored.weights), segment.id, HOST)
