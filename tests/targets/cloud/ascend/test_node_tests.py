"""Operator tests of the onnx package through files for Ascend, run by ONNX Runtime on the CPU: none wrong.

Those whose operators are written otherwise than in the graph; `flagsplit certify` runs all.
"""

from collections import Counter

import pytest

from flagsplit.targets.cloud.ascend.on_cpu import AscendOnCpu
from flagsplit.targets.conformance import node_cases, run_case

OPERATORS = {
    "8.0": "AveragePool ConvTranspose GroupNormalization Pad ReduceL2 Resize",
    "5.0": "BatchNormalization HardSwish ReduceProd RoiAlign ScatterND",
}


@pytest.mark.slow
@pytest.mark.parametrize(("cann", "least"), [("8.0", 40), ("5.0", 8)])
def test_operator_tests_of_onnx(cann: str, least: int) -> None:
    cases = [case for case in node_cases(OPERATORS[cann].split()) if not case.skip]
    found = [run_case(AscendOnCpu(), case, {"cann": cann}) for case in cases]
    assert not {result.name: result.why for result in found if result.status in ("failed", "crashed")}
    counts = Counter(result.status for result in found)
    assert counts["passed"] >= least, counts
    assert all(result.why for result in found if result.status == "refused")
