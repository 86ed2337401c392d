"""A pool under another policy against the costs of its plans, one by one."""

import random
from dataclasses import replace

import numpy as np
import pytest

from flagsplit.errors import PolicyError
from flagsplit.splitter.devices import load_catalogue
from flagsplit.splitter.plan import Cut
from flagsplit.splitter.pool import Pool
from flagsplit.splitter.pool_builder import bias_of, build_pool
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.repolicy import repolicy
from flagsplit.splitter.sla import SLA, parse_sla
from flagsplit.splitter.testing import random_problem


@pytest.fixture(scope="module")
def pools() -> list[tuple[Problem, Pool]]:
    found = []
    for seed in range(12):
        problem = random_problem(random.Random(seed), load_catalogue(), most_placements=200)
        found.append((problem, build_pool(problem, milp_seconds=0.5)))
    return found


def _random_sla(rng: random.Random, pool: Pool) -> SLA:
    weights = {name: rng.choice([0.0, 1.0, rng.uniform(0, 20)]) for name in ("price", "energy", "carbon")}
    data: dict[str, object] = {"objective": {"latency": 1.0, "goal": rng.choice(["latency", "throughput"]), **weights}}
    if rng.random() < 0.3:
        data["forbid_tiers"] = [rng.choice(pool.tiers[1:])] if len(pool.tiers) > 1 else []
    if rng.random() < 0.3:
        data["bounds"] = {"energy_mj": rng.choice(pool.plans).predicted.first_tier_energy_j * 1e3 + 1e-6}
    return parse_sla(data)


@pytest.mark.slow
def test_the_best_of_the_plans_that_keep_the_policy_comes_first(pools: list[tuple[Problem, Pool]]) -> None:
    rng = random.Random(3)
    left_out = 0
    for problem, pool in pools:
        for _ in range(15):
            sla = _random_sla(rng, pool)
            changed = replace(problem, sla=sla)
            bound = sla.bounds.energy_mj
            keeps = [
                plan
                for plan in pool.plans
                if not {plan.tiers[i] for i in plan.used_tiers} & set(sla.forbid_tiers)
                and (bound is None or plan.predicted.first_tier_energy_j * 1e3 <= bound)
            ]
            if not keeps:
                with pytest.raises(PolicyError, match="no plan of the bundle keeps"):
                    repolicy(pool, sla)
                continue
            new = repolicy(pool, sla)
            assert {plan.name for plan in new.plans} == {plan.name for plan in keeps}
            left_out += len(pool.plans) - len(keeps)
            assert new.bias == pytest.approx([bias_of(changed, plan) for plan in new.plans])
            assert not new.certificate.exact
            costs = {plan.name: new.scores(problem.nominal)[i] for i, plan in enumerate(new.plans)}
            assert costs[new.plans[0].name] == pytest.approx(min(costs.values()))
            assert np.isclose(costs[new.choose(problem.nominal).plan.name], min(costs.values()))
            assert Pool.from_json(new.to_json()) == new
    assert left_out > 20


def test_rules_about_blocks_want_a_new_build(pools: list[tuple[Problem, Pool]]) -> None:
    pool = pools[0][1]
    for rule in (
        {"keep_on": {"inputs": pool.tiers[0]}},
        {"min_blocks_deep": 2},
        {"pins": {"*": pool.tiers[0]}},
        {"forbid_vendors": ["acme"]},
    ):
        with pytest.raises(PolicyError, match=f"{next(iter(rule))}.*build again"):
            repolicy(pool, parse_sla(rule))


@pytest.mark.parametrize("rule", [{"forbid_tiers": ["mars"]}, {"use_tiers": ["mars"]}, {"memory_mb": {"mars": 1}}])
def test_unknown_tiers_are_named(pools: list[tuple[Problem, Pool]], rule: dict[str, object]) -> None:
    with pytest.raises(PolicyError, match="'mars'"):
        repolicy(pools[0][1], parse_sla(rule))


def test_modes_bounds_rates_memory_and_codecs_count(pools: list[tuple[Problem, Pool]]) -> None:
    pool = next(pool for _, pool in pools if len(pool.tiers) > 1 and any(len(p.used_tiers) > 1 for p in pool.plans))
    first = pool.tiers[0]
    plan = pool.plans[0]
    home = [each for each in pool.plans if each.used_tiers == (0,)]
    if home:
        assert [p.used_tiers for p in repolicy(pool, parse_sla({"mode": "only_on_device"})).plans] == [(0,)] * len(home)
        assert repolicy(pool, parse_sla({"mode": "prefer_on_device"})).preferred == home[0].name
    slowest = max(each.predicted.bottleneck_s for each in pool.plans)
    kept = repolicy(pool, parse_sla({"requests_per_s": 0.999 / slowest}))
    assert len(kept.plans) == len(pool.plans)
    with pytest.raises(PolicyError, match="slowest stage"):
        repolicy(pool, parse_sla({"requests_per_s": 1e14}))
    with pytest.raises(PolicyError, match=rf"MB on .*memory_mb|{first}"):
        repolicy(pool, parse_sla({"memory_mb": dict.fromkeys(pool.tiers, 1e-9)}))
    lossy = replace(plan, name="lossy", cuts=(Cut("x", 8, 0, 1, (1,), "fp16"),))
    both = replace(pool, plans=(*pool.plans, lossy), bias=(*pool.bias, 0.0))
    assert "lossy" not in {each.name for each in repolicy(both, SLA()).plans}
    allowed = parse_sla({"accuracy": {"every_cut": {"codecs": ["fp16"]}}})
    assert "lossy" in {each.name for each in repolicy(both, allowed).plans}
    bounded = repolicy(pool, parse_sla({"bounds": {"latency_ms": 5.0}}))
    assert bounded.latency_bound_s == pytest.approx(0.005)
