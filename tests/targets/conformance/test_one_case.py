"""One case in this process: every way in which a target can be off is found, and called by its name."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.targets.conformance import odd_targets
from tests.targets.onnx_chip import OnnxChip

from flagsplit.errors import ConfigError
from flagsplit.targets.cloud.ort import OrtTarget
from flagsplit.targets.conformance import Case, CaseResult, check_case, run_case
from flagsplit.targets.conformance.cases import operators_of, read_case, write_case
from flagsplit.targets.interface import Array, Target, TargetDescription


def case_of(text: str, inputs: Sequence[Array], outputs: Sequence[Array], opset: int = 18) -> Case:
    """A case from the text of a graph."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{text}')
    given = {info.name: np.asarray(array) for info, array in zip(model.graph.input, inputs, strict=True)}
    wanted = {info.name: np.asarray(array) for info, array in zip(model.graph.output, outputs, strict=True)}
    return Case("a case", "node", operators_of(model), model, given, wanted)


X = np.array([-1.5, 0.0, 2.0], np.float32)
ABS = case_of("g (float[3] x) => (float[3] y) { y = Abs(x) }", [X], [np.abs(X)])
ADD = case_of("g (float[3] x, float[3] z) => (float[3] y) { y = Add(x, z) }", [X, X], [X + X])
RESHAPE = case_of(
    "g (float[2, 3] x, int64[n] shape) => (float[a, b] y) { y = Reshape(x, shape) }",
    [np.arange(6, dtype=np.float32).reshape(2, 3), np.array([3, 2])],
    [np.arange(6, dtype=np.float32).reshape(3, 2)],
)
CONSTANT = case_of(
    "g (float[3] x) => (int64[1] y, float[3] same) { y = Shape(x)\n same = Identity(x) }", [X], [np.array([3]), X]
)


def test_right() -> None:
    for case in (ABS, ADD, RESHAPE):
        assert run_case(OrtTarget(), case) == CaseResult("a case", "passed")


@pytest.mark.parametrize(
    ("target", "status", "why"),
    [
        (odd_targets.Wrong(), "failed", "output 'y': 2 of 3 elements are off, by up to 0.002 or 0.001 of the largest"),
        (odd_targets.OtherType(), "failed", "output 'y': float64[3] instead of float32[3]"),
        (odd_targets.Silent(), "failed", "output 'y' is missing"),
        (odd_targets.Scribbler(), "failed", "run changed its input 'x'"),
        (odd_targets.Raising(), "crashed", "KeyError: 'the\\nkernel'"),
        (odd_targets.Misspeaking(), "failed", "compile raised BundleError: cannot compile node 'a' (Abs)"),
        (odd_targets.Refusing(), "refused", "Abs: no absolutes"),
        (odd_targets.Disagreeing(), "refused", "cannot compile node 'a' (Abs)"),
    ],
)
def test_odd(target: Target, status: str, why: str) -> None:
    found = run_case(target, ABS)
    assert (found.status, found.constants) == (status, "none")
    assert found.why.startswith(why)
    disagree = isinstance(target, odd_targets.Disagreeing)
    assert found.disagreement == (found.why if disagree else "")
    if status == "refused":
        assert check_case(target, ABS) == found
    else:
        with pytest.raises(AssertionError, match=f"a case {status}: "):
            check_case(target, ABS)


def test_a_missing_sdk_ends_it() -> None:
    with pytest.raises(ConfigError, match=r"needs baretools.*flagsplit\[bare\]"):
        run_case(odd_targets.Bare(), ABS)


def test_inputs_become_constants_only_where_they_must() -> None:
    fussy = odd_targets.Fussy()
    assert run_case(fussy, ABS).constants == "none"
    assert run_case(fussy, RESHAPE) == CaseResult("a case", "passed", constants="sizes")
    assert run_case(fussy, ADD) == CaseResult("a case", "passed", constants="all but the first")


def test_a_chip_takes_a_shape_that_is_constant() -> None:
    assert run_case(OnnxChip(), RESHAPE) == CaseResult("a case", "passed", constants="sizes")
    depends = case_of(
        "g (bool[3] c, float[3] x) => (float[n] y) { y = Compress(x, c) }",
        [np.array([True, False, True]), X],
        [X[[0, 2]]],
    )
    found = run_case(OnnxChip(), depends)
    assert (found.status, found.disagreement) == ("refused", "")
    assert "depends on data" in found.why


@pytest.mark.parametrize("target", [OrtTarget(), OnnxChip()])
def test_nothing_left_to_do_is_no_pass(target: Target) -> None:
    found = run_case(target, CONSTANT)
    assert (found.status, found.constants) == ("skipped", "none")
    assert "nothing is left for the target" in found.why


def test_nothing_left_to_do_is_checked_all_the_same() -> None:
    wrong = Case("a case", "node", CONSTANT.operators, CONSTANT.model, CONSTANT.inputs, {"y": np.array([4])})
    found = run_case(OnnxChip(), wrong)
    assert (found.status, found.why) == ("failed", "output 'y': 1 of 1 elements differ, which must be equal")


def test_what_is_no_flagir_is_skipped() -> None:
    alien = case_of("g (float[3] x) => (float[3] y) { y = Abs(x) }", [X], [X])
    assert isinstance(alien.model, onnx.ModelProto)
    alien.model.graph.node[0].domain = "com.acme"
    found = run_case(OrtTarget(), alien)
    assert found.status == "skipped"
    assert found.why.startswith("not a FlagIR model: expected only standard ONNX operators, found com.acme.Abs")


class Narrow(OnnxChip):
    """Takes float16 of one dimension at its edge, whatever the node."""

    def describe(self) -> TargetDescription:
        return TargetDescription("narrow", "1", ("float16",), 1, True, "yes", "itself", "high")


@pytest.mark.parametrize(
    ("shape", "kind", "why"),
    [
        ([3], "float", "its segments take and give no float32"),
        ([1, 3], "float16", "its segments take and give tensors of at most 1 dimensions"),
    ],
)
def test_the_edge_counts(shape: list[int], kind: str, why: str) -> None:
    x = np.ones(shape, {"float": "float32"}.get(kind, kind))
    case = case_of(f"g ({kind}{shape} x) => ({kind}{shape} y) {{ y = Abs(x) }}", [x], [x])
    found = run_case(Narrow(), case)
    assert (found.status, found.why) == ("refused", why)


def test_random_answers_are_compared_by_shape() -> None:
    x = np.zeros((2, 3), np.float32)
    case = case_of("g (float[2, 3] x) => (float[2, 3] y) { y = RandomNormalLike(x) }", [x], [x], opset=21)
    drawn: Mapping[str, Array] = {"y": x}
    assert run_case(OrtTarget(), case).status in ("failed", "refused")
    random = Case("a case", "node", case.operators, case.model, case.inputs, drawn, random=True)
    other = Case("a case", "node", case.operators, case.model, case.inputs, {"y": x[:1]}, random=True)
    statuses = [run_case(OrtTarget(), each).status for each in (random, other)]
    assert statuses in (["passed", "failed"], ["refused", "refused"])


def test_a_case_survives_the_disk(tmp_path: Path) -> None:
    odd = Case(
        "a case",
        "corpus",
        ("Abs",),
        ABS.model,
        {"x/y": np.array([np.nan, np.inf], np.float16), "": np.array(True)},
        {"..": np.zeros((0, 3), np.int64)},
        nodes=("a", "b"),
        sample={"x": np.zeros((2, 0), np.float32)},
        random=True,
        limit_s=2.5,
    )
    write_case(odd, tmp_path / "case")
    back = read_case(tmp_path / "case")
    assert isinstance(back.model, Path)
    assert onnx.load(back.model) == odd.model
    assert list(back.inputs) == list(odd.inputs)
    for name, array in {**odd.inputs, **odd.outputs, **odd.sample}.items():
        found = {**back.inputs, **back.outputs, **back.sample}[name]
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
    for name in ("name", "source", "operators", "nodes", "random", "limit_s"):
        assert getattr(back, name) == getattr(odd, name)
