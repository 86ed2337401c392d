"""Packages as files: what is read of them, and what becomes of damaged ones."""

import gc
import json
import re
import shutil
import sys
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.targets.mobile.mil.writing import run, save

from flagsplit.errors import BundleError, ConfigError, InputError
from flagsplit.targets.mobile.mil import FeatureSpec, executor, load_package
from flagsplit.targets.mobile.mil.ops import OPERATORS
from flagsplit.targets.mobile.mil.proto import pb

Array = np.ndarray[Any, Any]
MODEL = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"


def _network(mb: Any, x: Any) -> Any:
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((8, 3, 3, 3)).astype(np.float32)
    deep = mb.relu(x=mb.conv(x=x, weight=weight, pad_type="same"))
    parts = mb.tile(x=mb.reduce_mean(x=deep, axes=[2, 3]), reps=[1, 2])
    return mb.softmax(x=mb.linear(x=parts, weight=rng.standard_normal((10, 16)).astype(np.float32)))


def _image() -> Array:
    return np.random.default_rng(2).standard_normal((1, 3, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("original"), _network, {"x": _image()})


@pytest.fixture
def package(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / original.name))


def _answer(package: Path) -> Array:
    return next(iter(load_package(package).function().run({"x": _image()}).values()))


def test_a_package_tells_what_it_takes_and_gives(package: Path) -> None:
    opened = load_package(package)
    function = opened.function()
    assert opened.functions == ("main",)
    assert function.inputs == (FeatureSpec("x", "float32", (1, 3, 8, 8)),)
    assert [(spec.dtype, spec.shape) for spec in function.outputs] == [("float32", (1, 10))]
    assert opened.function("main") is function


@pytest.mark.slow
def test_ranges_and_choices_of_shapes_are_told_and_kept(tmp_path: Path) -> None:
    import coremltools as ct
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.mil import get_new_symbol

    def open_size() -> Any:
        return Builder.TensorSpec((1, get_new_symbol()))

    ranged = ct.TensorType(name="x", shape=(1, ct.RangeDim(2, 9, default=4)))
    chosen = ct.TensorType(name="x", shape=ct.EnumeratedShapes([(1, 3), (1, 5)], default=(1, 5)))
    functions = []
    for name, kind in (("ranged", ranged), ("chosen", chosen)):
        saved = save(tmp_path / name, lambda mb, x: mb.mul(x=x, y=2.0), {"x": open_size()}, types=[kind])
        functions.append(load_package(saved).function())
    first, second = functions
    assert (first.inputs[0].shape, first.inputs[0].ranges) == ((1, None), ((1, 1), (2, 9)))
    assert (second.inputs[0].shape, second.inputs[0].choices) == ((1, None), ((1, 5), (1, 3)))
    for function, good, bad in ((first, 7, 10), (second, 3, 4)):
        x = np.ones((1, good), np.float32)
        np.testing.assert_array_equal(next(iter(function.run({"x": x}).values())), 2 * x)
        with pytest.raises(InputError, match="expected 'x'"):
            function.run({"x": np.ones((1, bad), np.float32)})


@pytest.mark.slow
def test_functions_of_one_package_share_its_weights(tmp_path: Path) -> None:
    import coremltools as ct

    weight = np.random.default_rng(3).standard_normal((16, 16)).astype(np.float32)
    bags = ct.utils.MultiFunctionDescriptor()
    for name, factor in (("once", 1.0), ("twice", 2.0)):

        def build(mb: Any, x: Any, factor: float = factor) -> Any:
            return mb.mul(x=mb.linear(x=x, weight=weight), y=factor)

        saved = save(tmp_path / name, build, {"x": np.ones((1, 16), np.float32)}, ios=18)
        bags.add_function(str(saved), src_function_name="main", target_function_name=name)
    bags.default_function_name = "twice"
    with warnings.catch_warnings():
        # coremltools leaves temporary folders to the garbage collector.
        warnings.simplefilter("ignore")
        ct.utils.save_multifunction(bags, str(tmp_path / "both.mlpackage"))
        gc.collect()
    package = load_package(tmp_path / "both.mlpackage")
    assert package.functions == ("once", "twice")
    x = np.ones((1, 16), np.float32)
    once, twice, default = (next(iter(package.function(name).run({"x": x}).values())) for name in ("once", "twice", ""))
    np.testing.assert_allclose(once, x @ weight.T, rtol=1e-5)
    np.testing.assert_allclose(twice, 2 * once)
    np.testing.assert_array_equal(twice, default)
    assert (tmp_path / "both.mlpackage" / WEIGHTS).stat().st_size < 1.5 * weight.nbytes
    with pytest.raises(BundleError, match="no function 'thrice'; it has once, twice"):
        package.function("thrice")


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        ({}, r"expected the inputs \['x'\]; got \[\]"),
        ({"y": _image()}, r"got \['y'\]"),
        ({"x": _image().astype(np.float64)}, r"expected 'x' to be float32\[1, 3, 8, 8\]; got float64"),
        ({"x": _image()[:, :2]}, r"got float32\[1, 2, 8, 8\]"),
    ],
    ids=["none", "other", "dtype", "shape"],
)
def test_wrong_inputs_are_refused(package: Path, inputs: dict[str, Array], match: str) -> None:
    with pytest.raises(InputError, match=match):
        load_package(package).function().run(inputs)


def test_inputs_stay_as_they_are_and_outputs_are_copies(tmp_path: Path) -> None:
    x = np.ones((2, 3), np.float32)
    came = run(tmp_path, lambda mb, x: (mb.identity(x=x), mb.const(val=np.ones(12, np.float32))), {"x": x})
    for result in came:
        result[...] = 7
    assert (x == 1).all()


def test_one_bit_of_a_weight_changes_the_answer(package: Path) -> None:
    before = _answer(package)
    data = bytearray((package / WEIGHTS).read_bytes())
    # The sign of the first weight.
    data[128 + 3] ^= 0x80
    (package / WEIGHTS).write_bytes(data)
    assert np.abs(_answer(package) - before).max() > 1e-3


def _rewritten(package: Path, change: Callable[[Any], None]) -> None:
    spec = pb().Model_pb2.Model()
    spec.ParseFromString((package / MODEL).read_bytes())
    change(spec)
    (package / MODEL).write_bytes(spec.SerializeToString())


def _operations(spec: Any) -> Any:
    function = spec.mlProgram.functions["main"]
    return function.block_specializations[function.opset].operations


def _first(spec: Any, kind: str) -> Any:
    return next(item for item in _operations(spec) if item.type == kind)


def _as_network(spec: Any) -> None:
    spec.neuralNetwork.layers.add()


def _other_operator(spec: Any) -> None:
    _first(spec, "relu").type = "relu_of_tomorrow"


def _weights_elsewhere(spec: Any) -> None:
    _first(spec, "const").attributes["val"].blobFileValue.fileName = "@model_path/../../../etc/passwd"


def _weights_of_the_host(spec: Any) -> None:
    _first(spec, "const").attributes["val"].blobFileValue.fileName = "/etc/passwd"


def _weights_off_the_grid(spec: Any) -> None:
    _first(spec, "const").attributes["val"].blobFileValue.offset = 65


def _weights_beyond_the_end(spec: Any) -> None:
    _first(spec, "const").attributes["val"].blobFileValue.offset = 1 << 40


def _shape_of_another(spec: Any) -> None:
    _first(spec, "relu").outputs[0].type.tensorType.dimensions[1].constant.size = 9


def _dtype_of_another(spec: Any) -> None:
    _first(spec, "relu").outputs[0].type.tensorType.dataType = 23


def _name_of_nothing(spec: Any) -> None:
    _first(spec, "relu").inputs["x"].arguments[0].name = "nothing"


def _input_missing(spec: Any) -> None:
    del _first(spec, "relu").inputs["x"]


def _huge_tile(spec: Any) -> None:
    for item in _operations(spec):
        if item.type == "const" and "reps" in item.outputs[0].name:
            item.attributes["val"].immediateValue.tensor.ints.values[1] = 1 << 30


def _huge_dimension(spec: Any) -> None:
    value = _first(spec, "const").attributes["val"]
    value.type.tensorType.dimensions[0].constant.size = 1 << 60


def _opset_of_nobody(spec: Any) -> None:
    spec.mlProgram.functions["main"].opset = "CoreML99"


DAMAGE: list[tuple[Callable[[Any], None], str]] = [
    (_as_network, "it holds a model of type neuralNetwork"),
    (_other_operator, "'main' has 'relu_0' of the operator 'relu_of_tomorrow', which the interpreter lacks"),
    (_weights_elsewhere, "lies outside"),
    (_weights_of_the_host, "names '/etc/passwd'; refused"),
    (_weights_off_the_grid, "weight.bin: expected a record"),
    (_weights_beyond_the_end, "weight.bin: expected a record"),
    (_shape_of_another, r"'relu_0' \(relu\) of function 'main' makes float32\[1, 8, 8, 8\]; .* float32\[1, 9, 8, 8\]"),
    (_dtype_of_another, r"'relu_0' \(relu\) of function 'main' makes float32.*declares int32"),
    (_name_of_nothing, "read 'nothing', which nothing before them makes"),
    (_input_missing, "'relu_0' .relu. of function 'main' lacks its input 'x'"),
    (_huge_tile, r"'tile_0' \(tile\) of function 'main' makes the shape"),
    (_huge_dimension, "would take"),
    (_opset_of_nobody, "body for its opset 'CoreML99'"),
]


@pytest.mark.parametrize(("change", "match"), DAMAGE, ids=lambda value: getattr(value, "__name__", ""))
def test_what_is_wrong_is_named(package: Path, change: Callable[[Any], None], match: str) -> None:
    _rewritten(package, change)
    tracemalloc.start()
    with pytest.raises(BundleError, match=match):
        _answer(package)
    assert tracemalloc.get_traced_memory()[1] < 50 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("manifest", "match"),
    [
        ("not JSON", "names no model"),
        ("{}", "names no model"),
        ("[" * 100_000, "names no model"),
        (json.dumps({"rootModelIdentifier": "a", "itemInfoEntries": {"a": {"path": 3}}}), "names 3"),
        (json.dumps({"rootModelIdentifier": "a", "itemInfoEntries": {"a": {"path": "../../x"}}}), "outside"),
        (json.dumps({"rootModelIdentifier": "a", "itemInfoEntries": {"a": {"path": "a\0b"}}}), "cannot be"),
        (json.dumps({"rootModelIdentifier": "a", "itemInfoEntries": {"a": {"path": "missing"}}}), "cannot read"),
    ],
    ids=["text", "empty", "deep", "number", "outside", "null", "missing"],
)
def test_a_wrong_manifest_is_refused(package: Path, manifest: str, match: str) -> None:
    (package / "Manifest.json").write_text(manifest)
    with pytest.raises(BundleError, match=match):
        load_package(package)


def test_a_link_out_of_the_package_is_not_followed(package: Path, tmp_path: Path) -> None:
    secret = tmp_path / "weight.bin"
    shutil.move(package / WEIGHTS, secret)
    (package / WEIGHTS).symlink_to(secret)
    with pytest.raises(BundleError, match="lies outside"):
        _answer(package)


def test_no_package_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"cannot read .*Manifest\.json"):
        load_package(tmp_path / "none.mlpackage")


def _damaged(data: bytes, seed: int) -> Iterator[bytes]:
    """Files that were cut short, had bits flipped, or bytes put in or left out."""
    rng = np.random.default_rng(seed)
    for _ in range(30):
        yield data[: int(rng.integers(0, len(data)))]
    for _ in range(70):
        changed = bytearray(data)
        for at in rng.integers(0, len(data), int(rng.integers(1, 4))):
            changed[at] ^= 1 << int(rng.integers(0, 8))
        yield bytes(changed)
    for _ in range(30):
        at, count = int(rng.integers(0, len(data))), int(rng.integers(1, 9))
        yield data[:at] + rng.bytes(count) + data[at + (count if rng.random() < 0.5 else 0) :]


@pytest.mark.slow
@pytest.mark.parametrize("file", [MODEL, WEIGHTS])
def test_damaged_files_give_an_error_or_an_answer(package: Path, file: str) -> None:
    """Never a crash, a hang, or more memory than a package of this size has use for."""
    data = (package / file).read_bytes()
    # Of the weights, the part that holds structure: the values themselves may be anything.
    head = data if file == MODEL else data[:256]
    refused = 0
    tracemalloc.start()
    for changed in _damaged(head, seed=4):
        (package / file).write_bytes(changed if file == MODEL else changed + data[256:])
        try:
            result = _answer(package)
        except (BundleError, InputError):
            refused += 1
        else:
            assert result.shape == (1, 10)
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()
    assert refused > 30


def test_the_document_names_every_operator() -> None:
    text = (Path(__file__).parents[4] / "docs" / "mil.md").read_text(encoding="utf-8")
    table = text.split("## Operators")[1].split("##")[0]
    assert sorted(re.findall(r"`(\w+)`", table)) == sorted(OPERATORS)
    assert f"{len(OPERATORS)} of them:" in table
    assert f"after {executor.MAX_STEPS:,} operations" in text


def test_without_coremltools_the_error_names_the_extra(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pb.cache_clear()
    monkeypatch.setitem(sys.modules, "coremltools", None)
    with pytest.raises(ConfigError, match=r"pip install 'flagsplit\[coreml\]'"):
        load_package(package)
    pb.cache_clear()
