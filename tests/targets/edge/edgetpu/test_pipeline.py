"""Parts for several chips: the cut points against all there are, and what the parts answer."""

from itertools import combinations

import numpy as np
import pytest
from tests.targets.tflite.int8_parts import int8_part

from flagsplit.targets.edge.edgetpu.facts import LINK_BYTES_PER_S, SRAM_BYTES
from flagsplit.targets.edge.edgetpu.forms import lowered
from flagsplit.targets.edge.edgetpu.pipeline import Costs, balanced, divided
from flagsplit.targets.tflite.program import Operator, Program, Tensor


def _slowest(costs: list[list[float]], ends: list[int]) -> float:
    return max(costs[first][end - first - 1] for first, end in zip([0, *ends], ends, strict=False))


def _best(costs: list[list[float]], parts: int) -> float:
    count = len(costs)
    return min(_slowest(costs, [*cuts, count]) for some in range(parts) for cuts in combinations(range(1, count), some))


@pytest.mark.parametrize("seed", range(30))
def test_the_slowest_part_is_as_quick_as_any_cut_points_make_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count, parts = int(rng.integers(1, 9)), int(rng.integers(1, 5))
    costs = [[float(each) for each in rng.integers(1, 50, count - first)] for first in range(count)]
    ends = balanced(costs, parts)
    assert ends[-1] == count
    assert ends == sorted(set(ends))
    assert len(ends) <= parts
    assert _slowest(costs, ends) == _best(costs, parts)


def _chain(megabytes: list[int]) -> Program:
    """Dense layers, one after another, of so many MiB each."""
    x = first = Tensor((1, 1024), "int8")
    operators = []
    for size in megabytes:
        weights = Tensor((1024, 1024 * size), "int8", np.zeros((1024, 1024 * size), np.int8))
        y = Tensor((1, 1024), "int8")
        operators.append(Operator("FULLY_CONNECTED", (x, weights, None), (y,)))
        x = y
    return Program([first], [x], operators)


def test_parameters_over_the_memory_of_one_chip_are_spread() -> None:
    program = _chain([3, 3, 3, 3, 3])
    alone = Costs(program).from_first(0)[-1]
    assert alone > (15 * (1 << 20) - SRAM_BYTES) / LINK_BYTES_PER_S
    parts = divided(program, 3)
    assert len(parts) == 3
    assert max(Costs(part).from_first(0)[-1] for part in parts) < 1e-3


def test_parts_hand_on_what_later_ones_read() -> None:
    part = int8_part(
        "a = Add(x, x) b = Mul(a, a) c = Sub(b, x) d = Tanh(c) y = Add(d, a)", "float[1,4,6,6] x", "float[1,4,6,6] y"
    )
    program = lowered(part)
    for count in (2, 3, 4):
        parts = divided(program, count)
        known = set(program.inputs)
        for each in parts:
            assert set(each.inputs) <= known
            known |= set(each.outputs)
        assert set(program.outputs) <= known
        assert [operator for each in parts for operator in each.operators] == program.operators
