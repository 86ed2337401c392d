"""Artifacts of several sizes, as a build makes them, at sizes they were not lowered at, against the model itself."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tests.targets.mobile.coreml.graphs import difference, floats, parse

from flagsplit.errors import InputError, ModelError
from flagsplit.flagir.segments import segment_of
from flagsplit.flagir.specialize import specialize
from flagsplit.targets.interface import Array, CompileOptions, Executable, LoadOptions
from flagsplit.targets.mobile.coreml.ranges import answers
from flagsplit.targets.mobile.coreml.target import CoremlTarget
from flagsplit.targets.mobile.mil import load_package
from flagsplit.targets.segment_table import SegmentTable, read_table

EXACT = {"precision": "fp32"}
_LINES = """g (float[N, 64, 8, W] x) => (float[N, V, 6] y) {
    c = Conv <pads = [1, 1, 1, 1]> (x, w)
    r = Relu(c)
    h = ReduceMean <keepdims = 0> (r, two)
    t = Transpose <perm = [0, 2, 1]> (h)
    y = Softmax <axis = 2> (t)
}"""
_FLAT = """g (float[1, 4, W] x) => (float[1, F] y) {
    r = Tanh(x)
    y = Reshape(r, shape)
}"""
_ATTENTION = """g (float[1, T, 16] x, float[1, T, 16] m) => (float[1, T, 16] y, int64[3] size) {
    q = MatMul(x, wq)
    k = MatMul(m, wk)
    kt = Transpose <perm = [0, 2, 1]> (k)
    s = MatMul(q, kt)
    p = Softmax <axis = 2> (s)
    v = MatMul(p, m)
    size = Shape(x)
    y = Reshape(v, size)
}"""
_STRIDES = """g (float[1, 3, W] x) => (float[1, 4, V] y) {
    a = Conv <pads = [1, 1], strides = [2]> (x, wa)
    b = Relu(a)
    y = Conv <pads = [1, 1], strides = [2]> (b, wb)
}"""


def _lines() -> ir.Model:
    return parse(_LINES, {"w": floats(6, 64, 3, 3, scale=0.1), "two": np.array([2])})


class Built:
    """Segments of a model in one package.

    Args:
        folder: where to.
        model: the model.
        options: of the build.
        parts: positions of the nodes of each segment; one segment of all by default.
    """

    def __init__(
        self, folder: Path, model: ir.Model, options: CompileOptions, parts: Sequence[Sequence[int]] = ()
    ) -> None:
        nodes = [node.name or "" for node in model.graph]
        self.model = model
        self.segments = [segment_of(model, [nodes[at] for at in part]) for part in parts or [range(len(nodes))]]
        self.folder = folder
        folder.mkdir(exist_ok=True)
        stored = CoremlTarget().compile(model, self.segments, options).store(folder, folder / "weights.bin")
        self.loaded: list[Executable] = [
            CoremlTarget().load(stored, segment.id, LoadOptions(threads=1)) for segment in self.segments
        ]

        self.options = stored.options

    @property
    def weights_bytes(self) -> int:
        return (self.folder / "segments.mlpackage/Data/com.apple.CoreML/weights/weight.bin").stat().st_size

    @property
    def table(self) -> SegmentTable:
        return read_table(self.folder / "segments.json")

    def check(self, sizes: Mapping[str, int], given: Mapping[str, Array], worst: float = 1e-6) -> None:
        """All segments one after another give what the model gives at these sizes."""
        (wanted,) = answers(specialize(self.model, sizes), [given])
        values = dict(given)
        for loaded in self.loaded:
            values.update(loaded.run({spec.name: values[spec.name] for spec in loaded.inputs}))
        for name, array in wanted.items():
            assert values[name].shape == array.shape
            assert values[name].dtype == array.dtype
            assert difference(values[name], array) <= worst


def _ranged(ranges: Mapping[str, tuple[int, int]], dims: Mapping[str, int], **choices: str) -> CompileOptions:
    return CompileOptions(dims=dims, ranges=ranges, choices={"shapes": "ranged", **EXACT, **choices})


@pytest.mark.slow
def test_a_list_of_sizes(tmp_path: Path) -> None:
    listed = {"N": (1, 2), "W": (16, 24, 40)}
    options = CompileOptions(dims={"N": 1, "W": 24}, listed=listed, choices={"shapes": "enumerated", **EXACT})
    built = Built(tmp_path, _lines(), options)
    for rows in listed["N"]:
        for width in listed["W"]:
            built.check({"N": rows, "W": width}, {"x": floats(rows, 64, 8, width, seed=width)})
    for wrong in ((1, 64, 8, 17), (3, 64, 8, 24)):
        with pytest.raises(InputError, match="a shape out of"):
            built.loaded[0].run({"x": floats(*wrong)})
    assert built.table.model_dump(exclude_defaults=True)["dims"] == {
        "N": {"nominal": 1, "low": 1, "high": 2, "sizes": [1, 2]},
        "W": {"nominal": 24, "low": 16, "high": 40, "sizes": [16, 24, 40]},
    }
    (segment,) = built.table.segments.values()
    assert [tensor.shape for tensor in segment.inputs] == [["N", 64, 8, "W"]]
    assert [tensor.shape for tensor in segment.outputs] == [["N", "W", 6]]
    assert segment.chip is not None
    (taken,) = load_package(tmp_path / segment.chip.file).function(segment.chip.function).inputs
    assert taken.choices[0] == (1, 64, 8, 24), "the nominal shape is the default"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("choices", "worst"),
    [({}, 1e-6), ({"precision": "fp16"}, 2e-3), ({"weights": "int8", "precision": "mixed"}, 2e-2)],
)
def test_ranges(tmp_path: Path, choices: dict[str, str], worst: float) -> None:
    built = Built(tmp_path, _lines(), _ranged({"W": (8, 64)}, {"N": 1, "W": 16}, **choices))
    for width in (8, 16, 33, 64):
        built.check({"N": 1, "W": width}, {"x": floats(1, 64, 8, width, seed=width)}, worst)
    for width in (7, 65):
        with pytest.raises(InputError, match=r"sizes in .*\[8, 64\]"):
            built.loaded[0].run({"x": floats(1, 64, 8, width)})
    assert built.table.dims["W"].model_dump() == {"nominal": 16, "low": 8, "high": 64, "sizes": None}
    assert "N" not in built.table.dims


def test_a_reshape_that_follows_the_size(tmp_path: Path) -> None:
    built = Built(tmp_path, parse(_FLAT, {"shape": np.array([1, -1])}), _ranged({"W": (1, 9)}, {"W": 4}))
    for width in (1, 4, 9):
        built.check({"W": width}, {"x": floats(1, 4, width)})


@pytest.mark.slow
@pytest.mark.parametrize("cut", [0, 2, 4])
def test_inputs_of_one_size_and_an_output_that_says_it(tmp_path: Path, cut: int) -> None:
    """Nor does it matter where the cut is; what follows from sizes alone the host reads off the request."""
    model = parse(_ATTENTION, {"wq": floats(16, 16, seed=1), "wk": floats(16, 16, seed=2)})
    parts = [part for part in (range(cut), range(cut, len(model.graph))) if part]
    built = Built(tmp_path, model, _ranged({"T": (2, 40)}, {"T": 12}), parts)
    assert len(built.segments) == len(parts)
    for length in (2, 12, 31, 40):
        given: dict[str, Array] = {"x": floats(1, length, 16, seed=length), "m": floats(1, length, 16, seed=3)}
        built.check({"T": length}, given, 1e-5)


@pytest.mark.slow
def test_sizes_that_follow_from_others(tmp_path: Path) -> None:
    """Of a segment in the middle: each stride halves, and the boundary's own range goes with it."""
    model = parse(_STRIDES, {"wa": floats(8, 3, 3, seed=1), "wb": floats(4, 8, 3, seed=2)})
    built = Built(tmp_path, model, _ranged({"W": (5, 50)}, {"W": 20}), [[0], [1, 2]])
    for width in (5, 6, 20, 49, 50):
        built.check({"W": width}, {"x": floats(1, 3, width, seed=width)})
    with pytest.raises(InputError, match=r"\[3, 25\]"):
        built.loaded[1].run({"a": floats(1, 8, 26)})


_HEADS = """g (float[B, T, 8] x) => (float[B, T, 8] y) {
    h = Reshape(x, heads)
    t = Transpose <perm = [0, 2, 1, 3]> (h)
    k = Transpose <perm = [0, 2, 3, 1]> (h)
    s = MatMul(t, k)
    p = Softmax <axis = 3> (s)
    v = MatMul(p, t)
    u = Transpose <perm = [0, 2, 1, 3]> (v)
    y = Reshape(u, back)
}"""
_SLICES = """g (float[1, 2, W] x)
=> (float[1, 2, A] most, float[1, 2, 3] last, float[1, 2, B] odd, float[1, 2, W] turned) {
    e = Exp(x)
    most = Slice(e, one, minus_two, two)
    last = Slice(e, minus_three, far, two)
    odd = Slice(e, one, far, two, steps)
    turned = Slice(e, far, minus_far, two, back)
}"""
_UP = """g (float[1, 2, H, W] x) => (float[1, 3, I, V] y) {
    u = ConvTranspose <strides = [2, 2]> (x, w)
    y = Relu(u)
}"""


@pytest.mark.slow
def test_several_sizes_at_once(tmp_path: Path) -> None:
    """A reshape of two open sizes takes those of its operand."""
    weights = {"heads": np.array([0, 0, 2, 4]), "back": np.array([0, 0, 8])}
    built = Built(tmp_path, parse(_HEADS, weights), _ranged({"B": (2, 5), "T": (3, 20)}, {"B": 4, "T": 7}))
    for rows, length in ((2, 3), (4, 7), (3, 11), (5, 20)):
        built.check({"B": rows, "T": length}, {"x": floats(rows, length, 8)}, 1e-5)


def test_slices_that_count_from_the_end(tmp_path: Path) -> None:
    bounds = {"one": 1, "two": 2, "minus_two": -2, "minus_three": -3, "far": 1 << 40, "minus_far": -(1 << 40)}
    weights = {name: np.array([at]) for name, at in {**bounds, "steps": 2, "back": -1}.items()}
    built = Built(tmp_path, parse(_SLICES, weights), _ranged({"W": (5, 30)}, {"W": 10}))
    for width in (5, 6, 10, 21, 30):
        built.check({"W": width}, {"x": floats(1, 2, width, seed=width)})


def test_a_transposed_convolution(tmp_path: Path) -> None:
    model = parse(_UP, {"w": floats(2, 3, 2, 2)})
    built = Built(tmp_path, model, _ranged({"H": (4, 9), "W": (4, 9)}, {"H": 5, "W": 6}))
    for height, width in ((4, 4), (7, 5), (9, 9)):
        built.check({"H": height, "W": width}, {"x": floats(1, 2, height, width)})


def test_what_is_another_program_at_another_size(tmp_path: Path) -> None:
    text = "g (float[N, W] x) => (float[N, W] y) { s = Shape(x) f = Cast <to = 1> (s) t = ReduceSum(f) y = Mul(x, t) }"
    with pytest.raises(ModelError, match="another y at another size; no function is of a range"):
        Built(tmp_path, parse(text), _ranged({"W": (1, 9)}, {"N": 1, "W": 4}))


def test_too_many_sizes(tmp_path: Path) -> None:
    listed = {"N": tuple(range(1, 13)), "W": tuple(range(8, 19))}
    options = CompileOptions(dims={"N": 1, "W": 8}, listed=listed, choices={"shapes": "enumerated"})
    with pytest.raises(ModelError, match="at most 128 combinations of sizes, came 132"):
        Built(tmp_path, _lines(), options)


def test_sizes_that_nobody_asks_for_stay_fixed(tmp_path: Path) -> None:
    """A choice without ranges, as where a single part is compiled again, is for the nominal sizes."""
    built = Built(tmp_path, parse(_FLAT, {"shape": np.array([1, -1])}), _ranged({}, {"W": 4}))
    built.check({"W": 4}, {"x": floats(1, 4, 4)})
    assert built.loaded[0].inputs[0].shape == (1, 4, 4)
    assert not built.table.dims


_POSITIONS = """g (int64[1, T] ids, float[1, T, 8] x) => (float[1, T, 8] y) {
    s = Shape(x)
    t = Slice(s, one, two)
    p = Slice(table, zero, t, zero)
    u = Unsqueeze(p, zero)
    e = Gather(words, ids)
    a = Add(e, u)
    b = MatMul(a, w)
    c = Add(b, x)
    y = Softmax <axis = 2> (c)
}"""


def _positions() -> ir.Model:
    """A table of positions that is cut to the length: other constants at each size."""
    bounds = {name: np.array([at]) for at, name in enumerate(("zero", "one", "two"))}
    tables = {"table": floats(64, 8, seed=1), "words": floats(50, 8, seed=2), "w": floats(8, 8, seed=3)}
    return parse(_POSITIONS, {**bounds, **tables})


def _tokens(length: int) -> dict[str, Array]:
    ids = np.random.default_rng(length).integers(0, 50, (1, length))
    return {"ids": ids, "x": floats(1, length, 8, seed=length)}


@pytest.mark.slow
@pytest.mark.parametrize("cut", [0, 4])
def test_a_function_for_each_size_where_one_cannot_be_of_all(tmp_path: Path, cut: int) -> None:
    model = _positions()
    options = CompileOptions(dims={"T": 12}, listed={"T": (5, 12, 20)}, choices={"shapes": "enumerated", **EXACT})
    parts = [part for part in (range(cut), range(cut, len(model.graph))) if part]
    built = Built(tmp_path, model, options, parts)
    for length in (5, 12, 20):
        built.check({"T": length}, _tokens(length))
    last = built.table.segments[built.segments[-1].id]
    assert last.chip is not None
    assert last.sized[0] == last.chip
    assert [call.function for call in last.sized] == [last.chip.function + end for end in ("", "_size1", "_size2")]
    assert {"T"} == {tensor.shape[1] for tensor in last.inputs if tensor.name in ("ids", "x")}
    assert "has another" in json.loads(built.options["by_size"])[built.segments[-1].id]
    given = {
        name: array for name, array in _tokens(13).items() if name in {spec.name for spec in built.loaded[-1].inputs}
    }
    if not cut:
        with pytest.raises(InputError, match=r"came .*13"):
            built.loaded[-1].run(given)
        one = Built(tmp_path / "one", model, CompileOptions(dims={"T": 12}, choices=EXACT))
        assert built.weights_bytes <= one.weights_bytes + 4096, "each weight once"


@pytest.mark.slow
def test_many_sizes(tmp_path: Path) -> None:
    """What is not compared is not taken for alike."""
    model = parse(_SAME, {"w": floats(2, 2, 3)})
    sizes = tuple(range(8, 40, 2))
    options = CompileOptions(dims={"W": 8}, listed={"W": sizes}, choices={"shapes": "enumerated", **EXACT})
    built = Built(tmp_path, model, options)
    for width in (8, 22, 38):
        built.check({"W": width}, {"x": floats(1, 2, width)})
    assert "16 sizes are more than the 13" in built.options["by_size"]


def test_a_range_has_one_function(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="another y at another size; no function is of a range"):
        Built(tmp_path, _positions(), _ranged({"T": (5, 20)}, {"T": 12}))


_SAME = """g (float[1, 2, W] x) => (float[1, 2, V] y) {
    c = Conv <auto_pad = "SAME_UPPER", strides = [2]> (x, w)
    y = Relu(c)
}"""


@pytest.mark.parametrize("ends", [(8, 64), (96, 400), (10, 14), (96, 960), (8, 16)])
@pytest.mark.parametrize("nominal", [0, 2, -1])
def test_a_padding_that_follows_from_what_is_left(tmp_path: Path, ends: tuple[int, int], nominal: int) -> None:
    """At the ends and by default all sizes are even, and padded alike; between them they are not."""
    model = parse(_SAME, {"w": floats(2, 2, 3)})
    with pytest.raises(ModelError, match="another pad at another size"):
        Built(tmp_path, model, _ranged({"W": ends}, {"W": ends[1] if nominal < 0 else ends[0] + nominal}))


@pytest.mark.slow
def test_listed_sizes_that_are_padded_in_other_ways(tmp_path: Path) -> None:
    model = parse(_SAME, {"w": floats(2, 2, 3)})
    options = CompileOptions(dims={"W": 8}, listed={"W": (8, 9, 16)}, choices={"shapes": "enumerated", **EXACT})
    built = Built(tmp_path, model, options)
    for width in (8, 9, 16):
        built.check({"W": width}, {"x": floats(1, 2, width)})
