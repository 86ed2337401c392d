"""Which of the ONNX project's node tests apply, and that they are what they were."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagsplit.targets.conformance import node_cases
from flagsplit.targets.conformance.cases import DTYPES


def test_all_are_there_in_order() -> None:
    found = node_cases()
    names = [case.name for case in found]
    assert len(found) > 1800
    assert names == sorted(set(names))
    applying = [case for case in found if not case.skip]
    assert len(applying) > 1350
    for case in applying:
        assert case.outputs
        assert {array.dtype.name for array in (*case.inputs.values(), *case.outputs.values())} <= set(DTYPES)
    assert [case.name for case in node_cases()] == names


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("test_abs", ""),
        ("test_cast_FLOAT16_to_FLOAT", ""),
        ("test_cast_FLOAT16_to_DOUBLE", "it has a tensor of float64; cases are of float32, float16"),
        ("test_sequence_insert_at_front", "it has a value that is a sequence, not a tensor"),
        ("test_optional_has_element_optional_input", "it has a value that is a optional, not a tensor"),
        ("test_string_concat", "it has a tensor of string"),
        ("test_qlinearconv", "it has a tensor of uint8"),
    ],
)
def test_what_applies(name: str, why: str) -> None:
    (case,) = node_cases(names=[name])
    assert case.skip.startswith(why)
    assert bool(case.skip) == bool(why)


def test_inputs_and_answers_fit() -> None:
    (case,) = node_cases(names=["test_cast_FLOAT16_to_FLOAT"])
    np.testing.assert_array_equal(case.inputs["input"].astype(np.float32), case.outputs["output"])
    assert case.operators == ("Cast",)


@given(st.sets(st.sampled_from(["Abs", "Add", "If", "ai.onnx.ml.LabelEncoder", "Nonsense"])))
def test_filters(operators: set[str]) -> None:
    found = node_cases(operators=operators)
    expected = [case.name for case in node_cases() if operators & set(case.operators) or not operators]
    assert [case.name for case in found] == expected
    assert [case.name for case in node_cases(operators, ["test_abs"])] == ["test_abs"] * (
        not operators or "Abs" in operators
    )


def test_operators_of_subgraphs_count() -> None:
    (case,) = node_cases(names=["test_if"])
    assert "If" in case.operators
    (loop,) = node_cases(names=["test_loop11"])
    assert {"Loop", "Add"} <= set(loop.operators)


@pytest.mark.parametrize(
    ("name", "random"),
    [("test_bernoulli_seed", True), ("test_training_dropout_default", True), ("test_dropout_default", False)],
)
def test_random_ones_are_known(name: str, random: bool) -> None:
    (case,) = node_cases(names=[name])
    assert case.random is random
