"""The operator tests of the onnx package through the cuda target's program on the CPU: none wrong, none crashed."""

from collections import Counter

import pytest

from flagsplit.targets.cloud.cuda.target import CudaTarget
from flagsplit.targets.conformance import node_cases, run_case

torch = pytest.importorskip("torch", reason="torch is not installed", exc_type=ImportError)


@pytest.mark.slow
def test_operator_tests_of_onnx() -> None:
    target, choices = CudaTarget(), {"device": "cpu", "precision": "fp32"}
    found = [run_case(target, case, choices) for case in node_cases() if not case.skip]
    bad = {result.name: (result.status, result.why) for result in found if result.status in ("failed", "crashed")}
    assert not bad
    disagreements = {result.name: result.disagreement for result in found if result.disagreement}
    assert not disagreements
    counts = Counter(result.status for result in found)
    assert counts["passed"] >= 1200, counts
    assert all(result.why for result in found if result.status == "refused")
