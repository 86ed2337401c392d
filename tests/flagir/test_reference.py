"""The reference of a plan: one valid model with one plan, that answers what the split run answers."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from tests.flagir.models import Array, canonical, inputs_for, parse, run, with_weights
from tests.flagir.test_segments import run_steps

from flagsplit.errors import ConfigError, ModelError
from flagsplit.flagir import cut_into_steps, load, plans_on, read_placement, save, to_bytes, write_placement
from flagsplit.flagir.codecs import BoundaryCut
from flagsplit.flagir.reference import reference, write_reference

TEXT = """g (float[N, 3, 8, 8] x) => (float[N, 4] y, float[N, 8, 8, 8] z) {
    a = Conv <pads = [1, 1, 1, 1]> (x, k) z = Relu(a) p = GlobalAveragePool(z) f = Flatten(p) y = MatMul(f, w) }"""
CUTS = [BoundaryCut("z", 0, 1, "u8_per_channel")]


@pytest.fixture
def model() -> ir.Model:
    made = canonical(with_weights(parse(TEXT), k=(8, 3, 3, 3), w=(8, 4)))
    nodes = [node.name or "" for node in made.graph]
    write_placement(made, "split", ["phone", "cloud"], dict(zip(nodes, [0, 0, 1, 1, 1], strict=True)))
    write_placement(made, "all-phone", ["phone", "cloud"], dict.fromkeys(nodes, 0))
    return made


def answers(path: Path, inputs: dict[str, Array]) -> list[Array]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    found: list[Array] = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, inputs)
    return found


@pytest.mark.parametrize("most_inline_bytes", [1 << 30, 100])
def test_any_tool_opens_it_and_it_is_the_split_run(model: ir.Model, tmp_path: Path, most_inline_bytes: int) -> None:
    before = to_bytes(model)
    made = reference(model, "split", CUTS)
    files = write_reference(made, tmp_path / "r.onnx", most_inline_bytes=most_inline_bytes)
    assert to_bytes(model) == before
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert [file.name for file in files] == ["r.onnx", "r.onnx.data"][: 1 + (most_inline_bytes == 100)]
    onnx.checker.check_model(files[0], full_check=True)
    assert plans_on(made) == {"split": ("phone", "cloud")}
    assert all(len(node.device_configurations) == 1 for node in made.graph)
    inputs = inputs_for(ir.to_proto(made))
    steps = cut_into_steps(made, read_placement(made, "split"), 2)
    split = run_steps(made, steps, inputs, optimize=False)
    for one, other in zip(answers(files[0], inputs), split, strict=True):
        np.testing.assert_array_equal(one, other)


def test_without_codecs_it_is_the_model(model: ir.Model, tmp_path: Path) -> None:
    made = reference(model, "all-phone")
    assert made.functions == {}
    (path,) = write_reference(made, tmp_path / "r.onnx")
    inputs = inputs_for(ir.to_proto(model))
    for one, other in zip(answers(path, inputs), run(ir.to_proto(model), inputs, optimize=False), strict=True):
        np.testing.assert_array_equal(one, other)


def test_mapped_weights_go_into_the_one_file(model: ir.Model, tmp_path: Path) -> None:
    folder = tmp_path / "stored"
    folder.mkdir()
    save(model, folder)
    stored = load(folder)
    made = reference(stored, "split", CUTS)
    assert made.graph.initializers["k"].const_value is stored.graph.initializers["k"].const_value
    write_reference(made, tmp_path / "one.onnx")
    write_reference(reference(model, "split", CUTS), tmp_path / "two.onnx")
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()


def test_what_is_refused(model: ir.Model, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="one of the plans split, all-phone, came 'other'"):
        reference(model, "other")
    with pytest.raises(ModelError, match="no node there reads it"):
        reference(model, "all-phone", [BoundaryCut("a", 0, 1, "u8")])
    with pytest.raises(ConfigError, match="choose another place"):
        write_reference(reference(model, "split"), tmp_path / "nowhere" / "r.onnx")


def test_shapes_stay_in_the_model_where_weights_lie_in_a_second_file(tmp_path: Path) -> None:
    """Engines infer shapes before they read the second file."""
    body = "s = Constant <value_ints = [20, 30]> () a = Mul(x, w) y = Reshape(a, s)"
    text = f"g (float[1, 600] x) => (float[20, 30] y) {{ {body} }}"
    model = canonical(with_weights(parse(text), w=(1, 600)))
    (reshape,) = (node for node in model.graph if node.op_type == "Reshape")
    assert reshape.inputs[1] is not None
    files = write_reference(model, tmp_path / "r.onnx", most_inline_bytes=100)
    assert len(files) == 2
    (made,) = answers(files[0], {"x": np.ones((1, 600), np.float32)})
    assert made.shape == (20, 30)
