"""The order in which clients compute, against a model of what is fair."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flagsplit.runtime.events import Run
from flagsplit.runtime.fair_queue import FairQueue, Job


def run_of(token: int, client: str = "a", segment: str = "s", deadline: float = math.inf, bundle: str = "") -> Run:
    return Run(token, segment, {}, bundle, client, deadline)


@dataclass(frozen=True)
class Asked:
    """A job of the model: who asks when, and what it takes."""

    at_s: float
    client: str
    takes_s: float


@dataclass(frozen=True)
class Ended:
    """What became of it."""

    asked: Asked
    began_s: float
    ended_s: float


def serve(jobs: Sequence[Asked]) -> list[Ended]:
    """One engine that takes what the queue says, in virtual time; each client's segment is its own."""
    queue, now, ended = FairQueue(), 0.0, list[Ended]()
    coming = sorted(enumerate(jobs), key=lambda pair: pair[1].at_s)
    while coming or len(queue):
        while coming and coming[0][1].at_s <= now:
            token, asked = coming.pop(0)
            queue.push(run_of(token, asked.client, asked.client), asked.at_s)
        job = queue.choose(now)
        if job is None:
            assert not len(queue), "work conserving"
            now = coming[0][1].at_s
            continue
        queue.take(job, now)
        asked, began_s, end_s = jobs[job.run.token], now, now + jobs[job.run.token].takes_s
        while coming and coming[0][1].at_s < end_s:
            token, other = coming.pop(0)
            queue.push(run_of(token, other.client, other.client), other.at_s)
        now = end_s
        queue.finish(job, asked.takes_s)
        ended.append(Ended(asked, began_s, now))
    return ended


ASKED = st.builds(
    Asked, st.integers(0, 40).map(float), st.sampled_from("abcd"), st.sampled_from([0.25, 0.5, 1.0, 2.0, 4.0])
)
BUSY = st.lists(
    st.tuples(st.sampled_from([0.25, 0.5, 1.0, 2.0]), st.integers(1, 30)), min_size=1, max_size=4, unique=True
)


@settings(max_examples=40, deadline=None)
@given(st.lists(ASKED, max_size=60))
def test_every_job_runs_once_and_nothing_idles_while_work_waits(jobs: list[Asked]) -> None:
    ended = serve(jobs)
    assert sorted(map(id, jobs)) == sorted(id(each.asked) for each in ended)
    free = 0.0
    for each in ended:
        first = min(job.asked.at_s for job in ended if job.began_s >= each.began_s)
        assert each.began_s == max(free, first)
        free = each.ended_s


@settings(max_examples=40, deadline=None)
@given(st.lists(ASKED, max_size=60))
def test_a_clients_own_jobs_run_in_their_order(jobs: list[Asked]) -> None:
    for name in "abcd":
        asked = [each.asked.at_s for each in serve(jobs) if each.asked.client == name]
        assert asked == sorted(asked)


@settings(max_examples=40, deadline=None)
@given(BUSY)
def test_clients_that_always_wait_get_the_same_time_but_for_one_job(shapes: list[tuple[float, int]]) -> None:
    """Jobs of one client take the same, those of different clients do not."""
    jobs = [Asked(0.0, f"c{at}", takes_s) for at, (takes_s, number) in enumerate(shapes) for _ in range(number)]
    used = {f"c{at}": 0.0 for at in range(len(shapes))}
    left = {f"c{at}": number for at, (_, number) in enumerate(shapes)}
    longest = max(takes_s for takes_s, _ in shapes)
    for each in serve(jobs):
        used[each.asked.client] += each.asked.takes_s
        left[each.asked.client] -= 1
        if not all(left.values()):
            return
        assert max(used.values()) - min(used.values()) <= longest


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(20, 60), st.sampled_from([0.25, 1.0, 4.0]), st.integers(1, 60))
def test_who_comes_waits_for_one_job_of_each_other_client(others: int, each: int, takes_s: float, at: int) -> None:
    jobs = [Asked(0.0, f"busy{other}", takes_s) for other in range(others) for _ in range(each)]
    jobs.append(Asked(min(at / 4, others * each * takes_s), "new", 0.125))
    (new,) = (ended for ended in serve(jobs) if ended.asked.client == "new")
    assert new.began_s - new.asked.at_s <= takes_s * (1 + others)


@settings(max_examples=40, deadline=None)
@given(st.lists(ASKED, min_size=1, max_size=60), st.integers(0, 40))
def test_no_wait_is_longer_than_what_the_others_may_use(jobs: list[Asked], at: int) -> None:
    """A client that asks once waits for as much of each other as it may run ahead: its expectation and one job."""
    jobs = [*jobs, Asked(float(at), "once", 1.0)]
    (once,) = (ended for ended in serve(jobs) if ended.asked.client == "once")
    others = {job.client for job in jobs} - {"once"}
    longest = max(job.takes_s for job in jobs)
    assert once.began_s - once.asked.at_s <= longest * (1 + 2 * len(others))


def test_a_client_with_long_jobs_does_not_come_back_as_if_it_had_used_nothing() -> None:
    """It asks for the next when it has its answer; the other always waits. Both get half."""
    queue = FairQueue()
    takes = {"long": 10.0, "short": 1.0}
    used = {"long": 0.0, "short": 0.0}
    for token in range(200):
        queue.push(run_of(token, "short", "short"), 0.0)
    token, now = 200, 0.0
    queue.push(run_of(token, "long", "long"), now)
    while used["short"] < 100:
        job = queue.choose(now)
        assert job is not None
        queue.take(job, now)
        name = job.run.client
        now += takes[name]
        queue.finish(job, takes[name])
        used[name] += takes[name]
        if name == "long":
            token += 1
            queue.push(run_of(token, "long", "long"), now)
    assert abs(used["long"] - used["short"]) <= 10.0


def drain(queue: FairQueue, now: float = 0.0) -> list[int]:
    """Tokens in the order in which they would run if nothing took any time."""
    found = []
    while (job := queue.choose(now)) is not None:
        queue.take(job, now)
        found.append(job.run.token)
        queue.finish(job, job.expected_s)
    return found


def taught(takes_s: float) -> FairQueue:
    """A queue that knows what segment s takes."""
    queue = FairQueue()
    queue.push(run_of(999), 0.0)
    job = queue.choose(0.0)
    assert job is not None
    queue.take(job, 0.0)
    queue.finish(job, takes_s)
    return queue


def test_the_earliest_deadline_goes_first_only_where_one_would_be_missed() -> None:
    loose, tight = taught(1.0), taught(1.0)
    for token, deadline in enumerate((9.0, 8.0, 7.0)):
        loose.push(run_of(token, deadline=deadline), 0.0)
        tight.push(run_of(token, deadline=deadline - 5.5), 0.0)
    assert drain(loose) == [0, 1, 2]
    job = tight.choose(0.0)
    assert job is not None
    assert job.run.token == 2


def test_what_cannot_be_kept_any_more_does_not_make_others_miss_theirs() -> None:
    queue = taught(1.0)
    queue.push(run_of(0, deadline=0.5), 0.0)
    queue.push(run_of(1, deadline=1.5), 0.0)
    job = queue.choose(0.0)
    assert job is not None
    assert job.run.token == 1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.5, 20), min_size=1, max_size=8))
def test_deadlines_of_equal_jobs_are_kept_where_that_is_possible_at_all(deadlines: list[float]) -> None:
    """Earliest deadline first keeps all that can be kept together; jobs take one second."""
    queue = taught(1.0)
    for token, deadline in enumerate(deadlines):
        queue.push(run_of(token, deadline=deadline), 0.0)
    possible = all(at + 1 <= deadline for at, deadline in enumerate(sorted(deadlines)))
    now, kept = 0.0, 0
    while (job := queue.choose(now)) is not None:
        queue.take(job, now)
        now += 1.0
        queue.finish(job, 1.0)
        kept += now <= job.run.deadline
    assert kept == len(deadlines) or not possible


def test_what_is_past_its_deadline_is_taken_out() -> None:
    queue = FairQueue()
    for token, deadline in enumerate((5.0, 1.0, 3.0, math.inf)):
        queue.push(run_of(token, client=str(token % 2), deadline=deadline), 0.0)
    assert queue.expired(1.0) == []
    assert [run.token for run in queue.expired(3.5)] == [2, 1]
    assert len(queue) == 2
    assert drain(queue) == [0, 3]
    assert len(queue) == 0


def test_skipping_by_token_and_by_bundle() -> None:
    queue = FairQueue()
    for token in range(4):
        queue.push(run_of(token, bundle="old" if token % 2 else "new"), 0.0)
    assert [run.token for run in queue.skip(2)] == [2]
    assert [run.token for run in queue.skip_bundle("old")] == [1, 3]
    assert queue.skip(7) == []
    assert drain(queue) == [0]
    assert queue.waiting_for(("new", "s")) == 0


def test_jobs_that_do_not_fit_are_passed_over() -> None:
    queue = FairQueue()
    queue.push(run_of(0, "a", "absent"), 0.0)
    queue.push(run_of(1, "a", "there"), 0.0)
    queue.push(run_of(2, "b", "absent"), 0.0)

    def fits(job: Job) -> bool:
        return job.run.segment == "there"

    job = queue.choose(0.0, fits)
    assert job is not None
    assert job.run.token == 1
    queue.take(job, 0.0)
    assert queue.choose(0.0, fits) is None
    assert queue.waiting_for(("", "absent")) == 2


def test_the_expected_wait_of_a_new_client_and_of_one_with_a_backlog() -> None:
    queue = taught(2.0)
    assert queue.expected_wait_s(0.0) == 0
    for token in range(5):
        queue.push(run_of(token, "busy"), 0.0)
    queue.push(run_of(9, "other"), 0.0)
    assert queue.expected_wait_s(0.0) == pytest.approx(2 + 2)
    assert queue.expected_wait_s(0.0, "busy") == pytest.approx(10 + 2)
    job = queue.choose(0.0)
    assert job is not None
    queue.take(job, 0.0)
    assert queue.expected_wait_s(0.5) == pytest.approx(1.5 + 2 + 2)
    assert queue.expected_wait_s(9.0) == pytest.approx(0 + 2 + 2)


def test_clients_that_left_are_forgotten() -> None:
    queue = FairQueue()
    for token in range(1000):
        queue.push(run_of(token, f"c{token}"), 0.0)
        job = queue.choose(0.0)
        assert job is not None
        queue.take(job, 0.0)
        queue.finish(job, 1.0)
    assert not queue._clients
