"""The order of visits: a lift that stops where something is ready."""

import itertools

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from flagsplit.errors import InternalError
from flagsplit.flagir.visits import visits


@st.composite
def placed_dags(draw: st.DrawFn) -> tuple[list[int], list[list[int]], int]:
    tiers = draw(st.integers(1, 4))
    placement = draw(st.lists(st.integers(0, tiers - 1), max_size=14))
    edges = [
        sorted(draw(st.sets(st.integers(0, max(item - 1, 0)), max_size=min(item, 3)))) for item in range(len(placement))
    ]
    return placement, edges, tiers


@settings(derandomize=True, deadline=None, max_examples=200)
@given(placed_dags())
def test_every_item_once_and_after_what_it_needs(case: tuple[list[int], list[list[int]], int]) -> None:
    placement, predecessors, tiers = case
    done: set[int] = set()
    stops = visits(placement, predecessors, tiers)
    for stop in stops:
        assert stop.items
        assert list(stop.items) == sorted(stop.items)
        for item in stop.items:
            assert placement[item] == stop.tier
            assert item not in done
            assert done.issuperset(predecessors[item])
            done.add(item)
    assert done == set(range(len(placement)))
    assert all(one.tier != other.tier for one, other in itertools.pairwise(stops))


def test_a_visit_runs_all_that_is_ready() -> None:
    stops = visits([0, 1, 0, 1, 0], [[], [0], [], [2], [1, 3]], 2)
    assert [(stop.tier, stop.items) for stop in stops] == [(0, (0, 2)), (1, (1, 3)), (0, (4,))]


def test_nothing_to_run() -> None:
    assert visits([], [], 3) == ()


def test_a_cycle_is_a_bug_of_ours() -> None:
    with pytest.raises(InternalError, match="cycle"):
        visits([0, 0], [[1], [0]], 1)
