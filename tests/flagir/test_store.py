"""Models on disk: the same tensors back, stored once, streamed, and the same bytes for the same model."""

import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.flagir.models import assert_close, canonical, inputs_for, parse, random_model, run, with_weights

from flagsplit.errors import ModelError
from flagsplit.flagir import load, save, violations, weights_bytes
from flagsplit.flagir.store import MODEL_NAME, WEIGHTS_NAME
from flagsplit.flagir.types import dims_of

DTYPES = [
    ir.DataType(number)
    for number in (*range(1, 8), *range(9, 27))
    if number in {int(dtype) for dtype in ir.DataType} and ir.DataType(number) != ir.DataType.STRING
]


def holding(tensors: dict[str, ir.TensorProtocol]) -> ir.Model:
    """A model that returns each of these tensors."""
    values = [
        ir.Value(name=name, shape=ir.Shape(dims_of(tensor)), type=ir.TensorType(tensor.dtype), const_value=tensor)
        for name, tensor in tensors.items()
    ]
    nodes = [ir.node("Identity", [value]) for value in values]
    for node, value in zip(nodes, values, strict=True):
        node.outputs[0].name, node.name = f"{value.name}_out", f"n_{value.name}"
        node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
    outputs = [node.outputs[0] for node in nodes]
    graph = ir.Graph([], outputs, nodes=nodes, initializers=values, opset_imports={"": 23}, name="g")
    return ir.Model(graph, ir_version=11)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("shape", [(33, 31), (3,), (), (0, 4), (1, 600)])
def test_every_dtype_comes_back(tmp_path: Path, dtype: ir.DataType, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    array = np.asarray(rng.integers(0, 2, shape)).astype(dtype.numpy())
    model = holding({"w": ir.Tensor(array, dtype)})
    save(model, tmp_path)
    for each in (model, load(tmp_path)):
        tensor = each.graph.initializers["w"].const_value
        assert tensor is not None
        assert (tensor.dtype, tuple(tensor.shape)) == (dtype, shape)
        np.testing.assert_array_equal(np.asarray(tensor.numpy()).astype(np.complex128), array.astype(np.complex128))
        assert isinstance(tensor, ir.ExternalTensor) == (ir.Tensor(array, dtype).nbytes > 256)


def test_strings_stay_in_the_model(tmp_path: Path) -> None:
    words = [f"word {index}" for index in range(100)]
    save(holding({"w": ir.tensor(words)}), tmp_path)
    tensor = load(tmp_path).graph.initializers["w"].const_value
    assert tensor is not None
    assert [bytes(word).decode() for word in tensor.numpy()] == words


def test_equal_tensors_are_stored_once(tmp_path: Path) -> None:
    array = np.arange(1000, dtype=np.float32)
    tensors = {name: ir.Tensor(array.copy()) for name in ("a", "b", "c")}
    model = holding({**tensors, "d": ir.Tensor(array + 1)})
    assert weights_bytes(model) == 4 * 4000
    save(model, tmp_path)
    assert weights_bytes(model) == weights_bytes(load(tmp_path)) == 2 * 4000
    assert 8000 <= (tmp_path / WEIGHTS_NAME).stat().st_size < 8000 + 64


def test_equal_places_in_different_files_are_different_tensors(tmp_path: Path) -> None:
    tensors: dict[str, ir.TensorProtocol] = {}
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode() * 4000)
        tensors[name] = ir.ExternalTensor(
            name, 0, 4000, ir.DataType.FLOAT, shape=ir.Shape([1000]), name=name, base_dir=tmp_path
        )
    assert weights_bytes(holding(tensors)) == 8000


def test_large_tensors_begin_at_a_page_and_all_at_64_bytes(tmp_path: Path) -> None:
    sizes = {"a": 100, "b": 300_000, "c": 77, "d": 400_000}
    model = holding({name: ir.Tensor(np.full(size, size, np.float32)) for name, size in sizes.items()})
    save(model, tmp_path)
    for name, size in sizes.items():
        tensor = model.graph.initializers[name].const_value
        assert isinstance(tensor, ir.ExternalTensor)
        assert (tensor.offset or 0) % (4096 if size * 4 >= 1 << 20 else 64) == 0


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        save(canonical(random_model(6)), tmp_path / name)
        found.append([(tmp_path / name / file).read_bytes() for file in (MODEL_NAME, WEIGHTS_NAME)])
    assert found[0] == found[1]


def test_a_loaded_model_saved_again_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    save(canonical(random_model(6)), tmp_path / "one")
    save(load(tmp_path / "one"), tmp_path / "two")
    for file in (MODEL_NAME, WEIGHTS_NAME):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_what_is_saved_is_an_onnx_model(tmp_path: Path) -> None:
    proto = random_model(7)
    model = canonical(proto)
    save(model, tmp_path)
    onnx.checker.check_model(tmp_path / MODEL_NAME, full_check=True)
    inputs = inputs_for(proto)
    loaded = load(tmp_path)
    assert violations(loaded) == ()
    assert_close(run(onnx.load(tmp_path / MODEL_NAME), inputs), run(proto, inputs))


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model file"):
        load(tmp_path)
    save(
        canonical(with_weights(parse("g (float[N, 99] x) => (float[N, 9] y) { y = MatMul(x, w) }"), w=(99, 9))),
        tmp_path,
    )
    (tmp_path / WEIGHTS_NAME).write_bytes(b"short")
    with pytest.raises(ModelError, match="truncated"):
        load(tmp_path)


@pytest.mark.parametrize(
    "value", [np.float32(0), np.float32(1.5), ml_dtypes.bfloat16(2), np.int8(3), ml_dtypes.int4(1)]
)
def test_a_repeated_element_is_written_out(tmp_path: Path, value: np.generic) -> None:
    tensor = ir.Tensor(np.broadcast_to(np.asarray(value), (70, 31)))
    save(holding({"w": tensor}), tmp_path)
    found = load(tmp_path).graph.initializers["w"].const_value
    assert found is not None
    assert (np.asarray(found.numpy()) == np.asarray(value)).all()


STREAM = """
import resource, sys
from pathlib import Path
import onnx, onnx_ir as ir
from flagsplit.flagir import canonicalize, load, save, weights_bytes
text = '''<ir_version: 8, opset_import: ["" : 17]> g (float[1, 1000] x) => (float[1, 75000] y) {
    s = Constant <value_ints = [1000, 75000]> ()
    w = ConstantOfShape <value = float[1] {0.5}> (s)
    y = MatMul(x, w) }'''
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> (20 if sys.platform == "darwin" else 10)
model = ir.from_proto(onnx.parser.parse_model(text))
before = peak()
for number in range(2):
    folder = Path(sys.argv[1]) / str(number)
    folder.mkdir()
    if not number:
        canonicalize(model)
    save(model, folder)
    model = load(folder)
assert weights_bytes(model) == 300_000_000
print(peak() - before)
"""


@pytest.mark.slow
def test_a_large_weight_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    """300 MB made by a node, saved, mapped, and saved again."""
    done = subprocess.run([sys.executable, "-c", STREAM, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 60
