"""The ONNX project's node tests through the lowering, a saved package and the reference interpreter."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from tests.targets.mobile.coreml.lowering.node_tests import NodeTest, joined, node_tests, take_out_refused
from tests.targets.mobile.coreml.lowering.packages import run

from flagsplit.targets.interface import Array
from flagsplit.targets.mobile.coreml.lowering.registry import rules

_BY_HAND = frozenset(("test_averagepool_2d_ceil_last_window_starts_on_pad", "test_gridsample_bicubic"))
"""Their answers are typed in with four decimals."""
_MOST_EACH = 3
"""How many tests of an operator are run here; a target's score card has all of them."""


_WITHOUT_TESTS = frozenset[str]()
"""Operators that the ONNX project has no test for, of types that Core ML has."""


def _wrong(expected: Array, came: Array, name: str) -> str:
    came = came.reshape(expected.shape)
    if expected.dtype.kind != "f":
        return "" if (came.astype(np.int64) == expected.astype(np.int64)).all() else "integers differ"
    relative, scaled = (2e-3, 1e-3) if expected.dtype == np.float16 else (1e-4, 1e-6)
    factor = 10 if name in _BY_HAND else 1
    wide, other = expected.astype(np.float64), came.astype(np.float64)
    largest = np.abs(wide[np.isfinite(wide)]).max(initial=0)
    with np.errstate(invalid="ignore"):
        near = np.abs(wide - other) <= factor * (relative * np.abs(wide) + scaled * largest)
    good = near | (wide == other) | (np.isnan(wide) & np.isnan(other))
    return "" if good.all() else f"{int((~good).sum())} of {good.size} differ: {wide[~good][0]} came {other[~good][0]}"


def _outcome(tests: list[NodeTest], folder: Path) -> tuple[set[str], dict[str, str], dict[str, str]]:
    """Which tests passed, and what was wrong with others, and why the rest was refused."""
    passed: set[str] = set()
    wrong: dict[str, str] = {}
    refused: dict[str, str] = {}
    for at, (model, group) in enumerate(joined(tests)):
        refused |= take_out_refused(model, group)
        here = folder / str(at)
        here.mkdir()
        kept = [test for test in group if test.name not in refused]
        if not kept:
            continue
        made = run(model, {name: array for test in kept for name, array in test.inputs.items()}, here)
        for test in kept:
            problems = [_wrong(array, made[name], test.name) for name, array in test.outputs.items()]
            if any(problems):
                wrong[test.name] = next(filter(None, problems))
            else:
                passed.add(test.name)
    return passed, wrong, refused


@pytest.mark.slow
def test_saved_programs_answer_as_onnx_says(tmp_path: Path) -> None:
    by_operator = defaultdict(list)
    for test in node_tests():
        by_operator[test.node.op_type].append(test)
    some = [test for tests in by_operator.values() for test in tests[:_MOST_EACH]]
    passed, wrong, refused = _outcome(some, tmp_path)
    assert not wrong
    assert {test.node.op_type for test in some if test.name in passed} >= set(rules()) - _WITHOUT_TESTS
    assert len(passed) + len(refused) == len(some)
