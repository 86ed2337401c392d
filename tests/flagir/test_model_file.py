"""Reading files that may be anything: an error of ours, or a model."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.flagir.models import assert_close, inputs_for, light_path, parse, run

from flagsplit.errors import FlagsplitError, ModelError
from flagsplit.flagir import Skeleton, block_graph, canonicalize, nominal_dims, read_model

TEXT = """g (bool c, float[N, 4] x)
    => (float[N, 2] y) <float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}, int64[2] s = {-1, 2}> {
    a = MatMul(x, w)
    b = If (c) <then_branch = t () => (float[N, 2] p) { p = Relu(a) },
        else_branch = e () => (float[N, 2] q) { q = my.f(a) }>
    y = Reshape(b, s)
}
<domain: "my", opset_import: ["" : 17]> f (a) => (b) { b = Tanh(a) }"""


def small_model() -> onnx.ModelProto:
    return parse(TEXT, imports=', "my" : 1')


def through_everything(path: Path) -> None:
    model = read_model(path)
    canonicalize(model)
    skeleton = Skeleton(model)
    block_graph(model, nominal_dims(skeleton, {}), skeleton)


def save_outside(proto: onnx.ModelProto, path: Path) -> None:
    """Save with every initializer as external data."""
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name))
    onnx.save_model(proto, path, save_as_external_data=True, location="w.bin", size_threshold=0)


def test_a_good_file(tmp_path: Path) -> None:
    onnx.save(small_model(), tmp_path / "m.onnx")
    through_everything(tmp_path / "m.onnx")


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model file"):
        read_model(tmp_path / "missing.onnx")
    with pytest.raises(ModelError, match="is a folder"):
        read_model(tmp_path)


NAMED = """g (float[2, 4] entry) => (float[2, 4] leaves) {
    mid = LeakyRelu<alpha = 0.5>(entry)
    leaves = Tanh(mid)
}"""


@pytest.mark.parametrize("name", ["entry", "leaves", "mid", "LeakyRelu", "remark", "value"])
def test_a_name_that_is_no_text(tmp_path: Path, name: str) -> None:
    proto = parse(NAMED)
    onnx.helper.set_model_props(proto, {"remark": "value"})
    data = proto.SerializeToString()
    assert name.encode() in data
    (tmp_path / "m.onnx").write_bytes(data.replace(name.encode(), b"\xff" + name[1:].encode()))
    with pytest.raises(ModelError, match=r"names of the model to be UTF-8, came b'\\xff"):
        read_model(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"just some text\n", "looks like a text file"),
        (b"\x00\x00\x00\x00ORTM" + bytes(60), "ONNX Runtime file"),
        (bytes(range(128, 256)), "expected an ONNX model"),
    ],
)
def test_what_is_no_model(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        read_model(path)


def test_a_zip_says_where_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("manifest.json", "{}")
    with pytest.raises(ModelError, match="bundle goes to run"):
        read_model(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["small", "light"])
def test_a_truncated_file_is_an_error_wherever_it_ends(tmp_path: Path, name: str) -> None:
    data = small_model().SerializeToString() if name == "small" else light_path("zfnet512").read_bytes()
    path = tmp_path / "m.onnx"
    opset_bytes = 20  # the opset imports are written last: without all of them the graph is still whole
    for end in range(1, len(data) - opset_bytes, max(1, len(data) // 120)):
        path.write_bytes(data[:end])
        with pytest.raises(FlagsplitError):
            through_everything(path)


@pytest.mark.slow
def test_mutated_bytes_are_an_error_or_a_model(tmp_path: Path) -> None:
    save_outside(small_model(), tmp_path / "m.onnx")
    data = (tmp_path / "m.onnx").read_bytes()
    path = tmp_path / "mutated.onnx"
    rng = np.random.default_rng(7)
    fine = 0
    for number in range(300):
        mutated = bytearray(data)
        for _ in range(1 + number % 3):
            at = int(rng.integers(len(mutated)))
            if rng.random() < 0.2:
                del mutated[at : at + int(rng.integers(1, 5))]
            else:
                mutated[at] = int(rng.integers(256))
        path.write_bytes(mutated)
        try:
            through_everything(path)
            fine += 1
        except FlagsplitError:
            pass
    assert fine > 0


def with_external(folder: Path, location: str, **where: int) -> Path:
    """A model whose weight `w`, 4 x 2 floats, lies at `location`."""
    proto = parse("g (float[2, 4] x) => (float[2, 2] y) { y = MatMul(x, w) }")
    tensor = proto.graph.initializer.add(name="w", data_type=onnx.TensorProto.FLOAT, dims=[4, 2])
    external(tensor, location, **where)
    path = folder / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def external(tensor: Any, location: str, **where: int) -> None:
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, **where}.items():
        tensor.external_data.add(key=key, value=str(value))


def test_external_data_beside_and_below(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    weights = np.arange(8, dtype=np.float32).reshape(4, 2)
    (tmp_path / "sub/w.bin").write_bytes(bytes(16) + weights.tobytes())
    model = read_model(with_external(tmp_path, "sub/w.bin", offset=16, length=32))
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value, weights)


@pytest.mark.parametrize(
    ("location", "where", "message"),
    [
        ("missing.bin", {}, "not there"),
        ("w.bin", {"offset": 1}, "truncated"),
        ("w.bin", {"offset": 16, "length": 32}, "truncated"),
        ("w.bin", {"length": 16}, "damaged"),
        ("../w.bin", {}, "outside"),
        ("sub/../../w.bin", {}, "outside"),
        ("/etc/passwd", {}, "outside"),
        ("", {}, "outside"),
        ("sub", {}, "not there"),
        ("leaves", {}, "a link out of"),
        ("circle", {}, "no file can be|not there"),
        ("a\0b", {}, "no file can be"),
        ("a" * 5000, {}, "no file can be"),
    ],
)
def test_external_data_that_is_not_to_be_had(
    tmp_path: Path, location: str, where: dict[str, int], message: str
) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    for path in (tmp_path / "w.bin", folder / "w.bin"):
        path.write_bytes(bytes(32))
    (folder / "leaves").symlink_to(tmp_path / "w.bin")
    (folder / "circle").symlink_to(folder / "circle")
    with pytest.raises(ModelError, match=message):
        read_model(with_external(folder, location, **where))


@pytest.mark.parametrize(
    ("dtype", "dims"), [(0, [4, 2]), (onnx.TensorProto.STRING, [4, 2]), (onnx.TensorProto.FLOAT, [-4, 2])]
)
def test_external_data_of_no_size(tmp_path: Path, dtype: int, dims: list[int]) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(32))
    proto = onnx.load(with_external(tmp_path, "w.bin", length=32), load_external_data=False)
    proto.graph.initializer[0].data_type = dtype
    proto.graph.initializer[0].dims[:] = dims
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="no dtype or shape"):
        read_model(tmp_path / "m.onnx")


def test_external_data_hidden_in_a_function_or_a_branch(tmp_path: Path) -> None:
    in_function = parse(
        'g (float[2] x) => (float[2] y) { y = my.f(x) } <domain: "my", opset_import: ["" : 17]> '
        "f (a) => (b) { k = Constant <value = float[2] {1, 2}> () b = Add(a, k) }",
        imports=', "my" : 1',
    )
    in_branch = parse(
        "g (bool c) => (float[2] y) { y = If (c) <"
        "then_branch = t () => (float[2] a) { a = Constant <value = float[2] {1, 2}> () }, "
        "else_branch = e () => (float[2] b) { b = Constant <value = float[2] {1, 2}> () }> }"
    )
    tensors = [
        in_function.functions[0].node[0].attribute[0].t,
        in_branch.graph.node[0].attribute[0].g.node[0].attribute[0].t,
    ]
    for proto, tensor in zip((in_function, in_branch), tensors, strict=True):
        tensor.ClearField("float_data")
        tensor.ClearField("raw_data")
        external(tensor, "../secret")
        (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
        with pytest.raises(ModelError, match="outside"):
            read_model(tmp_path / "m.onnx")


def test_small_external_shapes_are_seen_by_shape_inference(tmp_path: Path) -> None:
    """Some exporters put every tensor outside, the shape of a Reshape too."""
    proto = parse("g (float[N, 2, 3] x) => (float[N, 6] y) <int64[2] s = {-1, 6}> { a = Reshape(x, s) y = Relu(a) }")
    inputs = inputs_for(proto)
    wanted = run(proto, inputs)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    save_outside(proto, tmp_path / "m.onnx")
    model = read_model(tmp_path / "m.onnx")
    assert isinstance(model.graph.initializers["s"].const_value, ir.ExternalTensor)
    canonicalize(model)
    assert Skeleton(model).types({"N": 5})["y"].shape == (5, 6)
    for value in model.graph.initializers.values():
        value.const_value = ir.Tensor(np.asarray(value.const_value))
    assert_close(run(ir.to_proto(model), inputs), wanted)
