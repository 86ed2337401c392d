"""Transpositions of more axes than Core ML has."""

import itertools
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.targets.mobile.coreml.lowering.packages import run

from flagsplit import flagir
from flagsplit.targets.mobile.coreml.lowering.chains import merged
from flagsplit.targets.mobile.coreml.lowering.registry import refusal


def _shuffle(between: str, perm: str, more: str = "") -> ir.Model:
    body = f"""<ir_version: 10, opset_import: ["" : 21]>
g (float[1, 8, 6, 6] x) => (float[144, 2] y{", float[n] z" if more else ""}) {{
    many = Constant <value_ints: ints = [{between}]> ()
    back = Constant <value_ints: ints = [144, 2]> ()
    a = Reshape (x, many)
    b = Transpose <perm: ints = [{perm}]> (a)
    y = Reshape (b, back)
    {more}
}}"""
    model = ir.serde.deserialize_model(onnx.parser.parse_model(body))
    flagir.canonicalize(model)
    return model


_TAKEN = {
    "pixel shuffle": ("1, 2, 2, 2, 6, 6", "0, 1, 4, 2, 5, 3"),
    "windows": ("1, 8, 3, 2, 3, 2", "0, 2, 4, 3, 5, 1"),
    "many ones": ("1, 8, 1, 6, 1, 6, 1", "6, 4, 5, 0, 1, 3, 2"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", sorted(_TAKEN))
def test_axes_that_stay_together_are_one(case: str, tmp_path: Path) -> None:
    between, perm = _TAKEN[case]
    model = _shuffle(between, perm)
    assert [refusal(node) for node in model.graph] == [None] * 3
    x = np.arange(288, dtype=np.float32).reshape(1, 8, 6, 6)
    shape, order = ([int(number) for number in text.split(",")] for text in (between, perm))
    expected = x.reshape(shape).transpose(order).reshape(144, 2)
    np.testing.assert_array_equal(run(model, {"x": x}, tmp_path)["y"], expected)


def test_more_than_five_that_all_move_are_refused() -> None:
    model = _shuffle("2, 2, 2, 6, 2, 3", "5, 4, 3, 2, 1, 0")
    assert "rank 6" in (refusal(model.graph[0]) or "")


def test_what_others_read_in_between_is_refused() -> None:
    model = _shuffle("1, 2, 2, 2, 6, 6", "0, 1, 4, 2, 5, 3", "z = Flatten <axis: int = 0> (b)")
    assert "rank 6" in (refusal(model.graph[0]) or "")


def test_merging_changes_nothing() -> None:
    sizes = (2, 1, 3, 2)
    x = np.arange(12).reshape(sizes)
    for perm in itertools.permutations(range(4)):
        shape, order = merged(sizes, perm)
        np.testing.assert_array_equal(x.reshape(shape).transpose(order).ravel(), x.transpose(perm).ravel())
