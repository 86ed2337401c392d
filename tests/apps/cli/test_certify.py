"""`flagsplit certify`: its score card for people and programs, its exit code, and what it says to misuse."""

from pathlib import Path

import pytest
from tests.apps.cli.conftest import Cli
from tests.targets.conformance import odd_targets

from flagsplit.targets.catalogue import SDKS
from flagsplit.targets.conformance import ScoreCard

ODD = f"{odd_targets.__name__}:"


@pytest.mark.slow
def test_json_and_file(cli: Cli, tmp_path: Path) -> None:
    done = cli("certify", "ort", "--operator", "Selu", "--operator", "Sum", "--json", "-o", tmp_path / "card.json")
    assert done.code == 0
    assert (done.data["target"], done.data["failed"], done.data["crashed"]) == ("ort", 0, 0)
    assert done.data["sources"]["node"]["passed"] == done.data["passed"]
    assert done.data["passed"] >= 6
    assert set(done.data["operators"]) >= {"Selu", "Sum"}
    assert done.data["operators"]["Sum"]["passed"] >= 3
    card = ScoreCard.read((tmp_path / "card.json").read_text())
    assert card.to_data()["operators"]["Sum"] == done.data["operators"]["Sum"]


@pytest.mark.slow
def test_resumed(cli: Cli, tmp_path: Path) -> None:
    kept = tmp_path / "kept.jsonl"
    first = cli("certify", "ort", "--case", "test_abs", "--resume", kept, "--json")
    assert first.code == 0
    kept.write_text(kept.read_text().replace('"passed"', '"failed"'))
    again = cli("certify", "ort", "--case", "test_abs", "--case", "test_relu", "--resume", kept, "--json")
    assert (again.data["passed"], again.data["failed"]) == (1, 1), "what was kept is not run again"


@pytest.mark.slow
def test_for_people(cli: Cli) -> None:
    done = cli("certify", ODD + "Wrong", "--case", "test_abs", "--case", "test_relu")
    assert done.code == 1
    title, header, *rest = done.out.splitlines()
    assert title.startswith("ort ")
    assert "computing in float32, on the tests of onnx" in title
    assert header.split() == ["cases", "passed", "failed", "crashed", "refused", "skipped"]
    assert rest[0].split() == ["node", "1", "1", "0", "0", "0"]
    assert "Operators that do not pass all their node tests" in rest
    assert "Abs            0       1        0        0        0" in done.out
    assert "allowed: 0.0001 of the element" in " ".join(done.out.split())
    done = cli("certify", ODD + "Disagreeing", "--case", "test_abs")
    assert done.code == 0
    assert "Why cases were refused" in done.out
    assert "Taken by supports(), refused by compile()" in done.out


@pytest.mark.slow
def test_a_crash_is_told(cli: Cli) -> None:
    done = cli("certify", ODD + "Segfaulting", "--case", "test_abs", "--json")
    assert done.code == 1
    assert done.data["crashed"] == 1
    assert done.data["lines"] == [
        {"case": "test_abs", "operators": ["Abs"], "status": "crashed", "why": "the process died of SIGSEGV"}
    ]


@pytest.mark.slow
def test_a_model_of_the_corpus(cli: Cli) -> None:
    done = cli("certify", "ort", "--case", "light-squeezenet/middle", "--json")
    assert done.code == 0
    assert done.data["sources"] == {"corpus": {"passed": 1, "failed": 0, "crashed": 0, "refused": 0, "skipped": 0}}
    assert done.data["operators"] == {}


def test_a_missing_sdk(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SDKS, "ort", ("ort", ("no_such_sdk",)))
    done = cli("certify", "ort")
    assert done.code == 2
    assert done.error == "cannot certify ort: no_such_sdk is not installed; pip install 'flagsplit[ort]'"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("tpu",), "expected a target ("),
        (("no.such:Target",), "ModuleNotFoundError"),
        ((ODD + "NoTarget",), "is no target: it has no supports, compile, load"),
        (("ort", "--operator", "Reluu"), "there is no operator Reluu"),
        (("ort", "--case", "test_reluu"), "there is no case 'test_reluu'"),
        (("ort", "--case", "ppocr-dot/whole"), "there is no case 'ppocr-dot/whole'"),
        (("ort", "--choice", "precision=fp16"), "expects one of target ort (none), came precision=fp16"),
        (("ort", "--choice", "precision"), "--choice expects NAME=VALUE"),
        (("ort", "--case", "test_abs", "-o", "no/such/folder.json"), "cannot write no/such/folder.json"),
        ((ODD + "Bare", "--case", "test_abs"), "the bare target needs baretools, which is not installed"),
    ],
)
def test_misuse(cli: Cli, words: tuple[str, ...], said: str) -> None:
    done = cli("certify", *words)
    assert done.code == 2
    assert said in done.error
