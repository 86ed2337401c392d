"""Bundles with artifacts of chips: what is chosen, moves up the line, is pinned, runs and is built again."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.apps import models
from tests.targets.onnx_chip import OnnxChip

import flagsplit
from flagsplit.apps.cli.main import main
from flagsplit.apps.rebuild import rebuild
from flagsplit.apps.target_choice import choose_targets
from flagsplit.errors import ConfigError, FlagsplitError, InputError, PolicyError
from flagsplit.runtime.bundle import Bundle
from flagsplit.splitter.devices import load_catalogue
from flagsplit.splitter.sla import parse_sla
from flagsplit.targets.catalogue import SDKS, TARGETS
from flagsplit.targets.interface import LoadOptions

pytestmark = pytest.mark.usefixtures("own_folders")

SHAPE = (2, 3, 16, 16)
SPLIT = {"keep_on": {"inputs": "phone"}, "min_blocks_deep": 2, "pins": {"ArgMax": "cloud"}}


def _same(thing: Any) -> Any:
    return thing


@pytest.fixture
def chips(monkeypatch: pytest.MonkeyPatch) -> dict[str, OnnxChip]:
    """In the catalogue: chips that take all, have no Softmax, leave MatMul to the CPU, move all of MatMul twice."""
    made = {
        "all": OnnxChip(),
        "no-softmax": OnnxChip(refused=["Softmax"]),
        "slow": OnnxChip(on_cpu=["MatMul"]),
        "twice": OnnxChip(twice=["MatMul"]),
    }
    for name, chip in made.items():
        monkeypatch.setitem(TARGETS, name, partial(_same, chip))
        described = replace(chip.describe(), name=name)
        monkeypatch.setattr(chip, "describe", partial(_same, described))
    return made


def build(
    model: Path, targets: Sequence[str] | None, sla: Any = None, tiers: str = "phone,cloud", **more: Any
) -> Bundle:
    output = model.with_suffix(".flagsplit")
    flagsplit.build(
        model,
        tiers,
        output,
        shapes={"image": SHAPE},
        sla=sla,
        targets={} if targets is None else {"phone": list(targets)},
        **more,
    )
    return flagsplit.open(output)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return models.save(models.small(), tmp_path / "small.onnx")


def image(seed: int = 0, shape: Sequence[int] = SHAPE) -> dict[str, models.Array]:
    return {"image": np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}


@pytest.mark.slow
def test_a_phone_with_a_chip(chips: dict[str, OnnxChip], model: Path) -> None:
    bundle = build(model, ["all", "no-softmax"], SPLIT)
    phone, cloud = bundle.facts.tiers
    assert [made.target for made in phone.artifacts] == ["ort", "all", "no-softmax"]
    assert [made.target for made in cloud.artifacts] == ["ort"]
    segments = set(bundle.segments_of(0))
    assert segments
    assert all(set(made.entries) >= segments for made in phone.artifacts)
    assert bundle.facts.dim_ranges == {"N": (2, 2), "H": (16, 16), "W": (16, 16)}
    expected = models.answers_of(model, image())
    for name in ("all", "no-softmax", "ort", ""):
        with flagsplit.connect(bundle, run_targets={"phone": name} if name else None) as session:
            answer = session.run(image())
            assert answer.report.basis == ("emulated" if name in chips else "measured")
            np.testing.assert_allclose(np.asarray(answer["scores"], np.float32), expected["scores"], rtol=1e-5)
    with flagsplit.connect(bundle, {}) as session, pytest.raises(InputError, match="N"):
        session.run(image(shape=(3, 3, 16, 16)))


@pytest.mark.slow
def test_a_worker_runs_the_artifact_that_it_is_told_to(
    chips: dict[str, OnnxChip], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = build(model, ["all"])
    with pytest.raises(PolicyError, match="of ort, all, none of coreml; build it with --target phone=coreml"):
        bundle.load(0, next(iter(bundle.segments_of(0))), LoadOptions(target="coreml"))
    for wrong, why in (({"cloud": "all"}, "none of all"), ({"moon": "ort"}, "moon")):
        with pytest.raises(FlagsplitError, match=why), flagsplit.connect(bundle, run_targets=wrong):
            pass
    given = {"cloud": "tcp://127.0.0.1:1"}
    with (
        pytest.raises(ConfigError, match="serve --target"),
        flagsplit.connect(bundle, given, run_targets={"cloud": "ort"}),
    ):
        pass


@pytest.mark.slow
def test_what_no_chip_takes_moves_up_the_line(chips: dict[str, OnnxChip], model: Path) -> None:
    bundle = build(model, ["all", "no-softmax"])
    for plan in bundle.plans.pool.plans:
        whole_graph_on_phone = set(plan.used_tiers) == {0}
        assert not whole_graph_on_phone, "Softmax has to be on the cloud"
    with pytest.raises(PolicyError, match="the chip has no Softmax"):
        build(model, ["no-softmax"], tiers="phone")


@pytest.mark.slow
def test_what_the_preferred_chip_does_not_take_the_next_one_does(
    chips: dict[str, OnnxChip], model: Path, tmp_path: Path
) -> None:
    """A device's own targets: a segment is compiled by the first that takes it, the last takes all."""
    catalogue = tmp_path / "mine.json"
    chips_of_mine = {"no-softmax": "fp32", "slow": "fp32"}
    catalogue.write_text(
        json.dumps({"version": 1, "devices": {"mine": {"extends": "pixel8", "chip_targets": chips_of_mine}}})
    )
    split = build(
        model, None, SPLIT | {"pins": {"Softmax": "cloud"}}, devices={"phone": "mine"}, catalogues=[catalogue]
    )
    assert [made.target for made in split.facts.tiers[0].artifacts] == ["ort", "no-softmax", "slow"]
    bundle = build(model, None, tiers="phone", devices={"phone": "mine"}, catalogues=[catalogue])
    assert [made.target for made in bundle.facts.tiers[0].artifacts] == ["ort", "slow"]
    (step,) = bundle.plans.steps[bundle.plans.pool.plans[0].name]
    expected = models.answers_of(model, image())
    loaded = bundle.load(0, step.segment, LoadOptions(threads=1, target="slow"))
    scores = np.asarray(loaded.run(image())["scores"], np.float32)
    np.testing.assert_allclose(scores, expected["scores"], rtol=1e-5)


def test_what_runs_beside_the_chip_costs_more(chips: dict[str, OnnxChip], model: Path) -> None:
    def phone_s(target: str) -> float:
        report = flagsplit.plan(model, "phone", shapes={"image": SHAPE}, targets={"phone": [target]}, thresholds=False)
        return report.planning.chosen.plan.predicted.latency_s

    assert phone_s("slow") > phone_s("all")


def test_what_the_chip_is_slow_at_costs_what_it_moves(chips: dict[str, OnnxChip], tmp_path: Path) -> None:
    """Two products of narrow matrices, where memory is what takes time."""
    path, rows, width = models.save(models.wide(2, 8), tmp_path / "narrow.onnx"), 10_000, 8
    bandwidth = load_catalogue().device("generic-phone-cpu").memory_bandwidth.value

    def phone_s(target: str) -> float:
        report = flagsplit.plan(
            path,
            "phone",
            dims={"N": rows},
            targets={"phone": [target]},
            devices={"phone": "generic-phone-cpu"},
            thresholds=False,
        )
        return report.planning.chosen.plan.predicted.latency_s

    moved = 2 * (rows * width * 4 + rows * width * 4)
    assert phone_s("twice") - phone_s("all") == pytest.approx(moved / bandwidth)


@pytest.mark.slow
def test_an_open_size_is_refused_and_a_chip_of_the_device_says_so(chips: dict[str, OnnxChip], model: Path) -> None:
    with pytest.raises(PolicyError, match="takes fixed shapes only"):
        build(model, ["all"], None, "phone", ranges={"N": (1, 2)})


@pytest.mark.slow
def test_a_rebuilt_bundle_has_the_same_targets(chips: dict[str, OnnxChip], model: Path, tmp_path: Path) -> None:
    bundle = build(model, ["all"], SPLIT, choices={"all": {"speed": "slow"}})
    made = rebuild(bundle, parse_sla({"use_tiers": ["phone"]}), tmp_path / "again.flagsplit")
    again = flagsplit.open(tmp_path / "again.flagsplit")
    assert [each.target for each in again.facts.tiers[0].artifacts] == ["ort", "all"]
    assert again.facts.recipe is not None
    assert again.facts.recipe["choices"] == {"all": {"speed": "slow"}}
    assert made is not None


def test_a_rebuilt_bundle_is_calibrated_as_it_was(chips: dict[str, OnnxChip], model: Path, tmp_path: Path) -> None:
    """On the same samples if the bundle has them; else on made-up ones, which is said."""
    for seed in (7, 8):
        np.savez(tmp_path / f"{seed}.npz", image=image(seed)["image"])
    files = [tmp_path / "7.npz", tmp_path / "8.npz"]
    sla = parse_sla({"use_tiers": ["phone"], "keep_on": {"inputs": "phone"}})
    for keep in (True, False):
        bundle = build(model, ["all"], SPLIT, samples=files, keep_samples=keep)
        made = rebuild(bundle, sla, tmp_path / "again.flagsplit")
        (part, *_) = chips["all"].parts
        same = [
            np.array_equal(sample["image"], image(seed)["image"])
            for sample, seed in zip(part.samples, (7, 8), strict=False)
        ]
        assert same == ([True, True] if keep else [False])
        assert any("2 samples that the bundle does not have" in note for note in made.notes) is not keep
    assert any((bundle.folder / "samples").glob("*")) is False


@pytest.mark.slow
def test_samples_reach_the_inputs_of_parts(chips: dict[str, OnnxChip], model: Path, tmp_path: Path) -> None:
    """Made up, or the user's: what a part is given is what the model makes of them."""
    sla = SPLIT | {"keep_on": {"inputs": "phone"}}
    for seed, files in ((None, []), (7, [tmp_path / "sample.npz"])):
        for file in files:
            np.savez(file, image=image(seed or 0)["image"])
        build(model, ["all"], sla, samples=files)
        (part, *_) = chips["all"].parts
        (sample,) = part.samples
        assert set(sample) == {value.name for value in part.model.graph.inputs}
        if seed is not None:
            np.testing.assert_array_equal(sample["image"], image(seed)["image"])
    output = model.with_suffix(".flagsplit")
    flagsplit.build(
        model,
        "phone,cloud",
        output,
        shapes={"image": SHAPE},
        sla={"pins": {"Conv": "phone", "ArgMax": "cloud", "Softmax": "cloud"}},
        targets={"cloud": ["all"]},
        samples=[tmp_path / "sample.npz"],
    )
    bundle = flagsplit.open(output)
    values = dict(image(7))
    for step in bundle.plans.steps[bundle.plans.pool.plans[0].name]:
        if step.tier == 1:
            (part,) = (each for each in chips["all"].parts if each.segment == step.segment)
            for name, array in part.samples[0].items():
                np.testing.assert_array_equal(np.asarray(array), np.asarray(values[name]))
        values.update(
            bundle.load(step.tier, step.segment, LoadOptions(threads=1)).run({n: values[n] for n in step.inputs})
        )
    np.savez(tmp_path / "wrong.npz", image=np.zeros((3, 3, 16, 16), np.float32))
    with pytest.raises(InputError, match="N from 2 to 2"):
        build(model, ["all"], samples=[tmp_path / "wrong.npz"])


def test_misuse(chips: dict[str, OnnxChip], model: Path) -> None:
    for targets, choices, why in (
        (["nonsense"], {}, "nonsense"),
        (["all", "all"], {}, "twice"),
        ([], {}, "came none"),
        (["all"], {"all": {"colour": "red"}}, "lets choose speed"),
        (["all"], {"all": {"speed": "red"}}, "expected fast, slow"),
        (["all"], {"al": {"speed": "fast"}}, r"--choice al: expected a target \(all, .*came 'al'"),
    ):
        with pytest.raises(PolicyError, match=why):
            build(model, targets, choices=choices)
        with pytest.raises(PolicyError, match=why):
            flagsplit.plan(model, "phone", targets={"phone": targets}, choices=choices)
    with pytest.raises(PolicyError, match="moon"):
        flagsplit.build(model, "phone", model.with_suffix(".x"), targets={"moon": ["all"]})


@pytest.mark.parametrize(
    ("device", "targets", "required"),
    [
        ("iphone15pro", ("coreml",), ("coreml",)),
        ("pixel8", ("litert",), ("litert",)),
        ("galaxy-s24", ("qnn", "litert"), ("litert",)),
        ("coral-edgetpu", ("edgetpu",), ("edgetpu",)),
        ("generic-phone-cpu", ("ort",), ("ort",)),
    ],
)
def test_what_a_device_is_built_for(
    device: str, targets: tuple[str, ...], required: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flagsplit.apps.target_choice.missing_sdk", lambda _: "")
    chosen = choose_targets("phone", load_catalogue([]).device(device), None)
    assert (chosen.names, chosen.required, chosen.left_out) == (targets, required, ())


def test_a_missing_sdk_leaves_a_device_with_what_is_there(
    chips: dict[str, OnnxChip], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = load_catalogue([]).device("pixel8").model_copy(update={"chip_targets": {"all": "fp32", "slow": "fp32"}})
    assert choose_targets("phone", device, None).names == ("all", "slow")
    assert choose_targets("phone", device, None).required == ("slow",)
    monkeypatch.setitem(SDKS, "slow", ("slow", ("flagsplit_has_no_such_module",)))
    chosen = choose_targets("phone", device, None)
    assert chosen.names == ("all",)
    assert "pip install 'flagsplit[slow]'" in chosen.left_out[0]


def test_why(
    chips: dict[str, OnnxChip], model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["flagsplit", "why", str(model), *words, "--shape", "image=2,3,16,16"])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    def verdicts(*words: str) -> list[dict[str, Any]]:
        code, out, _ = said(*words, "--json")
        assert code == 0
        found: list[dict[str, Any]] = json.loads(out)["verdicts"]
        return found

    assert [(row["target"], row["runs"], row["why"]) for row in verdicts("Softmax", "--target", "all,no-softmax")] == [
        ("all", "accelerator", ""),
        ("no-softmax", "nowhere", "the chip has no Softmax"),
    ]
    (row,) = verdicts("--target", "slow")
    assert (row["operator"], row["runs"], row["why"]) == ("MatMul", "cpu", "the chip is slow at it")
    assert verdicts("--target", "all") == []
    assert "run on the accelerators of all" in said("--target", "all")[1]
    assert "the chip has no Softmax" in said("--target", "no-softmax")[1]
    for wrong in (["nonsense"], ["--target", "nonsense"]):
        code, _, err = said(*wrong)
        assert code
        assert "nonsense" in err


def test_targets_are_listed(
    chips: dict[str, OnnxChip], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SDKS, "slow", ("slow", ("flagsplit_has_no_such_module",)))
    for words in (["--json"], []):
        monkeypatch.setattr("sys.argv", ["flagsplit", "targets", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        out = capsys.readouterr().out
        if words:
            found = {each["name"]: each for each in json.loads(out)["targets"]}
            assert set(found) == set(TARGETS)
            assert found["ort"]["runs_here"] == "yes"
            assert found["all"]["choices"] == {"speed": ["fast", "slow"]}
            assert "flagsplit[slow]" in found["slow"]["missing"]
        else:
            assert all(name in out for name in TARGETS)
            assert "pip install 'flagsplit[slow]'" in " ".join(out.split())
