"""Routes against a simulation of their own."""

import random
from itertools import pairwise

import pytest
from tests.runtime.worlds import random_graph

from flagsplit.runtime.itinerary import PlannedHop, PlannedStep, itinerary


def _walk(
    steps: tuple[PlannedStep, ...],
    outputs: tuple[str, ...],
    alive: set[int],
    hops: tuple[PlannedHop, ...],
    apart: set[frozenset[int]] = frozenset(),  # type: ignore[assignment]
) -> None:
    """Follow the hops with a set of values per tier, and check every promise on the way."""
    assert hops[0].tier == hops[-1].tier == 0
    assert [hop.segment for hop in hops if hop.segment] == [step.segment for step in steps]
    by_id = {step.segment: step for step in steps}
    held: dict[int, set[str]] = {0: {"x"}}
    crossed: set[tuple[str, int, int]] = set()
    for at, hop in enumerate(hops):
        here = held.setdefault(hop.tier, set())
        if hop.segment:
            step = by_id[hop.segment]
            assert step.tier == hop.tier
            assert here >= set(step.inputs), f"hop {at} lacks {set(step.inputs) - here}"
            here |= set(step.outputs)
        else:
            assert hop.tier in alive | {0}
        assert here >= set(hop.carry)
        assert len(set(hop.carry)) == len(hop.carry)
        if at + 1 < len(hops):
            following = hops[at + 1].tier
            assert following != hop.tier or at == 0
            for name in hop.carry:
                assert (name, hop.tier, following) not in crossed, f"{name} crosses {hop.tier} → {following} twice"
                crossed.add((name, hop.tier, following))
            held.setdefault(following, set()).update(hop.carry)
        else:
            assert hop.carry == ()
    assert held[0] >= set(outputs)
    for one, other in pairwise(hops):
        assert frozenset((one.tier, other.tier)) not in apart
        if apart:
            continue
        low, high = sorted((one.tier, other.tier))
        assert not set(range(low + 1, high)) & alive, "a tier that is there is not passed by"


@pytest.mark.parametrize("block", range(8))
def test_any_plan_over_any_tiers(block: int) -> None:
    for seed in range(block * 50, block * 50 + 50):
        rng = random.Random(seed)
        count = rng.randint(2, 4)
        graph = random_graph(rng, rng.randint(1, 10))
        used = [0, *rng.sample(range(1, count), rng.randint(0, count - 1))]
        placement = [rng.choice(used) for _ in graph.reads]
        steps = graph.steps(placement, count)
        alive = set(placement) | {tier for tier in range(count) if rng.random() < 0.5}
        hops = itinerary(steps, {"x"}, graph.outputs, alive)
        _walk(steps, graph.outputs, alive, hops)
        if set(placement) == {0}:
            assert hops == (PlannedHop(0, steps[0].segment, ()),)


@pytest.mark.parametrize("block", range(4))
def test_any_plan_where_some_tiers_cannot_reach_each_other(block: int) -> None:
    for seed in range(block * 50, block * 50 + 50):
        rng = random.Random(seed)
        count = rng.randint(3, 5)
        graph = random_graph(rng, rng.randint(1, 10))
        placement = [rng.randrange(count) for _ in graph.reads]
        steps = graph.steps(placement, count)
        pairs = [frozenset((i, j)) for i in range(1, count) for j in range(i + 1, count)]
        apart = set(rng.sample(pairs, rng.randint(1, len(pairs))))
        hops = itinerary(steps, {"x"}, graph.outputs, range(count), apart)
        _walk(steps, graph.outputs, set(range(count)), hops, apart)
        relays = [at for at, hop in enumerate(hops) if hop.tier and not hop.segment]
        assert all((hops[at - 1].tier, hops[at + 1].tier) != (0, 0) for at in relays), "a relay from home to home"


def test_a_dead_tier_between_is_passed_by() -> None:
    steps = (PlannedStep(0, "a", ("x",), ("y",)), PlannedStep(2, "b", ("y",), ("z",)))
    assert [hop.tier for hop in itinerary(steps, {"x"}, ["z"], {0, 1, 2})] == [0, 1, 2, 1, 0]
    assert [hop.tier for hop in itinerary(steps, {"x"}, ["z"], {0, 2})] == [0, 2, 0]


def test_an_input_that_is_an_output_stays_at_home() -> None:
    hops = itinerary((PlannedStep(1, "a", ("x",), ("y",)),), {"x"}, ["x", "y"], {0, 1})
    assert hops == (PlannedHop(0, "", ("x",)), PlannedHop(1, "a", ("y",)), PlannedHop(0, "", ()))
