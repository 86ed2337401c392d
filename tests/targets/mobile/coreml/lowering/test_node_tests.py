"""The ONNX project's node tests through the lowering, a saved package and the reference interpreter."""

from pathlib import Path

import pytest
from tests.targets.mobile.coreml.lowering.node_tests import joined, node_tests, take_out_refused
from tests.targets.mobile.coreml.lowering.packages import called, outcome

from flagsplit.errors import ModelError
from flagsplit.targets.mobile.coreml.lowering.program import build_program
from flagsplit.targets.mobile.coreml.lowering.registry import rules

_LEAST_PASSING = 700
_WITHOUT_TESTS = frozenset(("DequantizeLinear", "Einsum", "GlobalLpPool", "MatMulInteger", "Not", "QuantizeLinear")) | {
    "ReduceLogSumExp"
}
"""Operators that the ONNX project has no test for that Core ML takes; see test_against_onnxruntime.py."""


@pytest.mark.slow
def test_saved_programs_answer_as_onnx_says(tmp_path: Path) -> None:
    tests = node_tests()
    passed, wrong, refused = outcome(tests, tmp_path)
    assert not wrong
    assert {test.node.op_type for test in tests if test.name in passed} >= set(rules()) - _WITHOUT_TESTS
    assert len(passed) + len(refused) == len(tests)
    assert len(passed) >= _LEAST_PASSING


_REFUSED = (
    "test_batchnorm_example_training_mode",
    "test_dft_irfft",
    "test_reduce_sum_empty_set",
    "test_resize_downsample_scales_linear_align_corners",
    "test_unsqueeze_three_axes",
)


@pytest.mark.parametrize("name", _REFUSED)
def test_what_is_refused_is_not_built(name: str) -> None:
    """Compiling gives the very reason that was given when asked."""
    tests = [test for test in node_tests() if test.name == name]
    reasons: dict[str, str] = {}
    for model, group in joined(tests):
        reasons |= take_out_refused(model.clone(), group)
        names = {value.name or "": called(value.name or "") for value in (*model.graph.inputs, *model.graph.outputs)}
        with pytest.raises(ModelError) as error:
            build_program(model, names)
        assert reasons[name].split(": ", 1)[1] in str(error.value)
