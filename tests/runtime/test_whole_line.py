"""A session and its workers on one line: single events, each on purpose, and what the application sees of them."""

import pytest
from tests.runtime.lone import ALONE, BY_CLOUD, GRAPH, TRIP, X, facts
from tests.runtime.worlds import Numbers, same

from flagsplit.errors import InputError, PeerError, UnavailableError
from flagsplit.runtime.events import Deliver, Fail
from flagsplit.runtime.session_machine import SessionOptions
from flagsplit.runtime.testing import Cluster
from flagsplit.runtime.worker_machine import WorkerOptions
from flagsplit.transport.messages import BUNDLES, RESUME, Message


def cluster(seed: int = 0, **placements: tuple[int, ...]) -> Cluster:
    found = Cluster(facts(**placements), Numbers(GRAPH), seed=seed, session=SessionOptions(attempt_s=4.0))
    found.run(2.0)
    assert {tier: change.state for tier, change in found.tiers.items()} == {"edge": "up", "cloud": "up"}
    return found


def answered(found: Cluster, rid: int, plan: str = "") -> Deliver:
    answer = found.answers[rid]
    assert isinstance(answer, Deliver), "\n".join(found.story)
    assert same(answer.outputs, GRAPH.answer(X["x"]))
    assert plan in ("", answer.report.plan)
    return answer


def failed(found: Cluster, rid: int) -> Fail:
    answer = found.answers[rid]
    assert isinstance(answer, Fail)
    return answer


def test_the_report_tells_the_trip() -> None:
    found = cluster()
    rid = found.submit(X)
    found.run(5.0)
    report = answered(found, rid, "trip").report
    assert report.attempts == 1
    assert [(tier.tier, tier.segments) for tier in report.tiers] == [
        ("phone", ("0", "3")),
        ("edge", ("1",)),
        ("cloud", ("2",)),
    ]
    size = X["x"].nbytes
    assert [(link.source, link.target, link.bytes, link.messages) for link in report.links] == [
        ("phone", "edge", size, 1),
        ("edge", "cloud", size, 1),
        ("cloud", "edge", size, 1),
        ("edge", "phone", size, 1),
    ]


# Chunks of so little are what a peer without the feature "inline" gets.
OLDER = WorkerOptions(features=(RESUME, BUNDLES))
KINDS = ("Hello", "Welcome", "Open", "Chunk", "Done", "Ping", "Pong")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("victim", ["edge", "cloud"])
def test_a_worker_may_die_at_any_message(kind: str, victim: str) -> None:
    for nth in range(5):
        found = Cluster(facts(), Numbers(GRAPH), seed=nth, worker=OLDER if kind == "Chunk" else None)
        seen = 0

        def watch(source: str, target: str, message: Message, found: Cluster = found, nth: int = nth) -> None:
            nonlocal seen
            if type(message).__name__ == kind and victim in (source, target):
                seen += 1
                if seen == nth + 1:
                    found.kill(victim)

        found.watch = watch
        found.run(1.5)
        rids = [found.submit(X) for _ in range(3)]
        found.run(30.0)
        for rid in rids:
            answered(found, rid)
        assert seen > nth or (nth > 0 and kind in ("Hello", "Welcome", "Done"))


def test_a_tier_that_returns_is_used_again() -> None:
    found = cluster()
    found.kill("edge")
    found.run(2.0)
    one = found.submit(X)
    found.run(5.0)
    answered(found, one, "by-cloud")
    found.start("edge")
    found.run(5.0)
    two = found.submit(X)
    found.run(5.0)
    assert answered(found, two, "trip").report.attempts == 1


def test_a_wanted_plan_is_taken_while_its_tiers_are_there() -> None:
    found = cluster()
    one = found.submit(X, plan="by-cloud")
    found.run(5.0)
    answered(found, one, "by-cloud")
    found.kill("cloud")
    found.run(2.0)
    two = found.submit(X, plan="by-cloud")
    found.run(5.0)
    answered(found, two, "alone")


def test_a_computation_that_fails_is_tried_elsewhere() -> None:
    numbers = Numbers(GRAPH)
    found = Cluster(facts(), numbers)
    numbers.broken = {"edge"}
    found.run(2.0)
    rid = found.submit(X)
    found.run(5.0)
    answered(found, rid, "by-cloud")


@pytest.mark.parametrize("broken", [{"edge", "cloud"}, {"phone"}, {"phone", "edge", "cloud"}])
def test_one_that_fails_everywhere_is_the_inputs_fault(broken: set[str]) -> None:
    numbers = Numbers(GRAPH)
    found = Cluster(facts(trip=TRIP, by_cloud=BY_CLOUD), numbers)
    numbers.broken = broken
    found.run(2.0)
    rid = found.submit(X)
    found.run(10.0)
    error = failed(found, rid).error
    assert isinstance(error, InputError)
    assert "divide by zero" in str(error)
    assert found.worker("edge").is_idle()
    assert found.worker("cloud").is_idle()


def test_a_worker_that_cannot_reach_the_next_says_so() -> None:
    found = cluster()
    found.partition("edge", "cloud")
    rid = found.submit(X)
    found.run(12.0)
    assert answered(found, rid).report.attempts > 1
    found.heal("edge", "cloud")
    found.run(5.0)
    rid = found.submit(X)
    found.run(5.0)
    answered(found, rid, "trip")


def test_a_stuck_engine_is_passed_by_before_the_deadline() -> None:
    found = cluster()
    found.slow("cloud", 1e6)
    rid = found.submit(X, deadline_s=3.0)
    found.run(4.0)
    answered(found, rid, "alone")


def test_a_slow_first_tier_runs_a_segment_once() -> None:
    numbers = Numbers(GRAPH)
    found = Cluster(facts(alone=ALONE), numbers, session=SessionOptions(attempt_s=0.1, max_attempts=3))
    found.slow("phone", 1000.0)
    rid = found.submit(X)
    found.run(60.0)
    answered(found, rid, "alone")
    assert numbers.runs == [("phone", "0.1.2.3")]


def test_a_worker_asked_again_does_not_run_twice() -> None:
    numbers = Numbers(GRAPH)
    found = Cluster(facts(trip=TRIP), numbers, session=SessionOptions(attempt_s=0.5, max_attempts=1000))
    found.run(2.0)
    found.slow("edge", 300.0)
    rid = found.submit(X, 1000.0)
    found.run(900.0)
    assert answered(found, rid).report.attempts > 1
    assert numbers.runs.count(("phone", "0")) == 1


def test_no_worker_is_bothered_about_a_request_that_was_given_up() -> None:
    found = cluster()
    found.slow("edge", 1000.0)
    rids = [found.submit(X) for _ in range(12)]
    found.run(0.2)
    for rid in rids:
        found.abandon(rid)
    found.run(1.0)
    assert found.worker("edge").is_idle()
    assert found.worker("edge").waiting_runs <= 1
    assert not found.session.machine.flights
    assert all(isinstance(failed(found, rid).error, PeerError) for rid in found.answers)


def test_requests_wait_for_a_tier_until_their_deadline() -> None:
    found = cluster(trip=TRIP)
    found.kill("edge")
    found.run(2.0)
    short, long = found.submit(X, 5.0), found.submit(X, 50.0)
    found.run(6.0)
    error = failed(found, short).error
    assert isinstance(error, UnavailableError)
    assert "edge" in str(error)
    assert long not in found.answers
    found.start("edge")
    found.run(5.0)
    answered(found, long, "trip")


def test_a_run_that_ends_while_its_request_waits_for_a_tier_is_kept() -> None:
    numbers = Numbers(GRAPH)
    found = Cluster(facts(trip=TRIP), numbers)
    found.run(2.0)
    found.slow("phone", 100.0)
    rid = found.submit(X)
    found.run(0.01)
    found.kill("edge")
    found.run(20.0)
    assert rid not in found.answers
    found.start("edge")
    found.slow("phone", 1.0)
    found.run(10.0)
    answered(found, rid, "trip")
    assert numbers.runs.count(("phone", "0")) == 1
