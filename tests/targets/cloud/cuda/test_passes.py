"""The passes of the cuda target: what they recognise, what they leave alone, and that both compute the same."""

from pathlib import Path

import numpy as np
import pytest
from tests.targets.cloud.cuda.graphs import OTHERS, PATTERNS, Pattern
from tests.targets.cloud.cuda.parts import drawn, expected, graph, operators, ran

from flagsplit.targets.cloud.cuda.lowering.program import build_program, to_module
from flagsplit.targets.cloud.cuda.lowering.style import Style


@pytest.mark.parametrize("pattern", [*PATTERNS, *OTHERS], ids=str)
def test_what_is_left(pattern: Pattern) -> None:
    model = graph(pattern.body, pattern.inputs, pattern.outputs, pattern.weights)
    assert tuple(sorted(operators(model))) == pattern.left


@pytest.mark.parametrize("pattern", [*PATTERNS, *OTHERS], ids=str)
def test_the_same_is_computed(pattern: Pattern, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed", exc_type=ImportError)
    model = graph(pattern.body, pattern.inputs, pattern.outputs, pattern.weights)
    made = ran(model, tmp_path, pattern.tensors)
    for name, array in expected(tmp_path, pattern.tensors).items():
        np.testing.assert_allclose(made[name], array, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("style", [Style(products=True), Style(shifts=True), Style(cudnn=True)], ids=str)
def test_styles_compute_the_same(style: Style) -> None:
    """A convolution of one pixel, and one of single channels with steps and gaps."""
    torch = pytest.importorskip("torch", reason="torch is not installed", exc_type=ImportError)
    model = graph(
        "a = Conv (x, w) b = Conv <group = 6, strides = [2, 1], dilations = [1, 2], pads = [1, 0, 2, 1]> (a, d, e) "
        "y = Add (b, b)",
        "float[2,3,9,9] x",
        "float[2,6,5,6] y",
        {"w": drawn(6, 3, 1, 1), "d": drawn(6, 1, 3, 3), "e": drawn(6)},
    )
    x = torch.from_numpy(drawn(2, 3, 9, 9))
    plain, styled = (to_module(build_program(model, "", each), ["float32"], "cpu") for each in (Style(), style))
    torch.testing.assert_close(styled(x), plain(x))
