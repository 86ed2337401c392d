"""Certifying in processes of their own: what dies or hangs costs its case only, and the score card says it all."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.targets.conformance import odd_targets

from flagsplit.errors import ConfigError, PolicyError
from flagsplit.targets.cloud.ort import OrtTarget
from flagsplit.targets.conformance import Case, ScoreCard, certify, node_cases
from flagsplit.targets.interface import Target

DOCS = Path(__file__).parents[3] / "docs"
NAMES = ("test_acos", "test_abs", "test_add")
ODD = f"{odd_targets.__name__}:"


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    """Three, of which the odd targets break on that in the middle."""
    found = {case.name: replace(case, limit_s=2.0) for case in node_cases(names=NAMES)}
    return [found[name] for name in NAMES]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("Exiting", "the process left with code 3: no such kernel"),
        ("Segfaulting", "the process died of SIGSEGV"),
        ("Hanging", "it took over 2 s"),
    ],
)
def test_a_broken_process_costs_one_case(cases: list[Case], target: str, why: str) -> None:
    told: list[tuple[str, float]] = []
    card = certify(ODD + target, cases, progress=lambda name, share: told.append((name, share)))
    assert (card.counts.passed, card.counts.crashed, card.counts.failed) == (2, 1, 0)
    (line,) = card.lines
    assert (line.case, line.operators, line.status) == ("test_abs", ("Abs",), "crashed")
    assert line.why == why
    assert not card.ok
    assert told == [(name, (at + 1) / 3) for at, name in enumerate(NAMES)]


@pytest.mark.slow
@pytest.mark.parametrize("target", [odd_targets.Exiting, ODD + "Exiting"])
def test_two_at_a_time(cases: list[Case], target: str | Callable[[], Target]) -> None:
    """Results come in the order of the cases, whichever process was first."""
    again = [replace(case, name=f"{case.name}{at}") for at in range(3) for case in cases]
    card = certify(target, again, jobs=2)
    assert (card.counts.passed, card.counts.crashed) == (6, 3)
    assert [line.case for line in card.lines] == ["test_abs0", "test_abs1", "test_abs2"]


def test_kept_results_are_not_run_again(cases: list[Case], tmp_path: Path) -> None:
    file, ran = tmp_path / "kept.jsonl", list[str]()

    def stop(name: str, share: float) -> None:
        ran.append(name)
        if len(ran) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        certify(OrtTarget(), cases, keep=file, progress=stop)
    with file.open("a") as half:
        half.write('{"name": "test_add", "sta')
    card = certify(OrtTarget(), cases, keep=file, progress=lambda name, _: ran.append(name))
    assert ran == list(NAMES)
    assert card == certify(OrtTarget(), cases)
    assert certify(OrtTarget(), cases, keep=file, progress=lambda name, _: ran.append(name)) == card
    assert len(ran) == 3
    with pytest.raises(ConfigError, match="delete it"):
        certify(odd_targets.WithoutNan(), cases, choices={"speed": "low"}, keep=file)
    file.write_text("[1]\n{}\n")
    with pytest.raises(ConfigError, match="delete it"):
        certify(OrtTarget(), cases, keep=file)
    file.write_text("nonsense\n")
    with pytest.raises(ConfigError, match="expected a file of results"):
        certify(OrtTarget(), cases, keep=file)


def test_nan_is_not_asked_of_what_does_not_carry_it() -> None:
    card = certify(odd_targets.WithoutNan(), node_cases(names=["test_isnan", "test_isinf"]))
    assert (card.counts.passed, card.counts.refused) == (0, 2)
    assert {line.why for line in card.lines} == {"its numbers have NaN, which the target does not carry"}


@pytest.mark.slow
def test_an_interrupt_does_not_wait(cases: list[Case]) -> None:
    """Whatever a caller's progress raises goes the same way."""

    def interrupt(name: str, share: float) -> None:
        raise KeyboardInterrupt

    started = time.monotonic()
    patient = [replace(case, limit_s=120.0, name=f"{case.name}{at}") for at in range(20) for case in cases]
    with pytest.raises(KeyboardInterrupt):
        certify(ODD + "Hanging", patient, jobs=2, progress=interrupt)
    assert time.monotonic() - started < 60


@pytest.mark.slow
def test_misuse_ends_it(cases: list[Case]) -> None:
    with pytest.raises(ConfigError, match="needs baretools"):
        certify(odd_targets.Bare, cases, jobs=2)
    with pytest.raises(PolicyError, match="expected a target"):
        certify("tpu", cases)
    for name, why in (
        (ODD + "Missing", "AttributeError"),
        ("no.such.module:Target", "ModuleNotFoundError"),
        (ODD + "NoTarget", "it has no supports, compile, load"),
    ):
        with pytest.raises(ConfigError, match=why):
            certify(name, cases)


def test_an_object_runs_here(cases: list[Case]) -> None:
    card = certify(odd_targets.Disagreeing(), cases)
    assert (card.counts.passed, card.counts.refused) == (2, 1)
    assert card.ok
    (line,) = card.disagreements
    assert (line.case, line.status, line.why) == ("test_abs", "refused", "cannot compile node 'a' (Abs)")


def test_the_card_counts() -> None:
    cases = node_cases(operators=("Abs", "Reshape"))
    fussy = certify(odd_targets.Fussy(), [case for case in cases if "expanded" not in case.name])
    reshapes = sum("Reshape" in case.operators and "expanded" not in case.name for case in cases)
    assert fussy.operators["Abs"].passed >= 1
    assert fussy.constants == {"sizes": fussy.operators["Reshape"].passed}
    assert 8 <= fussy.operators["Reshape"].passed <= reshapes
    assert fussy.sources == {"node": fussy.counts}
    assert list(fussy.reasons) == ["failed", "crashed", "refused", "skipped"]
    assert sum(fussy.reasons["skipped"].values()) == fussy.counts.skipped
    assert (fussy.target, fussy.precision, fussy.choices) == ("ort", "float32", {})
    fp32 = {"precision": "fp32"}
    wrong = certify(odd_targets.Wrong(), [case for case in cases if case.name == "test_abs"], choices=fp32)
    assert wrong.choices == fp32
    assert wrong.operators["Abs"].failed == 1
    assert "allowed: 0.0001 of the element" in wrong.lines[0].why
    (reason,) = wrong.reasons["failed"]
    assert reason.startswith("output …: … of … elements are off, by up to … or … of the largest")


def test_the_card_survives_json(cases: list[Case]) -> None:
    card = certify(odd_targets.Disagreeing(), cases)
    text = card.to_json()
    assert ScoreCard.read(text) == card
    data = json.loads(text)
    assert {key: data[key] for key in ("passed", "failed", "crashed", "refused", "skipped")} == {
        "passed": 2,
        "failed": 0,
        "crashed": 0,
        "refused": 1,
        "skipped": 0,
    }
    assert data == json.loads(json.dumps(card.to_data()))
    for damaged in ("", "[]", "{}", text.replace('"passed"', '"past"'), text.replace('"why"', '"because"')):
        with pytest.raises(ConfigError, match="expected a score card"):
            ScoreCard.read(damaged)


@pytest.mark.slow
def test_every_twelfth_node_test_on_onnx_runtime() -> None:
    """The whole is in `docs/scorecards/`, with what is known to be wrong."""
    known = ScoreCard.read((DOCS / "scorecards" / "ort.json").read_text())
    card = certify(OrtTarget(), node_cases()[::12])
    assert card.counts.passed > 100
    assert {(line.case, line.status) for line in card.lines} <= {(line.case, line.status) for line in known.lines}
    assert card.constants == {}
    assert card.disagreements == ()
