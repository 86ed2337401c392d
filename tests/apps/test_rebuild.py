"""Bundles that are built again under another policy: the same bytes as a build from the model gives."""

import copy
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.apps import models
from tests.apps.conftest import Serve

import flagsplit
from flagsplit.apps.groundwork import BuildOptions
from flagsplit.apps.pipeline import build
from flagsplit.apps.rebuild import place_of, rebuild, rebuilt
from flagsplit.apps.rebuild_process import rebuild_elsewhere
from flagsplit.apps.recipe import recorded_sla
from flagsplit.errors import BundleError, ConfigError, PolicyError, RefusedError
from flagsplit.flagir import BlockGraph
from flagsplit.runtime.bundle import Bundle
from flagsplit.splitter.costs import CostModel
from flagsplit.splitter.sla import SLA, parse_sla

pytestmark = pytest.mark.usefixtures("own_folders")

TIERS = ("phone", "edge", "cloud")
SPLIT = parse_sla(models.SPLIT_SLA)
EIGHT_BITS = parse_sla({**models.SPLIT_SLA, "accuracy": {"every_cut": {"codecs": ["u8"]}}})


def _free_edge(_: BlockGraph, costs: CostModel) -> CostModel:
    seconds = costs.seconds.copy()
    seconds[:, 1] /= 7
    return replace(costs, seconds=seconds)


def _own_catalogue(folder: Path) -> Path:
    path = folder / "own.json"
    faster = {"extends": "t4", "memory_bandwidth": {"value": 5e11, "unit": "B/s", "source": "mine"}}
    path.write_text(json.dumps({"version": 1, "devices": {"mine": faster}}))
    return path


CHOICES: dict[str, dict[str, Any]] = {
    "links": {"links": {"edge": "lte", "cloud": "30mbit/9ms", "phone-cloud": "20mbit/40ms"}},
    "sizes": {"options": BuildOptions(ranges={"N": (1, 4)}, dims={"H": 32, "W": 48}, numerics="fast")},
    "atoms": {"options": BuildOptions(residency="atoms", regions={"cloud": "DEU@14"})},
    "costs": {"options": BuildOptions(costs=_free_edge)},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("sla", [SLA(), EIGHT_BITS], ids=["least latency", "lossy"])
def test_it_is_the_bundle_that_a_build_makes(small_model: Path, tmp_path: Path, name: str, sla: SLA) -> None:
    old = build(small_model, TIERS, tmp_path / "old.flagsplit", sla=SPLIT, **CHOICES[name])
    wanted = build(small_model, TIERS, tmp_path / "wanted.flagsplit", sla=sla, **CHOICES[name])
    bundle = flagsplit.open(old.path)
    came = rebuild(bundle, sla, tmp_path / "came.flagsplit")
    assert came.planning.pool == wanted.planning.pool
    assert came.path.read_bytes() == wanted.path.read_bytes()
    assert came.digest == wanted.digest != old.digest
    assert came.notes == ()
    assert recorded_sla(flagsplit.open(came.path)) == sla
    back = rebuild(flagsplit.open(came.path), SPLIT, tmp_path / "back.flagsplit")
    assert back.digest == old.digest


@pytest.mark.slow
def test_devices_of_ones_own_are_not_asked_for_again(small_model: Path, tmp_path: Path) -> None:
    own = _own_catalogue(tmp_path)
    options = BuildOptions(catalogues=[own])
    old = build(small_model, TIERS, tmp_path / "old.flagsplit", devices={"cloud": "mine"}, options=options)
    wanted = build(
        small_model, TIERS, tmp_path / "wanted.flagsplit", devices={"cloud": "mine"}, options=options, sla=SPLIT
    )
    own.unlink()
    assert rebuild(flagsplit.open(old.path), SPLIT, tmp_path / "came.flagsplit").digest == wanted.digest


@pytest.mark.slow
def test_plans_that_were_added_are_named(small_model: Path, tmp_path: Path) -> None:
    blocks = len(build(small_model, TIERS, tmp_path / "x.flagsplit").planning.problem.graph.blocks)
    options = BuildOptions(extra_plans=lambda _: {"mine": [0] * (blocks - 1) + [2]})
    old = build(small_model, TIERS, tmp_path / "old.flagsplit", options=options)
    came = rebuild(flagsplit.open(old.path), SLA(), tmp_path / "came.flagsplit")
    assert came.notes == ("plans that were added at the build are not in the new one: mine",)
    assert came.digest == flagsplit.open(tmp_path / "x.flagsplit").digest


def _older(path: Path) -> Bundle:
    """As one of format 1.1 is read."""
    bundle = copy.copy(flagsplit.open(path))
    bundle.facts = bundle.facts.model_copy(update={"sla": None, "recipe": None})
    return bundle


@pytest.mark.slow
def test_an_older_bundle_is_built_with_what_planning_assumes(
    small_bundle: Path, split_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    came = rebuild(_older(small_bundle), SPLIT, tmp_path / "came.flagsplit")
    wanted = flagsplit.open(split_bundle).plans.pool
    assert [plan.placement for plan in came.planning.pool.plans] == [plan.placement for plan in wanted.plans]
    assert "older than format 1.2" in came.notes[0]
    assert "older than format 1.2" in caplog.text
    assert recorded_sla(_older(small_bundle)) is None


@pytest.mark.slow
def test_what_cannot_be_leaves_no_files(small_bundle: Path, tmp_path: Path) -> None:
    bundle, place = flagsplit.open(small_bundle), tmp_path / "came.flagsplit"
    impossible = parse_sla({"bounds": {"latency_ms": 1e-6}})
    for again in (rebuild, rebuild_elsewhere):
        with pytest.raises(PolicyError, match="no plan keeps the SLA"):
            again(bundle, impossible, place)
    with pytest.raises(PolicyError, match="mars"):
        rebuild(bundle, SLA(pins={"Conv": "mars"}), place)
    with pytest.raises(ConfigError, match="is the bundle itself"):
        rebuild(bundle, SLA(), small_bundle)
    damaged = copy.copy(bundle)
    damaged.facts = bundle.facts.model_copy(update={"recipe": {**(bundle.facts.recipe or {}), "links": []}})
    with pytest.raises(BundleError, match=r"cannot be built again: it has 3 tiers and 0 links"):
        rebuild(damaged, SLA(), place)
    damaged.facts = bundle.facts.model_copy(update={"recipe": {"tiers": 3}})
    with pytest.raises(BundleError, match="cannot be built again: tiers"):
        rebuild(damaged, SLA(), place)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_cache_is_used_again_and_mended(small_bundle: Path, split_bundle: Path, tmp_path: Path) -> None:
    bundle = flagsplit.open(small_bundle, cache=tmp_path)
    made: list[Path] = []

    def make(place: Path) -> None:
        made.append(place)
        rebuild(bundle, SPLIT, place)

    first = rebuilt(bundle, SPLIT, make)
    assert first.digest == flagsplit.open(split_bundle).digest
    assert rebuilt(bundle, SPLIT, make).path == first.path == place_of(bundle, SPLIT)
    assert len(made) == 1
    first.path.write_bytes(first.path.read_bytes()[:100])
    assert rebuilt(bundle, SPLIT, make).digest == first.digest
    assert len(made) == 2
    assert place_of(bundle, SLA()) != place_of(bundle, SPLIT) != place_of(first, SPLIT)


@pytest.mark.slow
def test_the_cache_keeps_those_that_were_used_last(
    small_bundle: Path, split_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = flagsplit.open(small_bundle, cache=tmp_path)
    slas = [parse_sla({"bounds": {"latency_ms": 1e6 + number}}) for number in range(20)]

    def make(place: Path) -> None:
        shutil.copy(split_bundle, place)
        os.utime(place, (1e9 + len(used), 1e9 + len(used)))
        used.append(place)

    used: list[Path] = []
    for sla in slas[:16]:
        rebuilt(bundle, sla, make)
    first = rebuilt(bundle, slas[0], make).path
    for sla in slas[16:]:
        rebuilt(bundle, sla, make)
    assert set(first.parent.iterdir()) == {first, *used[5:]}
    monkeypatch.setattr("flagsplit.apps.rebuild._MOST_KEPT_BYTES", split_bundle.stat().st_size * 3)
    last = rebuilt(bundle, slas[1], make).path
    assert set(first.parent.iterdir()) == {last, first, used[-2]}


@pytest.mark.slow
def test_a_key_without_rights_is_told_what_to_do(serve: Serve, small_bundle: Path) -> None:
    bundle = flagsplit.open(small_bundle)
    with flagsplit.connect(bundle, serve(bundle)) as session:
        with pytest.raises(RefusedError, match="flagsplit keys allow --admin"):
            session.update_sla(models.SPLIT_SLA)
        assert session.bundle is bundle
        assert session.epoch == 0
