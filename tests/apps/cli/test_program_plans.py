"""`flagsplit plan`, `build` and `inspect` of generative programs."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from tests.apps.cli.conftest import Cli
from tests.flagir.programs import oracle
from tests.flagir.programs.made import program_of

from flagsplit.flagir.programs import save_program

pytestmark = pytest.mark.slow

TIERS = ("--tiers", "phone,cloud")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Programs on disk."""
    found = {}
    for family, make, seed in (("speech", oracle.moonshine_like, 0), ("text", oracle.llama_like, 50)):
        folder = tmp_path_factory.mktemp(family)
        save_program(program_of(make(np.random.default_rng(seed)), [1, 4], frames_per_s=50.0), folder)
        found[family] = folder
    return found


def test_a_plan_says_what_the_loop_costs(cli: Cli, programs: dict[str, Path]) -> None:
    done = cli("plan", programs["speech"], *TIERS, "--explain", "--expected-tokens", 7)
    assert (done.code, done.err) == (0, "")
    assert "made-up: " in done.out
    assert "note: planned for 10 s of sound (samples=160000); --dim says otherwise" in done.out
    assert "--expected-tokens says otherwise" not in done.out
    assert re.search(r"- Loop \S+: 8 trips expected, a token each in a decoder, of [\d.]+ ms on phone, ", done.out)
    assert "so that a request passes the links once" in done.out or "no trip passes a link" in done.out


def test_tokens_follow_from_the_length_of_the_sound(cli: Cli, programs: dict[str, Path]) -> None:
    done = cli("plan", programs["speech"], *TIERS, "--dim", "samples=64000", "--json")
    assert "planned for an answer of 12 tokens; --expected-tokens says otherwise" in done.data["notes"]


def test_layers_are_a_table_and_a_drawing(cli: Cli, programs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "private.json").write_text('{"keep_on": {"inputs": "phone"}}')
    done = cli("plan", programs["text"], *TIERS, "--sla", "private.json", "--explain", "--svg", "plan.svg")
    assert (done.code, done.err) == (0, "")
    assert "proven optimal by enumeration" in done.out
    assert "phone+cloud@1" in done.out
    assert "not allowed: all-cloud: block 'layer.0' cannot run there: keep_on 'inputs' wants phone" in done.out
    assert "Do not split the loop" in done.out
    assert "No link, tier or price would change the plan" in done.out
    assert (tmp_path / "plan.svg").read_text().startswith("<svg ")


def test_layers_in_another_world(cli: Cli, programs: dict[str, Path]) -> None:
    done = cli("plan", programs["text"], *TIERS, "--what-if", "cloud=dead", "--json")
    assert done.data["plan"]["name"] == "all-phone"
    assert set(done.data["plan"]["placement"]) == {f"layer.{at}" for at in range(len(done.data["plan"]["placement"]))}


def test_a_bundle_shows_its_program(cli: Cli, programs: dict[str, Path]) -> None:
    built = cli("build", programs["speech"], *TIERS, "-o", "m.flagsplit", "--expected-tokens", 5)
    assert (built.code, built.err) == (0, "")
    assert "phone+cloud-hidden" in built.out
    shown = cli("inspect", "m.flagsplit")
    assert "Program made-up: encoder-decoder," in shown.out
    assert re.search(r"phone\+cloud-hidden +cloud +encode.hidden \[1, \w+, \d+\]", shown.out)
    data = cli("inspect", "m.flagsplit", "--json").data
    assert data["format"] == [1, 5]
    assert data["program"]["expected_tokens"] == 5
    assert 0 < data["program"]["own_bytes"] < 200_000
    assert data["program"]["plans"]["all-phone"]["loop_tier"] == 0
    again = cli("plan", "m.flagsplit", "--json").data
    assert again["plan"]["name"] == built_plan(cli)
    assert cli("plan", "m.flagsplit", "--expected-tokens", 9, "--explain").out.count("Loop") >= 1


def built_plan(cli: Cli) -> str:
    return str(cli("inspect", "m.flagsplit", "--json").data["plans"][0]["name"])


def test_a_bundle_of_text_shows_its_layers(cli: Cli, programs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "private.json").write_text(json.dumps({"keep_on": {"inputs": "phone"}, "pins": {"layer.1": "phone"}}))
    built = cli("build", programs["text"], *TIERS, "-o", "t.flagsplit", "--sla", "private.json", "--json")
    assert built.code == 0
    assert [plan["name"] for plan in built.data["plans"]] == ["all-phone"]
    assert "all-phone" in [plan["name"] for plan in built.data["layer_plans"]]
    assert "Plans that divide its layers (modelled)" in cli("inspect", "t.flagsplit").out


def test_layers_that_are_divided_are_not_run_in_one_piece(cli: Cli, programs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "cut.json").write_text('{"pins": {"layer.0": "phone", "layer.1": "cloud"}}')
    built = cli("build", programs["text"], *TIERS, "-o", "d.flagsplit", "--sla", "cut.json", "--json")
    assert "phone+cloud@1" in [plan["name"] for plan in built.data["layer_plans"]]
    done = cli("run", "d.flagsplit", "--plan", "phone+cloud@1")
    assert done.code == 2
    assert "flagsplit decode-serve --plan phone+cloud@1 and ask as examples/first_layers.py does" in done.err
    assert cli("run", "d.flagsplit", "--plan", "no").err.startswith("flagsplit: plan 'no' is not in the pool")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--expected-tokens", 50), r"--expected-tokens 50: made-up makes at most \d+; expect fewer"),
        (("--expected-tokens", 500, "--max-tokens", 500), r"--expected-tokens 500: made-up makes at most \d\d; "),
        (
            ("--expected-tokens", 9, "--max-tokens", 5),
            r"made-up makes at most 5; give --max-tokens too, at most \d\d\b",
        ),
        (("--dim", "words=3"), "expected a symbolic dimension of the inputs"),
        (("--dim", "samples=10"), "would have a negative size at samples=10; give larger sizes"),
    ],
)
def test_misuse(cli: Cli, programs: dict[str, Path], more: tuple[object, ...], said: str) -> None:
    done = cli("plan", programs["speech"], *TIERS, *more)
    assert done.code == 2
    assert re.search(said, done.err)
    assert "\n" not in done.err.strip()


def test_a_prompt_that_fills_all_positions(cli: Cli, programs: dict[str, Path]) -> None:
    done = cli("plan", programs["text"], *TIERS, "--dim", "prompt_tokens=1..100000@4")
    assert done.code == 2
    assert re.search(r"--dim prompt_tokens=100000: a prompt of made-up has at most \d+ tokens; give less", done.err)


def test_programs_are_shown_linked(cli: Cli, programs: dict[str, Path]) -> None:
    assert "output tokens: int64[1, tokens]" in cli("show", programs["speech"]).out
    assert "Loop" in cli("why", programs["text"], "Loop", "--target", "ort").out
    assert cli("diff", programs["speech"], programs["speech"]).code == 0
    done = cli("show", "zoo:moonshin")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "did you mean zoo:moonshine?" in done.err


def test_a_program_that_is_not_there(cli: Cli) -> None:
    done = cli("plan", "zoo:moonshin", *TIERS)
    assert done.code == 2
    assert "zoo:moonshine" in done.err


def test_a_phone_with_a_chip_has_a_plan_of_its_own(cli: Cli, programs: dict[str, Path]) -> None:
    done = cli("plan", programs["speech"], *TIERS, "--devices", "phone=pixel8", "--dim", "samples=4000", "--json")
    alone = next(each for each in done.data["baselines"] if each["name"] == "all-phone")
    assert alone["allowed"]
    assert alone["note"] == "on the CPU of phone, for its chip takes no loops"
