"""Choosing plans at run time: against brute force, without flapping, with reasons; patience, rescues and probes."""

import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime import planned

from flagsplit.errors import UnavailableError
from flagsplit.runtime.decisions import (
    REASONS,
    ChooserOptions,
    Decision,
    DecisionLog,
    PlanChooser,
)
from flagsplit.runtime.probing import ProbeOptions, ProbePolicy
from flagsplit.runtime.world import WorldModel
from flagsplit.splitter.pool import Pool
from flagsplit.splitter.state import State

ALIVE = (True, True, True)


class Told(WorldModel):
    """A world whose state is as the test says."""

    def __init__(self, state: State = planned.NOMINAL) -> None:
        super().__init__(planned.TIERS, planned.NOMINAL)
        self.told = state

    def state(self, now: float, alive: object) -> State:
        assert isinstance(alive, tuple)
        return replace(self.told, alive=alive)


def chooser(world: WorldModel | None = None, pool: Pool | None = None, **options: float) -> PlanChooser:
    return PlanChooser(pool or planned.usual(), world or Told(), ChooserOptions(**options))


def slower_link(factor: float, link: int = 0) -> State:
    up = list(planned.NOMINAL.up_s_per_byte)
    up[link] *= factor
    return replace(planned.NOMINAL, up_s_per_byte=tuple(up))


def test_start_has_a_decision_with_numbers() -> None:
    each = chooser()
    name, decision = each.choose(3.0, ALIVE)
    assert decision is not None
    assert (decision.reason, decision.from_plan, decision.to_plan, decision.at_s) == ("start", "", name, 3.0)
    assert decision.numbers["predicted_new_s"] == pytest.approx(each.pool.choose(planned.NOMINAL).latency_s)
    assert decision.numbers["phone>edge bytes_per_s"] == pytest.approx(1e6)
    assert each.choose(3.1, ALIVE) == (name, None)
    assert list(each.log) == [decision]


def test_reasons() -> None:
    assert len(set(REASONS)) == len(REASONS)
    world = Told()
    each = chooser(world, dwell_s=0.0)
    each.choose(0.0, ALIVE)

    def reason(now: float, state: State, alive: tuple[bool, ...] = ALIVE) -> str:
        world.told = state
        decision = each.choose(now, alive)[1]
        assert decision is not None
        assert decision.from_plan != decision.to_plan
        return decision.reason

    slow = replace(slower_link(100.0), slowdown=(1.0, 1.0, 1.0))
    assert reason(1.0, slow) == "link slower"
    assert reason(2.0, planned.NOMINAL) == "link faster"
    assert reason(3.0, planned.NOMINAL, (True, False, False)) == "tier down"
    assert reason(4.0, planned.NOMINAL) == "tier back"
    assert reason(5.0, replace(planned.NOMINAL, slowdown=(1.0, 1.0, 40.0))) == "tier slower"
    assert reason(6.0, planned.NOMINAL) == "tier faster"
    assert reason(7.0, replace(planned.NOMINAL, wait_s=(0.0, 0.0, 3.0))) == "overload"


def test_an_sla_bound_is_a_reason() -> None:
    pool = replace(planned.usual(), latency_bound_s=0.4, bias=(0.0, 9.0, 9.0, 9.0, 9.0))
    pool = replace(pool, latency_bound_s=0.6)
    world = Told()
    each = chooser(world, pool, dwell_s=0.0)
    assert each.choose(0.0, ALIVE)[0] == "all-phone"
    world.told = replace(planned.NOMINAL, slowdown=(2.0, 1.0, 1.0))
    decision = each.choose(1.0, ALIVE)[1]
    assert decision is not None
    assert decision.reason == "sla"


def test_requests_of_their_own_leave_the_plan_alone() -> None:
    each = chooser(Told(slower_link(20.0)), pool=planned.usual())
    first, _ = each.choose(0.0, ALIVE)
    assert first == "phone+cloud-u8"
    name, decision = each.choose(0.1, ALIVE, avoid_lossy=True, rid=7)
    assert name == "all-phone"
    assert decision is not None
    assert (decision.rid, decision.reason) == (7, "codec out of range")
    assert each.current == first
    other, _ = each.choose(0.1, ALIVE, exclude=[first, "all-phone"], rid=8, reason="deadline")
    assert other not in (first, "all-phone")
    asked = each.ask(0.2, ALIVE, "all-edge", 9)
    assert asked is not None
    assert asked.reason == "asked"
    assert each.ask(0.2, ALIVE, first, 10) is None
    with pytest.raises(UnavailableError):
        each.choose(0.3, ALIVE, exclude=[plan.name for plan in each.pool.plans])


def test_codec_variants_follow_the_goodput_with_hysteresis() -> None:
    pool = planned.pool(
        planned.plan("cut", (0.05, 0.0, 0.02), (80_000.0, 80_000.0)),
        planned.plan("cut-u8", (0.12, 0.0, 0.022), (20_000.0, 20_000.0), codec="u8"),
    )
    world = Told()
    each = chooser(world, pool, dwell_s=0.5)
    seen = []
    # Up and down around where both are equal, in steps smaller than the margin, then far beyond.
    for step, factor in enumerate([0.05, 0.5, 1.0, 1.2, 1.0, 1.2, 1.0, 5.0, 10.0, 2.0, 1.2, 0.05, 0.02]):
        world.told = slower_link(factor)
        seen.append(each.choose(float(step), ALIVE)[0])
    assert seen[0] == "cut"
    assert seen[7:9] == ["cut-u8"] * 2
    assert seen[-1] == "cut"
    assert sum(a != b for a, b in pairwise(seen)) == 2


@pytest.mark.parametrize("seed", range(60))
def test_never_flaps_and_is_near_the_best(seed: int) -> None:
    rng = random.Random(seed)
    pool, world = planned.usual(), Told()
    options = ChooserOptions(margin=0.1, dwell_s=1.0, far_better=2.0)
    each = PlanChooser(pool, world, options)
    now, changed, alive = 0.0, -10.0, ALIVE
    before: str | None = None
    for _ in range(200):
        now += rng.uniform(0.01, 0.4)
        world.told = replace(
            planned.NOMINAL.scaled([10 ** rng.uniform(-2, 1), 10 ** rng.uniform(-1, 1)], rng.uniform(0.5, 4)),
            slowdown=(1.0, rng.uniform(1, 8), rng.uniform(1, 8)),
        )
        alive = (True, rng.random() < 0.9, rng.random() < 0.9)
        name, decision = each.choose(now, alive)
        state = world.state(now, alive)
        latency = {plan.name: plan.latency_s(state) for plan in pool.plans}
        living = [plan.name for plan in pool.plans if all(alive[k] for k in plan.placement)]
        best = min(living, key=lambda each: latency[each])
        assert name in living
        if decision is None:
            assert name == before
            settled = now - changed >= options.dwell_s
            assert latency[name] <= latency[best] * ((1.1 if settled else 2.0) + 1e-9)
        else:
            assert name == best
            forced = before is None or before not in living or latency[before] > 2.0 * latency[best]
            assert forced or now - changed >= options.dwell_s
            changed = now
        before = name


def test_switching_costs_and_margin_hold_on_to_the_plan() -> None:
    world = Told()
    each = chooser(world, dwell_s=0.0, margin=0.0, switch_s=10.0)
    first, _ = each.choose(0.0, ALIVE)
    world.told = slower_link(20.0)
    assert each.choose(1.0, ALIVE) == (first, None)


def test_a_clock_set_back_does_not_hold_a_plan_for_ever() -> None:
    world = Told()
    each = chooser(world, dwell_s=5.0, far_better=1e9)
    each.choose(1000.0, ALIVE)
    world.told = slower_link(50.0)
    assert each.choose(10.0, ALIVE)[1] is not None


def test_patience_follows_what_is_predicted() -> None:
    each = chooser()
    slow = slower_link(50.0)
    for plan in each.pool.plans:
        for state in (planned.NOMINAL, slow):
            assert each.attempt_patience_s(plan.name, state) > plan.latency_s(state)
    assert each.attempt_patience_s("all-cloud", slow) > 3 * each.attempt_patience_s("all-cloud", planned.NOMINAL)


def test_rescue_in_time() -> None:
    each = chooser()
    state = replace(planned.NOMINAL, slowdown=(2.0, 1.0, 1.0))
    last_s = 10.0 - each.rescue_s(state)
    assert last_s + each.pool.plan("all-phone").latency_s(state) < 10.0
    assert last_s > 8.0
    rescue = each.outlook(state).rescue()
    assert rescue is not None
    assert rescue.name == "all-phone"
    other = each.outlook(replace(state, alive=(True, True, False))).rescue(["all-phone"])
    assert other is not None
    assert other.name == "all-edge"
    assert each.outlook(replace(state, alive=(True, False, False))).rescue(["all-phone"]) is None
    assert each.rescue_s(replace(state, alive=(True, False, False)), ["all-phone"]) == 0.0


def test_the_log_is_bounded() -> None:
    log = DecisionLog(most=3)
    for i in range(10):
        log.add(Decision(float(i), None, "a", "b", "start"))
    assert [each.at_s for each in log] == [7.0, 8.0, 9.0]
    assert (len(log), log.count) == (3, 10)


def probing(rate: float = 2e4) -> tuple[WorldModel, PlanChooser, ProbePolicy, float]:
    """The link to the edge was slow when it was last measured, so the phone works alone."""
    world = WorldModel(planned.TIERS, planned.NOMINAL)
    link, now, total = world.link("phone", "edge"), 0.0, 0
    for _ in range(20):
        link.pinged(now)
        link.ponged(0.1, now + 0.1)
        link.sent(int(rate), now)
        now, total = now + 1.1, total + int(rate)
        link.acked(total, 0, 0.0, now)
    each = PlanChooser(planned.usual(), world)
    assert each.choose(now, ALIVE)[0] == "all-phone"
    return world, each, ProbePolicy(each), now


def test_a_link_that_may_have_recovered_is_probed_within_the_budget() -> None:
    _, _, policy, now = probing()
    assert policy.due(now, ALIVE) == [], "it has just been measured"
    sent, started = [], now
    while now < started + 120:
        now += 0.25
        for wish in policy.due(now, ALIVE):
            assert (wish.source, wish.target) == ("phone", "edge")
            assert 16 << 10 <= wish.size_bytes <= 256 << 10
            sent.append((now, wish.size_bytes))
    assert sent
    assert all(b[0] - a[0] >= ProbeOptions().least_s - 1e-9 for a, b in pairwise(sent))
    earned, saved = 0.02 * 2e4 * 120, 2 * (16 << 10)
    assert sum(size for _, size in sent[:-1]) <= (earned + saved) * 1.2


def test_no_probe_where_it_would_not_help_or_the_link_is_busy_or_dead() -> None:
    world, each, policy, now = probing()
    assert policy.due(now + 60, (True, False, False)) == []
    world.link("phone", "edge").sent(1000, now + 60)
    assert policy.due(now + 60, ALIVE) == []
    fast = PlanChooser(planned.pool(planned.plan("all-phone", (0.001, 0.0, 0.0)), each.pool.plans[1]), world)
    fast.choose(now, ALIVE)
    assert ProbePolicy(fast).due(now + 60, ALIVE) == []


def test_a_tier_that_came_back_is_probed_and_past_a_dead_edge_the_cloud() -> None:
    _, _, policy, now = probing()
    policy.came_back("edge")
    assert [wish.target for wish in policy.due(now, ALIVE)] == ["edge"]
    policy.came_back("cloud")
    assert [wish.target for wish in policy.due(now + 0.1, (True, False, True))] == ["cloud"]


def test_a_shorter_round_trip_hints_at_a_better_link() -> None:
    world, _, policy, now = probing()
    link = world.link("phone", "edge")
    for _ in range(4):
        link.ponged(0.03, now)
        now += 0.2
    assert link.looks_better(now)
    assert [wish.target for wish in policy.due(now, ALIVE)] == ["edge"]
    assert policy.due(now + 0.1, ALIVE) == []


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.floats(0, 1e4), st.booleans(), st.booleans()), max_size=30))
def test_probes_are_sized_and_never_to_the_dead(steps: list[tuple[float, bool, bool]]) -> None:
    _, _, policy, now = probing()
    for later, edge, cloud in steps:
        alive = (True, edge, cloud)
        for wish in policy.due(now + later, alive):
            assert alive[planned.TIERS.index(wish.target)]
            assert 16 << 10 <= wish.size_bytes <= 256 << 10
            assert wish.reply_bytes == 0 or 16 << 10 <= wish.reply_bytes <= 256 << 10
