"""`flagsplit profile`, and builds that prefer what it wrote."""

import json
from pathlib import Path

import pytest
from tests.apps.cli.conftest import Cli

import flagsplit

FAST_EDGE = (
    "--tiers",
    "phone,edge",
    "--devices",
    "edge=t4",
    "--link",
    "edge=10gbit/1us",
    "--shape",
    "image=1,3,512,512",
)


@pytest.mark.slow
def test_profile_then_build(cli: Cli, small_model: Path, tmp_path: Path) -> None:
    cli("build", small_model, *FAST_EDGE, "-o", "draft.flagsplit")
    done = cli("profile", "draft.flagsplit", "--tier", "edge", "--seconds", "0.05", "-o", "edge.json", "--json")
    assert done.code == 0, done.err
    assert done.data["measured"] == done.data["covered"] == done.data["blocks"]
    assert done.data["basis"] == "measured"
    built = cli("build", small_model, *FAST_EDGE, "-o", "m.flagsplit", "--profile", "edge=edge.json", "--json")
    assert built.code == 0, built.err
    found = built.data["profiles"]["edge"]
    assert found["measured"] == found["blocks"] == done.data["blocks"]
    assert found["measured_share"] == 1.0
    (whole,) = [plan for plan in built.data["plans"] if plan["name"] == "all-edge"]
    assert whole["predicted"]["tier_ms"]["edge"] >= done.data["covered_ms"]


@pytest.mark.slow
def test_a_slow_tier_is_left_alone(cli: Cli, small_model: Path, tmp_path: Path) -> None:
    """The plan changes when a profile says that the edge is slow."""
    before = cli("build", small_model, *FAST_EDGE, "-o", "draft.flagsplit", "--json")
    assert "edge" in before.data["plan"]
    cli("profile", "draft.flagsplit", "--tier", "edge", "--seconds", "0.01", "--share", "0.5", "-o", "edge.json")
    slow = json.loads((tmp_path / "edge.json").read_text())
    for block in slow["blocks"].values():
        block["added_s"] = block["seconds"] = block["seconds"] * 1e4
    (tmp_path / "slow.json").write_text(json.dumps(slow))
    after = cli("build", small_model, *FAST_EDGE, "-o", "m.flagsplit", "--profile", "edge=slow.json")
    assert after.code == 0, after.err
    assert "edge: 2 of 5 blocks measured" in after.out
    assert flagsplit.open(tmp_path / "m.flagsplit").plans.pool.plans[0].name == "all-phone"
    again = flagsplit.build(
        small_model,
        "phone,edge",
        tmp_path / "api.flagsplit",
        devices={"edge": "t4"},
        links={"edge": "10gbit/1us"},
        shapes={"image": (1, 3, 512, 512)},
        profiles={"edge": tmp_path / "slow.json"},
    )
    assert again.planning.chosen.plan.name == "all-phone"
    assert again.calibrations["edge"].measured.sum() == 2


@pytest.mark.slow
def test_a_table_for_people(cli: Cli, small_bundle: Path, tmp_path: Path) -> None:
    done = cli("profile", small_bundle, "--tier", "cloud", "--seconds", "0.01")
    assert done.code == 0, done.err
    assert "Heaviest blocks of tier cloud (measured)" in done.out
    assert (tmp_path / "small-cloud.profile.json").is_file()


def test_misuse(cli: Cli, small_bundle: Path, small_model: Path, tmp_path: Path) -> None:
    assert "expected a tier of this bundle" in cli("profile", small_bundle, "--tier", "moon").error
    assert "share: expected above 0" in cli("profile", small_bundle, "--tier", "edge", "--share", "2").error
    assert "does not exist" in cli("profile", small_bundle, "--tier", "edge", "-o", "no/p.json").error
    build = ("build", small_model, "--tiers", "phone,edge", "-o", "x.flagsplit")
    assert "cannot be read" in cli(*build, "--profile", "edge=none.json").error
    assert "--profile expects NAME=VALUE" in cli(*build, "--profile", "none.json").error
    assert "--profile names tier 'moon'" in cli(*build, "--profile", "moon=none.json").error


@pytest.mark.slow
def test_profile_then_plan(cli: Cli, small_model: Path, tmp_path: Path) -> None:
    cli("build", small_model, *FAST_EDGE, "-o", "draft.flagsplit")
    cli("profile", "draft.flagsplit", "--tier", "edge", "--seconds", "0.01", "-o", "edge.json")
    data = cli("plan", small_model, *FAST_EDGE, "--profile", "edge=edge.json", "--pareto", "--json").data
    assert data["times_basis"] == {"phone": "modelled", "edge": "measured"}
    assert data["profiles"]["edge"]["measured_share"] == 1.0
    assert data["frontier"]["points"][0]["figures"]["latency_ms"] == pytest.approx(data["plan"]["latency_ms"])
    out = cli("plan", "draft.flagsplit", "--profile", "edge=edge.json", "--pareto").out
    assert "note: edge: 5 of 5 blocks measured" in out
    assert "No plan beats these in everything (modelled, complete)" in out
