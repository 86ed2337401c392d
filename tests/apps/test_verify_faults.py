"""Faults that verification finds: wrong nodes, changed files, errors that add up through codecs."""

import math
from functools import partial
from pathlib import Path

import onnx
import pytest
from tests.apps import lossy, models
from tests.apps.faulty import Faulty, of, same, verdicts
from tests.targets.faulty_chip import FaultyChip, spoil

import flagsplit
from flagsplit.apps.fault import Cause
from flagsplit.targets.catalogue import TARGETS

pytestmark = pytest.mark.usefixtures("own_folders")


@pytest.mark.slow
@pytest.mark.parametrize("value", ["b", "e", "k", "scores"])
def test_the_wrong_node_is_named(faulty: Faulty, value: str) -> None:
    report = flagsplit.verify(faulty({value: 1.25}))
    assert {check.verdict for check in of(report, "ort")} == {"agrees"}
    (check,) = [check for check in of(report, "faulty") if check.verdict == "departs"]
    assert check.tier == "phone"
    assert check.plans
    fault = check.fault
    assert fault is not None
    assert fault.cause is Cause.NODE
    graph = {node.output[0]: node for node in models.small().graph.node}
    assert [node.op_type for node in fault.nodes] == [graph[value].op_type]
    assert [each.name for each in fault.nodes[0].inputs] == list(graph[value].input)
    assert fault.nodes[0].block
    assert fault.output is not None
    assert fault.output.name == value
    assert fault.output.norm_relative == pytest.approx(0.25, rel=1e-3)
    assert fault.output.first is not None
    assert fault.output.first.came == pytest.approx(1.25 * float(fault.output.first.expected), rel=1e-5)
    assert f'{{"pins": {{"{fault.nodes[0].name}": "cloud"}}}}' in fault.advice
    wrong = [each for each in report.plans if each.verdict == "departs"]
    assert wrong
    assert all("faulty" in each.targets.values() for each in wrong)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_what_is_not_a_number(faulty: Faulty, factor: float) -> None:
    report = flagsplit.verify(faulty({"c": factor}))
    (check,) = [check for check in of(report, "faulty") if check.verdict == "departs"]
    assert check.fault is not None
    assert check.fault.nodes[-1].op_type == "Conv"
    assert check.fault.output is not None
    assert check.fault.output.norm_relative == math.inf
    assert "elements are" in check.fault.output.note


@pytest.mark.slow
def test_whole_numbers_must_be_equal(faulty: Faulty) -> None:
    """Scores of another sign have their largest elsewhere; the label says so although a tolerance lets scores pass."""
    report = flagsplit.verify(faulty({"scores": -1.0}), tolerances=["faulty=100"])
    (check,) = [check for check in of(report, "faulty") if check.verdict == "departs"]
    assert [each.name for each in check.outputs if each.departs] == ["label"]


@pytest.mark.slow
def test_choices_are_recorded_and_compiled_with_again(faulty: Faulty) -> None:
    bundle = faulty({"c": 1.5}, choices={"faulty": {"precision": "fp16"}})
    assert bundle.artifact(0, "faulty").options["choice.precision"] == "fp16"
    (check,) = [check for check in of(flagsplit.verify(bundle), "faulty") if check.verdict == "departs"]
    assert str(check.allowed) == "norm ≤ 0.01"
    assert check.fault is not None
    assert "another precision than fp16, --choice faulty.precision=" in check.fault.advice
    assert flagsplit.verify(bundle, bisect=False, targets=["faulty"]).segments[0].fault is None


@pytest.mark.slow
def test_a_changed_weight_of_an_onnx_artifact(faulty: Faulty) -> None:
    bundle = faulty({})
    made = bundle.artifact(0)
    step = bundle.plans.steps["all-phone"][0]
    file = bundle.folder / made.folder / made.entries[step.segment]
    model = onnx.load(file, load_external_data=False)
    (old,) = [tensor for tensor in model.graph.initializer if tensor.name == "w3"]
    weight = onnx.numpy_helper.to_array(models.small().graph.initializer[2]).copy()
    weight[5, 7] += 1
    old.CopyFrom(onnx.numpy_helper.from_array(weight, "w3"))
    _overwrite(file, model.SerializeToString())
    report = flagsplit.verify(bundle, plans=["all-phone"])
    (check,) = [check for check in report.segments if check.verdict == "departs"]
    assert check.target == "ort"
    fault = check.fault
    assert fault is not None
    assert fault.cause is Cause.STORED
    assert [node.op_type for node in fault.nodes] == ["Conv"]
    assert [each.name for each in fault.nodes[0].inputs] == ["e", "w3"]
    assert "weight w3" in fault.note
    assert "build the bundle again" in fault.advice
    _overwrite(file, b"no model")
    (check,) = [each for each in flagsplit.verify(bundle, plans=["all-phone"]).segments if each.target == "ort"]
    assert check.verdict == "failed"
    assert check.fault is not None
    assert check.fault.cause is Cause.STORED
    assert "no ONNX model" in check.fault.note


@pytest.mark.slow
def test_a_changed_artifact_of_a_chip(faulty: Faulty) -> None:
    bundle = faulty({})
    step = bundle.plans.steps["all-phone"][0]
    file = bundle.folder / bundle.artifact(0, "faulty").folder / f"{step.segment}.chip.onnx"
    _overwrite(file, spoil(file.read_bytes(), {"f": 1.1}))
    report = flagsplit.verify(bundle, plans=["all-phone"], targets=["faulty"])
    (check,) = report.segments
    assert check.verdict == "departs"
    assert check.fault is not None
    assert check.fault.cause is Cause.STORED
    assert "build the bundle again" in check.fault.advice
    _overwrite(file, b"no model")
    report = flagsplit.verify(bundle, plans=["all-phone"], targets=["faulty"])
    assert report.segments[0].verdict == report.plans[0].verdict == "failed"
    assert report.segments[0].fault is not None
    assert report.segments[0].fault.cause is Cause.STORED
    assert "cannot load" in report.segments[0].reason


def _overwrite(file: Path, data: bytes) -> None:
    file.chmod(0o644)
    file.write_bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["none", *lossy.CODECS])
def test_lossy_plans(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, codec: str) -> None:
    """A chip that is right to 2e-5 agrees although codecs round some of its numbers the other way."""
    monkeypatch.setitem(TARGETS, "faulty", partial(same, FaultyChip({"": 1 + 2e-6})))
    bundle = lossy.build_with(tmp_path, codec, targets={"phone": ("faulty",), "edge": ("faulty",)})
    report = flagsplit.verify(bundle, [lossy.inputs_of(1), lossy.inputs_of(2)])
    assert verdicts(report) == {"agrees"}
    assert not report.made_up
    assert {each.plan for each in report.plans} >= set(lossy.PLACES)
    found = [one for check in of(report, "faulty") for one in check.outputs]
    assert any(one.differing for one in found)
    assert codec == "none" or any(f" as {codec}" in one.name for one in found)


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["fp16", "u4_per_channel"])
def test_a_fault_beside_codecs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, codec: str) -> None:
    monkeypatch.setitem(TARGETS, "faulty", partial(same, FaultyChip({"d": 3.0})))
    bundle = lossy.build_with(tmp_path, codec, order=["up"], targets={"cloud": ("faulty",)})
    report = flagsplit.verify(bundle, [lossy.inputs_of(1)])
    (check,) = [check for check in report.segments if check.verdict == "departs"]
    assert (check.tier, check.plans) == ("cloud", ("up",))
    assert check.fault is not None
    (plan,) = [each for each in report.plans if each.verdict == "departs"]
    assert [(one.tier, one.output.departs) for one in plan.steps] == [
        ("phone", False),
        ("edge", False),
        ("cloud", True),
    ], "an answer of an earlier step is not off"
    assert check.fault.nodes[-1].name.startswith("d"), "under the plan's own name"
    assert check.fault.nodes[-1].op_type == "Add"
    assert check.fault.nodes[-1].block


@pytest.mark.slow
def test_errors_that_add_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each segment is within the tolerance, the whole is not."""
    monkeypatch.setitem(TARGETS, "faulty", partial(same, FaultyChip({"": 1 + 3e-5})))
    bundle = lossy.build_with(tmp_path, "none", order=["up"], targets=dict.fromkeys(lossy.TIERS, ("faulty",)))
    report = flagsplit.verify(bundle, [lossy.inputs_of(1)])
    assert {check.verdict for check in report.segments} == {"agrees"}
    assert report.departs
    (plan,) = [each for each in report.plans if each.verdict == "departs"]
    errors = [one.output.norm_relative for one in plan.steps]
    assert errors == sorted(errors)
    assert "of cloud/faulty agrees by itself; here it makes of an error of" in plan.reason
