"""Functions of several sizes, at sizes that they were not lowered at, against the model itself."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tests.targets.mobile.coreml import programs
from tests.targets.mobile.coreml.graphs import difference, floats, parse

from flagsplit.errors import InputError, ModelError
from flagsplit.flagir.specialize import specialize
from flagsplit.targets.mobile.coreml.choices import Choices
from flagsplit.targets.mobile.coreml.flexible import lower_enumerated, lower_ranged
from flagsplit.targets.mobile.coreml.lower_part import LoweredPart
from flagsplit.targets.mobile.coreml.ranges import answers

EXACT = Choices(precision="fp32")
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


def _lines() -> ir.Model:
    return parse(_LINES, {"w": floats(6, 64, 3, 3, scale=0.1), "two": np.array([2])})


def _check(
    folder: Path, lowered: LoweredPart, model: ir.Model, sizes: Mapping[str, int], *shape: int, worst: float = 1e-6
) -> None:
    function = programs.load(folder).function("f")
    x = floats(*shape, seed=shape[-1])
    (wanted,) = answers(specialize(model, sizes), [{"x": x}])
    (made,) = function.run({lowered.names["x"]: x}).values()
    assert made.shape == wanted["y"].shape
    assert difference(made, wanted["y"]) <= worst


@pytest.mark.slow
def test_a_list_of_shapes(tmp_path: Path) -> None:
    model = _lines()
    sizes = [{"N": 1, "W": 16}, {"N": 1, "W": 24}, {"N": 2, "W": 40}]
    lowered = lower_enumerated(model, sizes, EXACT)
    programs.write(tmp_path, {"f": lowered.program})
    for each in sizes:
        _check(tmp_path, lowered, model, each, each["N"], 64, 8, each["W"])
    with pytest.raises(InputError):
        programs.load(tmp_path).function("f").run({"x": floats(1, 64, 8, 17)})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("choices", "worst"), [(EXACT, 1e-6), (Choices(), 2e-3), (Choices(weights="int8", precision="mixed"), 2e-2)]
)
def test_ranges(tmp_path: Path, choices: Choices, worst: float) -> None:
    model = _lines()
    lowered = lower_ranged(model, {"N": 1, "W": 16}, {"W": (8, 64)}, choices)
    programs.write(tmp_path, {"f": lowered.program})
    for width in (8, 16, 33, 64):
        _check(tmp_path, lowered, model, {"N": 1, "W": width}, 1, 64, 8, width, worst=worst)
    with pytest.raises(InputError):
        programs.load(tmp_path).function("f").run({"x": floats(1, 64, 8, 65)})


def test_a_reshape_that_follows_the_size(tmp_path: Path) -> None:
    model = parse(_FLAT, {"shape": np.array([1, -1])})
    lowered = lower_ranged(model, {"W": 4}, {"W": (1, 9)}, EXACT)
    programs.write(tmp_path, {"f": lowered.program})
    for width in (1, 4, 9):
        _check(tmp_path, lowered, model, {"W": width}, 1, 4, width)


def test_what_is_another_program_at_another_size() -> None:
    text = "g (float[N, W] x) => (float[N, W] y) { s = Shape(x) f = Cast <to = 1> (s) t = ReduceSum(f) y = Mul(x, t) }"
    model = parse(text)
    with pytest.raises(ModelError, match="function of its own"):
        lower_ranged(model, {"N": 1, "W": 4}, {"W": (1, 9)}, EXACT)
    for count in (1, 129):
        with pytest.raises(ModelError, match="expected 2 to 128 shapes"):
            lower_enumerated(model, [{"N": 1, "W": at + 1} for at in range(count)], EXACT)
