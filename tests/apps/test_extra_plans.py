"""A build that ships further plans, and plans with other costs than the modelled."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tests.apps import models
from tests.apps.conftest import Serve

import flagsplit
from flagsplit.apps.assembly import BuildResult
from flagsplit.apps.extra_plans import add_plans
from flagsplit.apps.groundwork import BuildOptions
from flagsplit.apps.pipeline import build
from flagsplit.errors import PolicyError
from flagsplit.flagir import BlockGraph
from flagsplit.splitter.costs import CostModel
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.sla import parse_sla

pytestmark = pytest.mark.usefixtures("own_folders")
TIERS = ("phone", "edge", "cloud")


def built(model: Path, folder: Path, options: BuildOptions, sla: Mapping[str, object] | None = None) -> BuildResult:
    return build(model, TIERS, folder / "x.flagsplit", options=options, sla=parse_sla(sla or {}))


def halves(problem: Problem) -> dict[str, Sequence[int]]:
    blocks = len(problem.graph.blocks)
    return {"half": [0] * (blocks // 2) + [2] * (blocks - blocks // 2), "everything-at-home": [0] * blocks}


def test_they_are_shipped_and_run(serve: Serve, small_model: Path, tmp_path: Path) -> None:
    plain = built(small_model, tmp_path, BuildOptions()).planning
    more = built(small_model, tmp_path, BuildOptions(extra_plans=halves)).planning
    names = [plan.name for plan in more.pool.plans]
    assert names == [*(plan.name for plan in plain.pool.plans), "half"], "all-phone is there already"
    assert more.chosen == plain.chosen
    bundle = flagsplit.open(tmp_path / "x.flagsplit")
    image = np.asarray(np.random.default_rng(3).standard_normal((1, 3, 18, 18))).astype(np.float32)
    with flagsplit.connect(bundle, serve(bundle)) as session:
        answer = session.run({"image": image}, plan="half")
        assert answer.report.plan == "half"
        models.assert_near(answer["scores"], models.answers_of(small_model, {"image": image})["scores"])


def test_their_bias_is_that_of_the_pool(small_model: Path, tmp_path: Path) -> None:
    """A plan that is taken out of a pool and added again weighs the same as before."""
    sla = {"objective": {"latency": 1.0, "price": 2.0, "energy": 3.0}}
    planning = built(small_model, tmp_path, BuildOptions(), sla).planning
    *plans, last = planning.pool.plans
    shorter = replace(planning.pool, plans=tuple(plans), bias=planning.pool.bias[:-1])
    added = add_plans(replace(planning, pool=shorter), lambda _: {last.name: last.placement}).pool
    assert added.plans == planning.pool.plans
    assert added.bias == pytest.approx(planning.pool.bias)
    assert added.bias[-1] > 0


def one(name: str, placement: Sequence[int], _: Problem) -> dict[str, Sequence[int]]:
    return {name: placement}


def test_placements_that_do_not_fit(small_model: Path, tmp_path: Path) -> None:
    wrong: dict[str, Sequence[int]] = {"short": [0], "far": [9] * 100}
    for name, placement in wrong.items():
        with pytest.raises(PolicyError, match=f"^plan '{name}': expected a tier from 0 to 2 for each of "):
            built(small_model, tmp_path, BuildOptions(extra_plans=partial(one, name, placement)))
    with pytest.raises(PolicyError, match=r"^plan 'half': block '.*' cannot run on cloud: "):
        built(small_model, tmp_path, BuildOptions(extra_plans=halves), {"forbid_tiers": ["cloud"]})


def test_other_costs_decide(small_model: Path, tmp_path: Path) -> None:
    """Where the edge computes for nothing and everything else takes hours, it gets all of it."""

    def free_edge(graph: BlockGraph, costs: CostModel) -> CostModel:
        assert costs.seconds.shape == (len(graph.blocks), 3)
        return replace(costs, seconds=np.where(np.arange(3) == 1, 0.0, np.full_like(costs.seconds, 3600.0)))

    chosen = built(small_model, tmp_path, BuildOptions(costs=free_edge)).planning.chosen.plan
    assert chosen.name == "all-edge"
