"""The passes of the cuda target: what they recognise, what they leave alone, and that both compute the same."""

from pathlib import Path

import numpy as np
import pytest
from tests.targets.cloud.cuda.graphs import OTHERS, PATTERNS, Pattern
from tests.targets.cloud.cuda.parts import expected, graph, operators, ran


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
