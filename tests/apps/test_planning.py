"""Planning a model and a bundle: the same plan as a build's, without writing anything."""

from pathlib import Path

import pytest
from tests.apps import models

import flagsplit
from flagsplit.errors import ConfigError, PolicyError

pytestmark = pytest.mark.usefixtures("own_folders")


@pytest.mark.slow
def test_a_model_is_planned_as_it_is_built(small_model: Path, tmp_path: Path) -> None:
    report = flagsplit.plan(small_model, "phone,edge,cloud", sla=models.SPLIT_SLA)
    built = flagsplit.build(small_model, "phone,edge,cloud", tmp_path / "x.flagsplit", sla=models.SPLIT_SLA)
    assert report.plan == built.planning.chosen.plan
    assert report.shipped is None
    assert report.name == "small"
    assert [path.name for path in tmp_path.iterdir()] == ["x.flagsplit"]
    (pinned,) = [each for each in report.barred if each.operator == "ArgMax" and each.tier == "phone"]
    assert pinned.reason == "pin 'ArgMax' wants cloud"


@pytest.mark.slow
def test_a_bundle_has_its_tiers_links_and_sizes(small_model: Path, tmp_path: Path) -> None:
    links = {"edge": "40mbit:80mbit/7ms", "cloud": "lte"}
    devices = {"edge": "raspberry-pi-5"}
    built = flagsplit.build(
        small_model, "phone,edge,cloud", tmp_path / "x", links=links, devices=devices, dims={"H": 200, "W": 300}
    )
    report = flagsplit.plan(tmp_path / "x.flagsplit" if (tmp_path / "x.flagsplit").exists() else tmp_path / "x")
    assert report.problem.graph.dims == built.planning.problem.graph.dims
    assert report.problem.tiers[1].device.name == "raspberry-pi-5"
    assert report.plan.placement == built.planning.chosen.plan.placement
    assert report.plan.predicted.latency_s == pytest.approx(built.planning.chosen.plan.predicted.latency_s)
    assert report.shipped is not None
    assert any("the one that the bundle was built under" in note for note in report.notes)
    other = flagsplit.plan(tmp_path / "x", links={"cloud": "5mbit/80ms"})
    assert other.shipped is None
    assert other.problem.links[1].up_bytes_per_s == 5e6 / 8
    assert other.problem.links[0].rtt_s == pytest.approx(0.007)
    with pytest.raises(ConfigError, match="expected the bundle's own tiers phone,edge,cloud or none, came phone,cloud"):
        flagsplit.plan(tmp_path / "x", "phone,cloud")


@pytest.mark.slow
def test_another_world_is_compared_with_this_one(small_model: Path) -> None:
    report = flagsplit.plan(small_model, "phone,edge,cloud", what_if={"edge": "dead", "cloud": "1mbit/90ms"})
    assert report.before is not None
    assert 1 not in report.plan.used_tiers
    assert report.planning.solution.objective >= report.before.objective * (1 - 1e-9)
    assert any("edge" in each.plan.name for each in report.baselines)


@pytest.mark.slow
def test_by_passes_and_regions_reach_plan_and_build(small_model: Path, tmp_path: Path) -> None:
    links = {"edge": "1mbit/90ms", "phone-cloud": "10gbit/100us"}
    sla = {"forbid_tiers": ["phone"]}
    report = flagsplit.plan(small_model, "phone,edge,cloud", links=links, sla=sla, regions={"cloud": "FRA"})
    assert report.plan.route == (0, 2)
    assert report.problem.tiers[2].carbon_g_per_kwh == 56.0
    built = flagsplit.build(
        small_model, "phone,edge,cloud", tmp_path / "x", links=links, sla=sla, regions={"cloud": "FRA"}
    )
    assert built.planning.chosen.plan == report.plan
    assert len(flagsplit.open(tmp_path / "x").plans.nominal.up_s_per_byte) == 3


def test_tiers_are_needed(small_model: Path) -> None:
    with pytest.raises(ConfigError, match="expected the tiers to plan for, such as --tiers phone,edge,cloud"):
        flagsplit.plan(small_model)
    with pytest.raises(PolicyError, match="unknown tier 'car'"):
        flagsplit.plan(small_model, "phone,car")
