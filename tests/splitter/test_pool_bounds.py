"""The SLA's bounds on price, energy and carbon when a plan is chosen, against brute force; what the build writes."""

import json
import math
import random
from collections.abc import Mapping
from dataclasses import replace

import pytest

from flagsplit.errors import BundleError, PolicyError, UnavailableError
from flagsplit.splitter.devices import Catalogue
from flagsplit.splitter.plan import Cut, Features, Plan, Predicted
from flagsplit.splitter.pool import Pool, PoolCertificate
from flagsplit.splitter.pool_bounds import PoolBound
from flagsplit.splitter.pool_builder import build_pool
from flagsplit.splitter.problem import make_problem
from flagsplit.splitter.sla import parse_sla
from flagsplit.splitter.state import State
from flagsplit.splitter.testing import cnn, line

CERTIFICATE = PoolCertificate(False, 0, 0, None, (1.0, 1.0), (1.0, 1.0))
TIERS = ("phone", "edge", "cloud")
NAMES = ("price_per_1k_usd", "energy_mj", "carbon_per_1k_g")


def random_pool(rng: random.Random, plans: int = 7) -> Pool:
    def figures(count: int, most: float) -> tuple[float, ...]:
        return tuple(rng.uniform(0, most) for _ in range(count))

    made = []
    for i in range(plans):
        features = Features(
            tier_seconds=figures(3, 0.2),
            up_bytes=figures(2, 1e5),
            down_bytes=figures(2, 1e5),
            up_messages=figures(2, 2),
            down_messages=figures(2, 2),
            tier_joules=figures(3, 1),
            price_usd=0.0,
            resident_bytes=(0.0,) * 3,
        )
        placement = tuple(sorted(rng.choice([0, 1, 2]) for _ in range(3)))
        cuts = (Cut("x", 1, 0, 1, (1,), "u8"),) if i % 3 == 2 else ()
        made.append(Plan(f"p{i}", TIERS, placement, cuts, features, Predicted(0, 0, 0, 0)))
    chosen = rng.sample(NAMES, rng.randint(0, 3))
    bounds = tuple(
        PoolBound(name, rng.uniform(0.2, 3), {p.name: rng.uniform(0, 1) for p in made}, figures(11, 3))
        for name in chosen
    )
    bound_s = rng.choice([None, rng.uniform(0.1, 1)])
    return Pool(tuple(made), 1.0, figures(plans, 0.3), bound_s, {}, CERTIFICATE, bounds=bounds)


def random_state(rng: random.Random) -> State:
    def both(most: float) -> tuple[float, float]:
        return rng.uniform(0, most), rng.uniform(0, most)

    slow = tuple(rng.uniform(0.5, 5) for _ in TIERS)
    waits = rng.choice([(), tuple(rng.uniform(0, 0.4) for _ in TIERS)])
    alive = (True, rng.random() < 0.8, rng.random() < 0.8)
    return State(slow, both(1e-5), both(1e-5), both(0.05), both(0.05), alive, waits)


def values_of(pool: Pool, plan: Plan, state: State) -> Mapping[str, float]:
    """Every bound as a share of what is allowed, in plain arithmetic."""
    theta = [*state.slowdown, *state.up_s_per_byte, *state.down_s_per_byte]
    theta += [*state.up_s_per_message, *state.down_s_per_message]
    phi = [float(x) for x in plan.features.latency_vector()]
    latency_s = sum(a * b for a, b in zip(phi, theta, strict=True))
    latency_s += sum(state.wait_s[k] for k in set(plan.placement)) if state.wait_s else 0.0
    found = {"latency": latency_s}
    if pool.latency_bound_s is not None:
        found["latency_ms"] = latency_s / pool.latency_bound_s
    for bound in pool.bounds:
        moving = sum(a * b * c for a, b, c in zip(bound.rates, phi, theta, strict=True))
        found[bound.name] = (bound.fixed[plan.name] + moving) / bound.limit
    return found


def brute_force(pool: Pool, state: State, without: set[str]) -> str | None:
    usable = [p for p in pool.plans if all(state.alive[k] for k in p.placement) and p.name not in without]
    if not usable:
        return None
    found = {p.name: dict(values_of(pool, p, state)) for p in usable}
    latency = {name: values.pop("latency") for name, values in found.items()}
    worst = {name: max(values.values(), default=0.0) for name, values in found.items()}
    keeping = [name for name in found if worst[name] <= 1]
    bias = {p.name: b for p, b in zip(pool.plans, pool.bias, strict=True)}
    if keeping:
        return min(keeping, key=lambda name: latency[name] + bias[name])
    return min(found, key=lambda name: worst[name])


@pytest.mark.parametrize("seed", range(150))
def test_choice_is_that_of_brute_force(seed: int) -> None:
    rng = random.Random(seed)
    pool = random_pool(rng)
    for _ in range(5):
        state, without = random_state(rng), set(rng.sample([p.name for p in pool.plans], rng.choice([0, 0, 2])))
        expected = brute_force(pool, state, without)
        if expected is None:
            with pytest.raises(UnavailableError):
                pool.choose(state, without=without)
            continue
        choice = pool.choose(state, without=without)
        assert choice.plan.name == expected
        values = values_of(pool, choice.plan, state)
        assert choice.latency_s == pytest.approx(values["latency"])
        assert choice.latency_s == pytest.approx(choice.plan.latency_s(state))
        assert set(choice.broken) == {name for name, share in values.items() if name != "latency" and share > 1}


@pytest.mark.parametrize("seed", range(30))
def test_a_current_plan_that_breaks_a_bound_is_left(seed: int) -> None:
    rng = random.Random(seed)
    pool, state = random_pool(rng), replace(random_state(rng), alive=(True,) * 3)
    best = pool.choose(state)
    for plan in pool.plans:
        kept = pool.choose(state, current=plan.name, switch_margin=100.0)
        if not best.broken:
            assert not kept.broken


def test_pools_without_bounds_are_written_as_before_and_read_again() -> None:
    pool = replace(random_pool(random.Random(1)), bounds=())
    assert "bounds" not in json.loads(pool.to_json())
    assert Pool.from_json(pool.to_json()) == pool


def test_bounds_round_trip_and_damage_is_refused() -> None:
    pool = next(p for p in (random_pool(random.Random(s)) for s in range(99)) if p.bounds)
    text = pool.to_json()
    assert Pool.from_json(text) == pool
    for path, value in (
        ("limit", 0),
        ("limit", -1),
        ("limit", None),
        ("rates", [1]),
        ("rates", 3),
        ("fixed", {}),
        ("fixed", {"p0": "x"}),
        ("name", 3),
        ("odd", 1),
    ):
        data = json.loads(text)
        data["bounds"][0][path] = value
        with pytest.raises(BundleError):
            Pool.from_json(json.dumps(data))
    with pytest.raises(PolicyError, match="rate for each feature"):
        replace(pool, bounds=(replace(pool.bounds[0], rates=()),))


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["first", "all"])
def test_built_bounds_say_the_nominal_figures_and_follow_the_state(catalogue: Catalogue, scope: str) -> None:
    sla = {
        "bounds": {"price_per_1k_usd": 5.0, "energy_mj": 9e5, "carbon_per_1k_g": 1e6},
        "energy_scope": scope,
    }
    tiers, links = line("generic-phone-cpu", "generic-edge-cpu", "t4", links=["lte", "wan"], catalogue=catalogue)
    problem = make_problem(cnn(), tiers, links, parse_sla(sla))
    pool = build_pool(problem)
    assert Pool.from_json(pool.to_json()) == pool
    excess = pool.excess(problem.nominal)
    for i, plan in enumerate(pool.plans):
        told = plan.predicted
        energy_j = told.first_tier_energy_j if scope == "first" else told.total_energy_j
        assert excess["price_per_1k_usd"][i] * 5 == pytest.approx(told.price_per_1k_usd, abs=1e-12)
        assert excess["energy_mj"][i] * 9e5 == pytest.approx(energy_j * 1e3)
        assert excess["carbon_per_1k_g"][i] * 1e6 == pytest.approx(told.carbon_per_1k_g)
    slow = pool.excess(replace(problem.nominal, slowdown=(1.0, 1.0, 7.0)))
    cloud = [plan.name for plan in pool.plans].index("all-cloud")
    phone = [plan.name for plan in pool.plans].index("all-phone")
    assert slow["price_per_1k_usd"][cloud] == pytest.approx(7 * excess["price_per_1k_usd"][cloud], rel=0.05)
    assert slow["price_per_1k_usd"][phone] == excess["price_per_1k_usd"][phone]
    thin = pool.excess(problem.nominal.scaled([0.1, 1.0]))
    assert thin["energy_mj"][cloud] > excess["energy_mj"][cloud]
    assert thin["energy_mj"][phone] == excess["energy_mj"][phone]
    # What was cheap enough no longer is where the tier is billed for longer: the choice goes elsewhere.
    bound = replace(pool.bounds[0], limit=pool.plans[cloud].predicted.price_per_1k_usd * 2)
    tight = replace(pool, bounds=(bound,), bias=tuple(0.0 if i == cloud else 9.0 for i in range(len(pool.plans))))
    assert tight.choose(problem.nominal).plan.name == "all-cloud"
    moved = tight.choose(replace(problem.nominal, slowdown=(1.0, 1.0, 7.0)))
    assert moved.plan.name != "all-cloud"
    assert not moved.broken


def test_waits_are_charged_where_something_runs() -> None:
    pool = random_pool(random.Random(5))
    state = replace(random_state(random.Random(5)), alive=(True,) * 3, wait_s=())
    before, waits = pool.latencies_s(state), (0.0, 3.0, 0.5)
    after = pool.latencies_s(replace(state, wait_s=waits))
    for i, plan in enumerate(pool.plans):
        assert after[i] - before[i] == pytest.approx(sum(waits[k] for k in plan.used_tiers))
    with pytest.raises(PolicyError, match="a wait for each"):
        replace(state, wait_s=(1.0,))
    with pytest.raises(PolicyError):
        replace(state, wait_s=(math.nan, 0.0, 0.0))
