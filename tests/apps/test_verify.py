"""Bundles verified: what agrees, on which data, and what cannot be checked here."""

import json
import wave
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests.apps import lossy, models
from tests.apps.faulty import SHAPE, Faulty, of, same, verdicts
from tests.targets.faulty_chip import FaultyChip
from tests.targets.onnx_chip import OnnxChip

import flagsplit
from flagsplit.apps import zoo
from flagsplit.apps.deviation import Tolerance
from flagsplit.apps.fault import Cause
from flagsplit.apps.groundwork import BuildOptions
from flagsplit.apps.pipeline import build
from flagsplit.apps.samples import real_sample
from flagsplit.apps.tolerances import read_tolerances, tolerance_of
from flagsplit.errors import BundleError, ConfigError, InputError, PeerError, PolicyError
from flagsplit.splitter.problem import Problem
from flagsplit.targets.catalogue import TARGETS, missing_sdk

pytestmark = pytest.mark.usefixtures("own_folders")


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
    monkeypatch.setitem(TARGETS, "faulty", partial(same, chip))
    monkeypatch.setattr(chip, "load_part", refuse)
    report = flagsplit.verify(bundle)
    assert not report.departs
    assert report.unchecked == ("phone/faulty: the faulty target needs faultytools; pip install 'flagsplit[faulty]'",)
    assert report.checked == len(of(report, "ort"))
    monkeypatch.setattr(chip, "describe", partial(same, replace(chip.describe(), runs_here="no")))
    assert flagsplit.verify(bundle).unchecked == ("phone/faulty: nothing on this host runs artifacts of faulty",)
    monkeypatch.delitem(TARGETS, "faulty")
    assert flagsplit.verify(bundle).unchecked == ("phone/faulty: this flagsplit has no target faulty",)


@pytest.mark.slow
def test_what_a_chip_does_not_take_is_verified_where_it_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The device's first chip has no Softmax; its second runs the segments that have one."""
    for name, chip in (("first", OnnxChip(refused=["Softmax"])), ("second", OnnxChip())):
        monkeypatch.setattr(chip, "describe", partial(same, replace(chip.describe(), name=name)))
        monkeypatch.setitem(TARGETS, name, partial(same, chip))
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
    monkeypatch.setitem(TARGETS, "faulty", partial(same, chip))
    monkeypatch.setattr(chip, "load_part", crash)
    report = flagsplit.verify(bundle)
    assert {(check.target, check.verdict) for check in report.segments} == {("faulty", "failed"), ("ort", "agrees")}
    (check,) = of(report, "faulty")
    assert check.reason == "RuntimeError: out of tiles"
    assert check.fault is not None
    assert check.fault.nodes[0].op_type == "Conv", "the first that the chip would run"
    monkeypatch.setattr(chip, "load_part", partial(FaultyChip.load_part, chip))
    monkeypatch.setitem(TARGETS, "faulty", partial(same, FaultyChip({})))
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
