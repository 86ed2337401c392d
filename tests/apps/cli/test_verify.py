"""`flagsplit verify`: what it prints and how it leaves."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.apps import models
from tests.apps.cli.conftest import Cli
from tests.targets.faulty_chip import FaultyChip

import flagsplit
from flagsplit.errors import ConfigError
from flagsplit.targets.catalogue import TARGETS

pytestmark = pytest.mark.slow


def _same(thing: Any) -> Any:
    return thing


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Mapping[str, float]], Path]:
    """Builds the small model for a phone whose chip has faults."""

    def build(factors: Mapping[str, float]) -> Path:
        monkeypatch.setitem(TARGETS, "faulty", partial(_same, FaultyChip(factors)))
        model = models.save(models.small(), tmp_path / "small.onnx")
        shapes = {"image": (1, 3, 16, 16)}
        return flagsplit.build(
            model, "phone,cloud", tmp_path / "b.flagsplit", targets={"phone": ["faulty"]}, shapes=shapes
        ).path

    return build


def test_all_agree(cli: Cli, split_bundle: Path) -> None:
    done = cli("verify", split_bundle)
    assert done.code == 0
    assert "random inputs are a weak test" in done.out
    assert "bit for bit" in done.out
    assert "agree with the reference" in done.out
    data = cli("verify", split_bundle, "--json").data
    assert data["passed"] is True
    assert data["made_up"] is True
    assert data["samples"] == ["random, seed 0"]
    assert {each["verdict"] for each in data["segments"] + data["plans"]} == {"agrees"}
    assert {each["tolerance"]["measure"] for each in data["segments"]} == {"exact"}


def test_inputs_from_files(cli: Cli, split_bundle: Path, tmp_path: Path) -> None:
    for at in range(2):
        image = np.random.default_rng(at).standard_normal((1, 3, 20, 24)).astype(np.float32)
        np.savez(tmp_path / f"{at}.npz", image=image)
    data = cli("verify", split_bundle, "--input", "0.npz", "--input", "1.npz", "--json").data
    assert data["samples"] == ["0.npz", "1.npz"]
    assert data["made_up"] is False
    labels = {tuple(each["shape"]) for plan in data["plans"] for each in plan["outputs"] if each["name"] == "label"}
    assert labels == {(1,)}
    data = cli("verify", split_bundle, "--input", "0.npz", "--random", 1, "--dim", "N=3", "--json").data
    assert len(data["samples"]) == 2


def test_a_wrong_node(cli: Cli, faulty: Callable[[Mapping[str, float]], Path]) -> None:
    bundle = faulty({"c": 1.5})
    done = cli("verify", bundle)
    assert done.code == 1
    for text in ("departs by itself", "(Conv", "reads w2 float32 [32, 8, 3, 3] (weight)", "norm 0.5", "pins", "depart"):
        assert text in done.out, text
    assert "faulty, emulated" in done.out
    done = cli("verify", bundle, "--json")
    assert done.code == 1
    assert {each["target"]: each["basis"] for each in done.data["segments"]} == {
        "ort": "measured",
        "faulty": "emulated",
    }
    (check,) = [each for each in done.data["segments"] if each["verdict"] == "departs"]
    assert check["fault"]["cause"] == "node"
    assert check["fault"]["nodes"][0]["op_type"] == "Conv"
    assert done.data["passed"] is False
    assert cli("verify", bundle, "--target", "ort").code == 0
    assert cli("verify", bundle, "--tolerance", "faulty=10").code == 0
    done = cli("verify", bundle, "--no-bisect")
    assert done.code == 1
    assert "departs by itself" not in done.out


def test_an_error_that_grows_is_shown_by_node(cli: Cli, faulty: Callable[[Mapping[str, float]], Path]) -> None:
    done = cli("verify", faulty({"": 1 + 4e-5}), "--plan", "all-phone", "--target", "faulty")
    assert done.code == 1
    assert "the error grows until it is too much" in done.out
    assert "up to node" in done.out


def test_strict(cli: Cli, faulty: Callable[[Mapping[str, float]], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = faulty({})

    def refuse(*_: object) -> None:
        raise ConfigError("the faulty target needs faultytools")

    chip = FaultyChip({})
    monkeypatch.setattr(chip, "load_part", refuse)
    monkeypatch.setitem(TARGETS, "faulty", partial(_same, chip))
    done = cli("verify", bundle)
    assert done.code == 0
    assert "not checked: phone/faulty: the faulty target needs faultytools" in done.out
    done = cli("verify", bundle, "--strict", "--json")
    assert (done.code, done.data["departs"], done.data["passed"]) == (1, False, False)
    done = cli("verify", bundle, "--target", "faulty")
    assert done.code == 1
    assert "nothing could be checked" in done.out


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--tolerance", "much"], "a tolerance is a number"),
        (["--plan", "best"], "'best' is not in the pool"),
        (["--target", "coreml"], "came 'coreml'"),
        (["--input", "none.npz"], "no such input file"),
        (["--random", "0"], "leaves nothing to verify on"),
        (["--input", "none.npz", "--dim", "N=1"], "--dim is for made-up inputs"),
        (["--sample", "nonsense"], "picture or a recording"),
    ],
)
def test_misuse(cli: Cli, split_bundle: Path, options: list[str], why: str) -> None:
    done = cli("verify", split_bundle, *options)
    assert done.code == 2
    assert why in done.error
