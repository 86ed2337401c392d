"""The simulated request: serial it takes what plans predict, overlapped never longer, and nothing is impossible."""

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from flagsplit.splitter.devices import Catalogue
from flagsplit.splitter.plan_maker import make_plan
from flagsplit.splitter.problem import Problem, make_problem
from flagsplit.splitter.simulator import simulate_request
from flagsplit.splitter.state import State
from flagsplit.splitter.testing import GraphBuilder, line, placements, random_problem
from flagsplit.splitter.timeline import Interval, Timeline, faults


def _cases(catalogue: Catalogue, seeds: range) -> Iterator[tuple[Problem, tuple[int, ...], State]]:
    """Random problems, eight placements of each, in random states."""
    for seed in seeds:
        rng = random.Random(seed)
        problem = random_problem(rng, catalogue)
        every = list(placements(problem))
        for placement in rng.sample(every, min(8, len(every))):
            slow = tuple(rng.choice([0.5, 1.0, 6.0]) for _ in problem.tiers)
            factors = [rng.choice([0.1, 1.0, 30.0]) for _ in problem.links]
            state = replace(problem.nominal, slowdown=slow).scaled(factors, rng.choice([0.0, 1.0, 10.0]))
            yield problem, placement, state


@pytest.mark.slow
@pytest.mark.parametrize("first_seed", range(0, 120, 30))
def test_serial_is_predicted_and_overlap_is_never_longer(catalogue: Catalogue, first_seed: int) -> None:
    cases = shorter = 0
    for problem, placement, state in _cases(catalogue, range(first_seed, first_seed + 30)):
        predicted = make_plan(problem, placement, "p").latency_s(state)
        serial = simulate_request(problem, placement, state, overlap=False)
        overlapped = simulate_request(problem, placement, state)
        assert serial.makespan_s == pytest.approx(predicted, rel=1e-9, abs=0)
        assert overlapped.makespan_s <= serial.makespan_s * (1 + 1e-12)
        assert not faults(problem, placement, serial)
        assert not faults(problem, placement, overlapped)
        assert len(overlapped.intervals) == len(serial.intervals)
        cases += 1
        shorter += overlapped.makespan_s < serial.makespan_s * 0.999
    assert cases >= 100
    assert shorter >= 10


@pytest.fixture
def fork(catalogue: Catalogue) -> Problem:
    """A block on the phone, whose result goes to the cloud while the phone computes the other branch."""
    graph = GraphBuilder("fork", x=0)
    stem = graph.add("stem", ["x"], 1_000_000, mflop=400)
    near = graph.add("near", [stem], 0, mflop=8000)
    far = graph.add("far", [stem], 0, mflop=400)
    tiers, links = line("generic-phone-cpu", "generic-phone-cpu", links=["80mbit/20ms"], catalogue=catalogue)
    return make_problem(graph.build(near, far), tiers, links)


def test_a_message_leaves_while_its_tier_computes(fork: Problem) -> None:
    timeline = simulate_request(fork, (0, 0, 1), fork.nominal)
    at = {each.what: each for each in timeline.intervals}
    assert at["near"].start_s == at["stem"].end_s == at["message 0"].start_s
    assert at["message 0"].end_s == pytest.approx(at["message 0"].start_s + 0.1)
    assert at["take up message 0"].start_s == at["message 0"].arrives_s == pytest.approx(at["message 0"].end_s + 0.01)
    assert at["far"].start_s == at["take up message 0"].end_s
    assert at["take up message 1"].start_s == at["near"].end_s, "a tier that is busy takes up messages later"
    assert timeline.makespan_s == at["take up message 1"].end_s


def test_impossible_timelines_are_seen(fork: Problem) -> None:
    placement = (0, 0, 1)
    sound = simulate_request(fork, placement, fork.nominal)

    def changed(what: str, **fields: object) -> list[str]:
        moved = tuple(replace(each, **fields) if each.what == what else each for each in sound.intervals)  # type: ignore[arg-type]
        return faults(fork, placement, Timeline(tuple(sorted(moved, key=_start)), sound.makespan_s))

    assert not faults(fork, placement, sound)
    assert any("near lacks stem_out on phone" in text for text in changed("near", start_s=0.0))
    assert any("phone does request and near at once" in text for text in changed("near", start_s=0.0))
    assert any("far lacks stem_out on cloud" in text for text in changed("far", start_s=0.0))
    assert any("message 0 lacks stem_out" in text for text in changed("message 0", start_s=0.0))
    assert any("far runs on ['phone']" in text for text in changed("far", resource="phone"))
    assert any("the answer lacks far_out" in text for text in changed("message 1", carries=("near_out",)))


def _start(each: Interval) -> float:
    return each.start_s
