"""`flagsplit plan` and `flagsplit sla`: what they print, and what they say of misuse."""

import json
import re
from pathlib import Path

import pytest
from tests.apps.cli.conftest import Cli

from flagsplit.splitter.sla import SLA

TIERS = ("--tiers", "phone,edge,cloud")
ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_what_is_printed(cli: Cli, small_model: Path, split_sla: Path, tmp_path: Path) -> None:
    done = cli("plan", small_model, *TIERS, "--sla", split_sla, "--explain", "--svg", "plan.svg")
    assert (done.code, done.err) == (0, "")
    assert re.match(r"small: phone\+cloud-\d, [\d.]+ ms modelled\nproven optimal by ", done.out)
    for title in (
        "By tier (modelled)",
        "By link (modelled)",
        "One request (modelled)",
        "Compared (modelled)",
        "best chain cut (Neurosurgeon)",
        "best two-tier cut (DADS)",
        "all-cloud (JPEG input)",
        "not allowed: all-phone: block",
        "Why\n",
        "- Runner-up",
        "What would change it",
        "What cannot run where",
        "pin 'ArgMax' wants cloud",
        "drawn: plan.svg",
    ):
        assert title in done.out, title
    assert (tmp_path / "plan.svg").read_text().startswith("<svg ")


@pytest.mark.slow
def test_json(cli: Cli, small_model: Path, split_sla: Path, tmp_path: Path) -> None:
    data = cli("plan", small_model, *TIERS, "--sla", split_sla, "--what-if", "cloud=5mbit", "--json").data
    assert data["basis"] == "modelled"
    assert data["solution"]["solver"]
    assert data["before"]["objective"] <= data["solution"]["objective"]
    assert set(data["plan"]["placement"].values()) <= {"phone", "edge", "cloud"}
    assert sum(data["plan"]["blocks"].values()) == len(data["plan"]["placement"])
    names = [each["name"] for each in data["baselines"]]
    assert names[:3] == ["all-phone", "all-edge", "all-cloud"]
    assert all(each["allowed"] == (each["reason"] is None) for each in data["baselines"])
    assert {flip["kind"] for flip in data["flips"]} <= {"bandwidth", "rtt", "slowdown", "price"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_bundle(cli: Cli, small_bundle: Path) -> None:
    done = cli("plan", small_bundle)
    assert done.code == 0
    assert "The bundle's own plans (modelled)" in done.out
    assert "note: without --sla the policy is the one that the bundle was built under" in done.out
    assert "own plans" not in cli("plan", small_bundle, "--link", "cloud=lte").out


CONTRADICTION = (
    '{"pins": {"Conv": "phone"}, "forbid_tiers": ["phone"]}',
    "not phone: forbid_tiers has 'phone'; not edge: pin 'Conv' wants phone; not cloud: pin 'Conv' wants phone; drop",
)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((*TIERS, "--devices", "edge=toaster"), "device 'toaster' is not in the catalogue: choose from a100"),
        ((*TIERS, "--link", "edge=0mbit/5ms"), "link '0mbit/5ms': up_bytes_per_s must be above 0 and finite"),
        ((*TIERS, "--link", "phone-edge=wifi"), "--link phone-edge: these two are neighbors; say edge=wifi"),
        ((*TIERS, "--link", "phone-moon=wifi"), "--link names tier 'phone-moon', expected one of edge, cloud"),
        ((*TIERS, "--region", "cloud=MARS"), "region 'MARS' is not in the catalogue: choose from CHN, DEU"),
        ((*TIERS, "--region", "cloud=DEU@24"), "--region cloud=DEU@24: expected an hour of the day from 0 to 23"),
        ((*TIERS, "--region", "fog=DEU"), "--region names tier 'fog', expected one of phone, edge, cloud"),
        ((*TIERS, "--what-if", "fog=5mbit"), "what-if fog=5mbit: there is no tier or by-pass 'fog'"),
        ((*TIERS, "--what-if", "cloud=soon"), "what-if cloud=soon: expected a link such as 5mbit/80ms"),
        ((*TIERS, "--what-if", "cloud"), "--what-if expects NAME=VALUE, came 'cloud'"),
        ((*TIERS, "--what-if", "phone=dead"), "requests start and end on phone"),
        ((), "expected the tiers to plan for, such as --tiers phone,edge,cloud"),
        ((*TIERS, "--svg", "none/x.svg"), "cannot write none/x.svg: the folder none does not exist"),
    ],
)
def test_misuse(cli: Cli, tmp_path: Path, small_model: Path, options: tuple[str, ...], said: str) -> None:
    done = cli("plan", small_model, *options)
    assert done.code == 2
    assert said in done.error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("sla", "said"),
    [
        (
            '{"objective": {"price": -1}}',
            "sla.json: objective.price: Input should be greater than or equal to 0 (got -1)",
        ),
        ('{"objective": {"energy": NaN}}', "sla.json: objective.energy: Input should be"),
        (
            '{"objective": {"latency": 0}}',
            "sla.json: objective: all weights are 0, so every plan is equally good: give",
        ),
        ('{"mode": "sometimes"}', "sla.json: mode: Input should be 'prefer_on_device', 'only_on_device'"),
        ('{"power_w": {"phone": 1}}', "sla.json: power_w needs requests_per_s"),
        (
            '{"prefer_tiers": ["edge"], "forbid_tiers": ["edge"]}',
            "forbid_tiers and prefer_tiers both name 'edge': drop",
        ),
        (
            '{"bounds": {"latency_ms": 0.0001}}',
            "no plan keeps the SLA; any one of these changes makes it possible: lat",
        ),
        ('{"memory_mb": {"fog": 1}}', "memory_mb: there is no tier 'fog': the line is phone, edge, cloud"),
        ('{"accuracy": {"every_cut": {"codecs": ["mp3"]}}}', "accuracy.every_cut.codecs: expected none, fp16"),
        CONTRADICTION,
    ],
)
def test_slas_that_cannot_be(cli: Cli, tmp_path: Path, small_model: Path, sla: str, said: str) -> None:
    (tmp_path / "sla.json").write_text(sla)
    done = cli("plan", small_model, *TIERS, "--sla", "sla.json")
    assert done.code == 2
    assert said in done.error


@pytest.mark.parametrize("value", ["NaN", "-1", "1e400", '"fast"'])
def test_a_figure_that_is_none(cli: Cli, tmp_path: Path, small_model: Path, value: str) -> None:
    figure = f'{{"value": {value}, "unit": "W"}}'
    (tmp_path / "mine.json").write_text(f'{{"version": 1, "devices": {{"t4": {{"active_power": {figure}}}}}}}')
    done = cli("plan", small_model, *TIERS, "--catalogue", "mine.json")
    assert done.code == 2
    assert done.error.startswith("mine.json: device 't4': active_power.value: Input should be ")


def test_the_published_schema_is_current(cli: Cli) -> None:
    published = json.loads((ROOT / "docs" / "sla.schema.json").read_text())
    assert published == SLA.model_json_schema()
    assert cli("sla", "schema").data == published


def test_sla_check(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "good.json").write_text('{"mode": "prefer_on_device", "bounds": {"latency_ms": 5}}')
    (tmp_path / "empty.json").write_text("{}")
    (tmp_path / "bad.json").write_text('{"speed": 1}')
    assert cli("sla", "check", "good.json").out == "good.json: a valid SLA; it sets bounds, mode\n"
    assert "asks for the least latency" in cli("sla", "check", "empty.json").out
    assert cli("sla", "check", "good.json", "--json").data["fields"] == ["bounds", "mode"]
    done = cli("sla", "check", "bad.json")
    assert done.code == 2
    assert done.error == "bad.json: speed: Extra inputs are not permitted (got 1)"
