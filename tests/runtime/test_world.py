"""The world model: what it makes of estimates, of what nobody measured, and of a direct way past a dead tier."""

import math
import random
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime import planned

from flagsplit.errors import PolicyError
from flagsplit.runtime.decisions import PlanChooser
from flagsplit.runtime.world import WorldModel, bypasses_of
from flagsplit.splitter.state import State

ALIVE = (True, True, True)


def world() -> WorldModel:
    return WorldModel(planned.TIERS, planned.NOMINAL)


def measure(model: WorldModel, source: str, target: str, rate: float, rtt_s: float, now: float = 0.0) -> float:
    """Twenty transfers of a third of a second over a connection; when the last is over."""
    link, total = model.link(source, target), 0
    for _ in range(20):
        link.pinged(now)
        link.ponged(rtt_s, now + rtt_s)
        now += rtt_s
        size = int(rate * 0.3)
        link.sent(size, now)
        now += size / rate + rtt_s
        total += size
        link.acked(total, 0, 0.0, now)
    return now


def test_nothing_known_is_nominal() -> None:
    state = world().state(5.0, ALIVE)
    assert state == replace(planned.NOMINAL, wait_s=(0.0,) * 3)


def test_a_direction_that_is_not_known_is_scaled_like_the_other() -> None:
    model = world()
    now = measure(model, "phone", "edge", 250_000, 0.1)
    state = model.state(now, ALIVE)
    assert state.up_s_per_byte[0] == pytest.approx(4e-6, rel=0.05)
    assert state.down_s_per_byte[0] == pytest.approx(2e-6, rel=0.05)
    assert state.up_s_per_message[0] + state.down_s_per_message[0] == pytest.approx(0.1, rel=0.05)
    assert state.up_s_per_byte[1] == planned.NOMINAL.up_s_per_byte[1]
    model.observe_gauge("edge", "phone", 4e6, 0.0, 0.0, now)
    model.observe_gauge("edge", "nowhere", 4e6, 0.0, 0.0, now)
    assert model.state(now, ALIVE).down_s_per_byte[0] == pytest.approx(2.5e-7, rel=0.01)
    model.observe_gauge("edge", "cloud", 1e6, 0.2, 0.01, now)
    state = model.state(now, ALIVE)
    assert state.up_s_per_byte[1] == pytest.approx(1e-6, rel=0.01)
    assert state.up_s_per_message[1] == pytest.approx(0.1, rel=0.01)


def test_a_direct_way_past_a_dead_tier_costs_what_was_measured_of_it() -> None:
    model, pool = world(), planned.usual()
    before = model.state(0.0, (True, False, True))
    assert before.up_s_per_byte == planned.NOMINAL.up_s_per_byte
    now = measure(model, "phone", "cloud", 500_000, 0.3)
    state = model.state(now, (True, False, True))
    assert state.up_s_per_byte[0] == pytest.approx(2e-6, rel=0.05)
    assert state.up_s_per_byte[1] == 0.0
    assert sum(state.up_s_per_message + state.down_s_per_message) == pytest.approx(0.3, rel=0.05)
    latency_s = pool.plan("all-cloud").latency_s(state)
    assert latency_s == pytest.approx(0.02 + 100_000 / 500_000 + 0.3 + 1000 / 500_000, rel=0.05)
    alive = model.state(now, ALIVE)
    assert alive.up_s_per_byte == planned.NOMINAL.up_s_per_byte, "the line is not what was measured"


def test_a_direct_way_is_a_by_pass_where_the_line_has_one() -> None:
    nominal = State((1.0,) * 3, (1e-6, 1e-7, 2e-6), (1e-6, 1e-7, 2e-6), (0.01,) * 3, (0.01,) * 3, (True,) * 3)
    way = planned.plan("all-cloud", (0.0, 0.0, 0.02), (0.0, 0.0, 1e5), route=(0, 2))
    pool = planned.pool(planned.plan("all-phone", (0.5, 0.0, 0.0), (0.0,) * 3), way)
    assert bypasses_of(pool) == ((0, 2),)
    model = WorldModel(planned.TIERS, nominal, bypasses=bypasses_of(pool))
    now = measure(model, "phone", "cloud", 100_000, 0.3)
    state = model.state(now, ALIVE)
    assert state.up_s_per_byte[2] == pytest.approx(1e-5, rel=0.05)
    assert state.up_s_per_byte[:2] == nominal.up_s_per_byte[:2]
    with pytest.raises(PolicyError, match="by-pass"):
        WorldModel(planned.TIERS, nominal)


def test_waits_are_seconds_of_each_plan_that_runs_there_and_not_of_those_it_relays_for() -> None:
    model, pool = world(), planned.usual()
    for i in range(10):
        model.observe_wait("edge", 0.4, i)
    before, after = planned.NOMINAL, model.state(9.0, ALIVE)
    change = {plan.name: plan.latency_s(after) - plan.latency_s(before) for plan in pool.plans}
    assert change["all-edge"] == pytest.approx(0.4, rel=0.05)
    assert change["all-cloud"] == change["all-phone"] == pytest.approx(0.0)


def test_runs_tell_how_slow_a_tier_is() -> None:
    model, pool = world(), planned.usual()
    for i in range(10):
        model.observe_runs(pool.plan("phone+cloud-1"), {"phone": 0.1, "cloud": 0.06, "edge": 9.0, "x": 1.0}, float(i))
    state = model.state(9.0, ALIVE)
    assert state.slowdown[:2] == pytest.approx((1.0, 1.0))
    assert state.slowdown[2] == pytest.approx(3.0, rel=0.1)


def test_the_snapshot_is_plain_finite_numbers() -> None:
    model = world()
    measure(model, "phone", "edge", 250_000, 0.1)
    model.link("phone", "cloud").pinged(1.0)
    snapshot = model.snapshot(20.0)
    assert set(snapshot) == {"links", "tiers"}
    assert set(snapshot["links"]) == {"phone>edge", "phone>cloud"}
    assert set(snapshot["tiers"]) == set(planned.TIERS)
    for group in snapshot.values():
        for numbers in group.values():
            assert all(isinstance(x, float) and math.isfinite(x) for x in numbers.values())
    assert snapshot["links"]["phone>cloud"]["age_s"] == -1.0


def test_the_optimistic_state_is_better_the_longer_a_link_is_unheard() -> None:
    model = world()
    now = measure(model, "phone", "edge", 100_000, 0.1)
    rates = [model.optimistic(now + age, ALIVE).up_s_per_byte[0] for age in (0.0, 1.0, 4.0)]
    assert rates == sorted(rates, reverse=True)
    assert all(rate <= model.state(now, ALIVE).up_s_per_byte[0] for rate in rates)
    assert world().optimistic(0.0, ALIVE).up_s_per_byte[0] < planned.NOMINAL.up_s_per_byte[0]


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32))
def test_every_state_is_a_state(seed: int) -> None:
    rng = random.Random(seed)
    model, pool = world(), planned.usual()
    names = [*planned.TIERS]
    for _ in range(40):
        now = rng.choice([rng.uniform(0, 100), -5.0, 1e12])
        source, target = rng.sample(names, 2)
        link = model.link(source, target)
        wild = rng.choice([rng.uniform(0, 1), 0.0, 1e300, -1.0])
        match rng.randrange(7):
            case 0:
                link.sent(rng.choice([0, 10**12, 5000]), now)
            case 1:
                link.acked(rng.choice([0, 10**12, 5000]), rng.choice([0, 100]), wild, now)
            case 2:
                link.pinged(now)
            case 3:
                link.ponged(wild, now)
            case 4:
                model.observe_gauge(source, target, wild, wild, wild, now)
            case 5:
                model.observe_wait(source, wild, now)
            case _:
                model.observe_runs(rng.choice(pool.plans), {source: wild}, now)
        alive = (True, rng.random() < 0.5, rng.random() < 0.5)
        for state in (model.state(now, alive), model.optimistic(now, alive, 3.0)):
            assert all(math.isfinite(x) and x >= 0 for x in pool.latencies_s(state))


@pytest.mark.slow
def test_choosing_takes_little_time() -> None:
    model, pool = world(), planned.usual()
    now = measure(model, "phone", "edge", 250_000, 0.1)
    chooser = PlanChooser(pool, model)
    times = []
    for i in range(3000):
        started = time.perf_counter()
        chooser.choose(now + i * 0.01, ALIVE)
        times.append(time.perf_counter() - started)
    assert sorted(times)[len(times) // 2] < 1e-3
