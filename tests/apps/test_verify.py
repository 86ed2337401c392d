"""Bundles verified: what agrees, what departs and where, what was tampered with, what cannot be checked here."""

import json
import math
import wave
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests.apps import lossy, models
from tests.targets.faulty_chip import FaultyChip, spoil
from tests.targets.onnx_chip import OnnxChip

import flagsplit
from flagsplit.apps import zoo
from flagsplit.apps.deviation import Tolerance
from flagsplit.apps.fault import Cause
from flagsplit.apps.groundwork import BuildOptions
from flagsplit.apps.pipeline import build
from flagsplit.apps.samples import real_sample
from flagsplit.apps.tolerances import read_tolerances, tolerance_of
from flagsplit.apps.verification import SegmentCheck, VerifyReport
from flagsplit.errors import BundleError, ConfigError, InputError, PeerError, PolicyError
from flagsplit.runtime.bundle import Bundle
from flagsplit.splitter.problem import Problem
from flagsplit.targets.catalogue import TARGETS, missing_sdk

pytestmark = pytest.mark.usefixtures("own_folders")

SHAPE = (2, 3, 16, 16)


def _same(thing: Any) -> Any:
    return thing


Faulty = Callable[..., Bundle]


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Faulty:
    """Builds the small model for a phone whose chip has faults."""

    def build(factors: Mapping[str, float], **more: Any) -> Bundle:
        monkeypatch.setitem(TARGETS, "faulty", partial(_same, FaultyChip(factors)))
        model = models.save(models.small(), tmp_path / "small.onnx")
        choices = {"targets": {"phone": ["faulty"]}, "shapes": {"image": SHAPE}, **more}
        flagsplit.build(model, "phone,cloud", tmp_path / "b.flagsplit", **choices)
        return flagsplit.open(tmp_path / "b.flagsplit", cache=tmp_path / "cache")

    return build


def of(report: VerifyReport, target: str) -> list[SegmentCheck]:
    return [check for check in report.segments if check.target == target]


def verdicts(report: VerifyReport) -> set[str]:
    return {each.verdict for each in report.segments} | {each.verdict for each in report.plans}


@pytest.mark.slow
def test_a_right_chip_agrees(faulty: Faulty) -> None:
    report = flagsplit.verify(faulty({}), random=2)
    assert verdicts(report) == {"agrees"}
    assert not report.departs
    assert report.made_up
    assert report.samples == ("random, seed 0", "random, seed 1")
    assert {str(check.allowed) for check in of(report, "ort")} == {"bit for bit"}
    assert {str(check.allowed) for check in of(report, "faulty")} == {"norm ≤ 0.0001"}
    ways = {tuple(each.targets.items()) for each in report.plans}
    assert (("phone", "faulty"),) in ways
    assert (("phone", "ort"),) in ways


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
    monkeypatch.setitem(TARGETS, "faulty", partial(_same, FaultyChip({"": 1 + 2e-6})))
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
    monkeypatch.setitem(TARGETS, "faulty", partial(_same, FaultyChip({"d": 3.0})))
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
    monkeypatch.setitem(TARGETS, "faulty", partial(_same, FaultyChip({"": 1 + 3e-5})))
    bundle = lossy.build_with(tmp_path, "none", order=["up"], targets=dict.fromkeys(lossy.TIERS, ("faulty",)))
    report = flagsplit.verify(bundle, [lossy.inputs_of(1)])
    assert {check.verdict for check in report.segments} == {"agrees"}
    assert report.departs
    (plan,) = [each for each in report.plans if each.verdict == "departs"]
    errors = [one.output.norm_relative for one in plan.steps]
    assert errors == sorted(errors)
    assert "of cloud/faulty agrees by itself; here it makes of an error of" in plan.reason


@pytest.mark.slow
def test_atoms_are_run_too(tmp_path: Path) -> None:
    bundle = lossy.build_with(tmp_path, "none", residency="atoms")
    chains = sum(bool(bundle.chains_of(tier)) for tier in range(3))
    assert chains
    report = flagsplit.verify(bundle, [lossy.inputs_of(1)])
    assert not report.departs
    assert any(check.atoms for check in report.segments)


@pytest.mark.slow
def test_what_this_host_has_no_means_for(faulty: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = faulty({})

    def refuse(*_: object) -> None:
        raise ConfigError("the faulty target needs faultytools; pip install 'flagsplit[faulty]'")

    chip = FaultyChip({})
    monkeypatch.setitem(TARGETS, "faulty", partial(_same, chip))
    monkeypatch.setattr(chip, "load_part", refuse)
    report = flagsplit.verify(bundle)
    assert not report.departs
    assert report.unchecked == ("phone/faulty: the faulty target needs faultytools; pip install 'flagsplit[faulty]'",)
    assert report.checked == len(of(report, "ort"))
    monkeypatch.setattr(chip, "describe", partial(_same, replace(chip.describe(), runs_here="no")))
    assert flagsplit.verify(bundle).unchecked == ("phone/faulty: nothing on this host runs artifacts of faulty",)
    monkeypatch.delitem(TARGETS, "faulty")
    assert flagsplit.verify(bundle).unchecked == ("phone/faulty: this flagsplit has no target faulty",)


@pytest.mark.slow
def test_what_a_chip_does_not_take_is_verified_where_it_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The device's first chip has no Softmax; its second runs the segments that have one."""
    for name, chip in (("first", OnnxChip(refused=["Softmax"])), ("second", OnnxChip())):
        monkeypatch.setattr(chip, "describe", partial(_same, replace(chip.describe(), name=name)))
        monkeypatch.setitem(TARGETS, name, partial(_same, chip))
    device = {"extends": "pixel8", "chip_targets": {"first": "fp32", "second": "fp32"}}
    (tmp_path / "mine.json").write_text(json.dumps({"version": 1, "devices": {"mine": device}}))

    def early(problem: Problem) -> Mapping[str, Sequence[int]]:
        return {"early": [0] * (len(problem.graph.blocks) - 3) + [1] * 3}

    options = BuildOptions(shapes={"image": SHAPE}, catalogues=[tmp_path / "mine.json"], extra_plans=early)
    model, output = models.save(models.small(), tmp_path / "small.onnx"), tmp_path / "b.flagsplit"
    build(model, ["phone", "cloud"], output, devices={"phone": "mine"}, options=options)
    report = flagsplit.verify(output)
    assert verdicts(report) == {"agrees"}
    ran = {(each.plan, each.targets["phone"], each.steps[0].target) for each in report.plans if "phone" in each.targets}
    chips = {("early", "first", "first"), ("early", "second", "second"), ("all-phone", "second", "second")}
    assert ran == chips | {("early", "ort", "ort"), ("all-phone", "ort", "ort")}
    assert {check.plans for check in of(report, "first")} == {("early",)}


@pytest.mark.slow
def test_what_an_engine_raises_fails_its_artifact_alone(faulty: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = faulty({})

    def crash(*_: object) -> None:
        raise RuntimeError("out of tiles")

    chip = FaultyChip({})
    monkeypatch.setitem(TARGETS, "faulty", partial(_same, chip))
    monkeypatch.setattr(chip, "load_part", crash)
    report = flagsplit.verify(bundle)
    assert {(check.target, check.verdict) for check in report.segments} == {("faulty", "failed"), ("ort", "agrees")}
    (check,) = of(report, "faulty")
    assert check.reason == "RuntimeError: out of tiles"
    assert check.fault is not None
    assert check.fault.nodes[0].op_type == "Conv", "the first that the chip would run"
    monkeypatch.setattr(chip, "load_part", partial(FaultyChip.load_part, chip))
    monkeypatch.setitem(TARGETS, "faulty", partial(_same, FaultyChip({})))
    assert not flagsplit.verify(bundle).departs


@pytest.mark.slow
def test_real_data_out_of_the_zoo(faulty: Faulty) -> None:
    try:
        zoo.pull("page.png")
    except PeerError as error:
        pytest.skip(str(error))
    report = flagsplit.verify(faulty({}), samples=["page.png"])
    assert report.samples == ("page.png",)
    assert not report.made_up
    assert not report.departs


@pytest.mark.slow
def test_a_recording_beside_a_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 bits become -1..1, over again where there are too few; the mask is 1."""
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(np.array([0, 16384, -32768], "<i2").tobytes())
    monkeypatch.setattr(zoo, "pull", lambda _: tmp_path / "a.wav")
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 5] sound, int64[N, 5] mask) => (float[N, 5] y)
    { heard = Cast <to = 1> (mask)  y = Mul(sound, heard) }"""
    model = models.save(onnx.parser.parse_model(text), tmp_path / "audio.onnx")
    built = flagsplit.build(model, "phone,cloud", tmp_path / "a.flagsplit", dims={"N": 1})
    sample = real_sample(flagsplit.open(built.path), "beckett.wav")
    np.testing.assert_array_equal(sample.tensors["sound"], np.array([[0, 0.5, -1, 0, 0.5]], np.float32))
    np.testing.assert_array_equal(sample.tensors["mask"], np.ones((1, 5), np.int64))
    assert not flagsplit.verify(built.path, samples=["beckett.wav"]).departs
    with pytest.raises(InputError, match="no picture"):
        real_sample(flagsplit.open(built.path), "page.png")
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    with pytest.raises(InputError, match="a WAV file"):
        real_sample(flagsplit.open(built.path), "beckett.wav")


def test_what_cannot_be_verified(split_bundle: Path, tmp_path: Path) -> None:
    bundle = flagsplit.open(split_bundle)
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"plans": ["nonsense"]}, PolicyError, "'nonsense' is not in the pool"),
        ({"tiers": ["moon"]}, PolicyError, "expected a tier"),
        ({"targets": ["coreml"]}, PolicyError, r"artifacts \(ort\), came 'coreml'"),
        ({"inputs": [{"image": np.zeros(3, np.float32)}]}, InputError, "expected shape"),
        ({"inputs": [tmp_path / "none.npz"]}, InputError, "no such input file"),
        ({"dims": {"Q": 3}}, InputError, "open dimension"),
        ({"samples": ["minilm"]}, ConfigError, "picture or a recording"),
        ({"tolerances": ["much"]}, ConfigError, "a tolerance is a number"),
    ]
    for choices, kind, why in wrong:
        with pytest.raises(kind, match=why):
            flagsplit.verify(bundle, **choices)


@pytest.mark.slow
def test_a_bundle_that_was_cut_in_another_way(split_bundle: Path) -> None:
    bundle = flagsplit.open(split_bundle)
    (name, steps), *_ = bundle.plans.steps.items()
    other = {**bundle.plans.steps, name: (replace(steps[0], segment="0" * 16), *steps[1:])}
    bundle.plans = replace(bundle.plans, steps=other)
    with pytest.raises(BundleError, match="cuts plan"):
        flagsplit.verify(bundle)


@pytest.mark.slow
def test_fast_numerics(small_model: Path, tmp_path: Path) -> None:
    built = flagsplit.build(small_model, "phone,cloud", tmp_path / "f.flagsplit", sla=models.SPLIT_SLA, numerics="fast")
    report = flagsplit.verify(built.path)
    assert verdicts(report) == {"agrees"}
    assert {str(check.allowed) for check in report.segments} == {"norm ≤ 0.0001"}


def test_tolerances() -> None:
    given = read_tolerances(["ort=1e-6", "cosine:0.9"])
    assert given == {"ort": Tolerance("norm", 1e-6), "": Tolerance("cosine", 0.9)}
    assert tolerance_of("ort", {"numerics": "exact"}, given) == Tolerance("norm", 1e-6)
    assert tolerance_of("chip", {"choice.precision": "fp16"}, given) == Tolerance("cosine", 0.9)
    assert tolerance_of("chip", {"choice.precision": "fp16"}, {}) == Tolerance("norm", 1e-2)
    assert tolerance_of("chip", {"choice.precision": "fp16", "choice.weights": "int4"}, {}).measure == "cosine"
    assert tolerance_of("chip", {"choice.io": "fp16"}, {}) == Tolerance("norm", 1e-4)
    assert tolerance_of("chip", {"choice.precision": "qdq", "precision": "qdq16"}, {}) == Tolerance("cosine", 0.99)
    assert tolerance_of("ort", {"numerics": "fast"}, {}) == Tolerance("norm", 1e-4)
    for wrong in ("", "-1", "nan", "cosine:2", "norm:1", "moon=1", "exact=1"):
        with pytest.raises(ConfigError, match="tolerance"):
            read_tolerances([wrong])
    with pytest.raises(ConfigError, match="twice"):
        read_tolerances(["1e-3", "1e-4"])


@pytest.mark.slow
@pytest.mark.parametrize("target", ["coreml", "litert"])
def test_the_targets_of_phones(tmp_path: Path, target: str) -> None:
    """They agree; held to more than they promise they depart, and parts are compiled to see where."""
    if missing_sdk(target):
        pytest.skip(missing_sdk(target))
    model = models.save(models.small(), tmp_path / "small.onnx")
    shapes = {"image": (1, 3, 16, 16)}
    flagsplit.build(model, "phone,cloud", tmp_path / "b.flagsplit", targets={"phone": [target]}, shapes=shapes)
    assert not flagsplit.verify(tmp_path / "b.flagsplit").departs
    found = flagsplit.verify(tmp_path / "b.flagsplit", tolerances=[f"{target}=1e-9"], targets=[target])
    (check,) = found.segments
    assert check.verdict == "departs"
    assert check.fault is not None
    assert check.fault.cause in (Cause.NODE, Cause.GRADUAL, Cause.TOGETHER)
    assert check.fault.nodes
