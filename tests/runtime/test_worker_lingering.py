"""Connections lost and found, transfers that resume, deadlines, rights, and the end of a worker, event by event."""

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import pytest
from tests.runtime.hired import CLOUD, OTHER, SESSION, Hired, S, T, failures, messages

from flagsplit.runtime.events import BeginDrain, Ended, Instruction, Leave, Ran, Run, Skip, Tick, Withdraw
from flagsplit.runtime.worker_machine import WorkerOptions
from flagsplit.transport.channel import Down, Received, Violated
from flagsplit.transport.messages import (
    VERSION,
    Bye,
    Cancel,
    Chunk,
    Done,
    Drain,
    Failed,
    Have,
    Hop,
    HopTiming,
    Message,
    Open,
    Ping,
    Reject,
    TensorHeader,
    Welcome,
)
from flagsplit.transport.tensors import chunks_of

_BIG = 20_000  # numbers: 160 kB, enough that a transfer is resumed


def big(hired: Hired, **change: object) -> Open:
    opened = replace(hired.opened(), tensors=(TensorHeader("v0", "int64", (_BIG,), 8 * _BIG),))
    return replace(opened, **change)  # type: ignore[arg-type]


def chunks(opened: Open, offset: int = 0) -> list[Chunk]:
    return list(chunks_of(opened, [np.arange(_BIG)], 16_000, (offset,)))


def whole(opened: Open, rest: Iterable[Chunk]) -> list[Message]:
    return [opened, *rest]


def runs(said: list[Instruction]) -> list[Run]:
    return [one for one in said if isinstance(one, Run)]


# --- lost and found


def test_what_a_lost_session_wanted_rests_but_stays() -> None:
    hired = Hired()
    hired.hello()
    hired.reach_cloud()
    (run,) = runs(hired.ask(hired.opened()))
    said = hired.tell(Down(SESSION, "reset"))
    assert Skip(run.token) in said
    assert Withdraw(SESSION, S, 1) in said
    assert not hired.machine.is_idle()
    assert not messages(hired.finish()), "the result is kept and not sent"
    hired.hello()
    said = hired.ask(hired.opened(attempt=2))
    assert not runs(said)
    assert [type(one) for one in messages(said, CLOUD)] == [Open, Chunk]
    assert hired.machine.stats().returned == 1
    hired.say(Done(S, 1))
    assert hired.machine.is_idle()


def test_a_session_that_stays_away_is_forgotten() -> None:
    hired = Hired()
    hired.hello()
    hired.ask(hired.opened())
    hired.tell(Down(SESSION, "reset"))
    hired.tell(Tick(), after_s=9.9)
    assert hired.machine.stats().lingering == 1
    hired.tell(Tick(), after_s=0.2)
    assert hired.machine.is_idle()
    assert hired.machine.stats().held_bytes == 0


@pytest.mark.parametrize("event", [Received(SESSION, Bye("over")), Violated(SESSION, "nonsense")])
def test_who_leaves_on_purpose_or_breaks_the_rules_leaves_nothing(event: object) -> None:
    hired = Hired()
    hired.hello()
    hired.ask(hired.opened())
    hired.tell(event)
    assert hired.machine.is_idle()


def test_results_that_come_from_beyond_meanwhile_are_kept_for_the_next_attempt() -> None:
    hired = Hired()
    hired.hello()
    hired.reach_cloud()
    hired.ask(hired.opened())
    hired.finish()
    hired.tell(Down(SESSION, "reset"))
    back = replace(
        hired.opened(), hop=3, tensors=(TensorHeader("v2", "int64", (5,), 40),), trace=(_timing(), _timing(), _timing())
    )
    for message in whole(back, chunks_of(back, [np.arange(5)])):
        assert not messages(hired.say(message, CLOUD))
    hired.hello()
    route = (*hired.opened().route[:1], Hop("edge", "1", ("v2",)), Hop("phone", "3"))
    said = hired.ask(replace(hired.opened(attempt=2), route=route))
    assert not runs(said), "nothing runs again"
    sent = messages(said, SESSION)
    assert [header.name for header in sent[0].tensors] == ["v2"]  # type: ignore[union-attr]


def _timing() -> HopTiming:
    return HopTiming("phone", "0", 1, 1, 0, 40)


def test_what_another_tier_waits_for_goes_on_while_the_session_is_away() -> None:
    hired = Hired()
    hired.hello()
    hired.hello(T, role="worker")
    hired.reach_cloud()
    for message in whole(hired.opened(), chunks_of(hired.opened(), [np.arange(5)])):
        hired.say(message, OTHER)
    assert not any(isinstance(said, Skip) for said in hired.tell(Down(SESSION, "reset")))
    assert [type(one) for one in messages(hired.finish(), CLOUD)] == [Open, Chunk]
    for _ in range(11):
        hired.say(Ping(0, 0), OTHER)
        hired.tell(Tick(), after_s=1.0)
    assert hired.machine.is_idle(), "the session did not come back to say that it is done"


def test_a_worker_before_this_one_that_is_lost_takes_nothing_with_it_if_the_session_is_here() -> None:
    hired = Hired()
    hired.hello()
    hired.hello(T, role="worker")
    for message in whole(hired.opened(), chunks_of(hired.opened(), [np.arange(5)])):
        hired.say(message, OTHER)
    assert not any(isinstance(said, Skip) for said in hired.tell(Down(OTHER, "reset")))
    assert hired.machine.stats().lingering == 0


def test_who_is_away_makes_room_the_oldest_first() -> None:
    hired = Hired(WorkerOptions(max_flights=3, max_flights_per_client=3))
    hired.hello()
    hired.ask(hired.opened(1))
    hired.ask(hired.opened(2))
    hired.tell(Down(SESSION, "reset"))
    hired.hello(T)
    for rid in (7, 8):
        assert runs(hired.ask(hired.opened(rid, sid=T), T))
    assert {key for key in hired.machine.flights if key[0] == S} == {(S, 2)}
    assert runs(hired.ask(hired.opened(9, sid=T), T))
    assert failures(hired.ask(hired.opened(10, sid=T), T)) == [(OTHER, "edge", "busy")]


# --- resuming


def test_an_announcement_that_resumes_is_answered_with_what_is_here() -> None:
    hired = Hired()
    hired.hello()
    first = big(hired)
    for message in whole(first, chunks(first)[:4]):
        hired.say(message)
    hired.tell(Down(SESSION, "reset"))
    hired.hello()
    again = big(hired, attempt=2, resume=True)
    assert messages(hired.say(again)) == [Have(S, 1, 2, 1, (64_000,))]
    for chunk in chunks(again, 64_000):
        said = hired.say(chunk)
    (run,) = runs(said)
    assert np.array_equal(run.inputs["v0"], np.arange(_BIG))
    assert messages(hired.say(big(hired, attempt=3, resume=True))) == [], "all is here"


@pytest.mark.parametrize("features", [(), ("resume",)])
def test_a_later_attempt_waits_for_a_have_where_the_next_tier_can_say_one(features: tuple[str, ...]) -> None:
    hired = Hired()
    hired.hello()
    hired.reach_cloud()
    hired.machine.peers.beyond[CLOUD].features = frozenset(features)
    opened = big(hired, attempt=2)
    for message in whole(opened, chunks(opened)):
        said = hired.say(message)
    (run,) = runs(said)
    sent = messages(hired.tell(_ran(run)), CLOUD)
    if not features:
        assert [type(one) for one in sent] == [Open, Chunk]
        return
    (asked,) = sent
    assert isinstance(asked, Open)
    assert asked.resume
    assert not messages(hired.say(Have(S, 1, 2, 2, (40,)), SESSION), CLOUD), "it is not the session's to say"
    rest = messages(hired.say(Have(S, 1, 2, 2, (40,)), CLOUD), CLOUD)
    assert [one.offset for one in rest if isinstance(one, Chunk)] == [40]


def _ran(run: Run) -> Ran:
    return Ran(run.token, {"v1": np.arange(_BIG)})


# --- deadlines


def test_a_request_that_is_late_is_not_run() -> None:
    hired = Hired()
    hired.hello()
    said = hired.ask(hired.opened(deadline_ms=0))
    assert failures(said) == [(SESSION, "edge", "deadline")]
    assert not runs(said)
    opened = hired.opened(2, deadline_ms=1000)
    hired.say(opened)
    (chunk,) = chunks_of(opened, [np.arange(5)])
    assert failures(hired.tell(Received(SESSION, chunk), after_s=1.0)) == [(SESSION, "edge", "deadline")]
    assert hired.machine.is_idle()


def test_a_request_that_is_late_is_not_passed_on() -> None:
    hired = Hired()
    hired.hello()
    hired.reach_cloud()
    hired.ask(hired.opened(deadline_ms=1000))
    hired.now += 1.0
    said = hired.finish()
    assert failures(said) == [(SESSION, "edge", "deadline")]
    assert not messages(said, CLOUD)
    assert hired.machine.stats().held_bytes == 0


def test_a_deadline_that_passes_while_a_request_waits_frees_it() -> None:
    hired = Hired()
    hired.hello()
    (run,) = runs(hired.ask(hired.opened(deadline_ms=1000)))
    assert run.deadline == hired.now + 1.0
    said = hired.tell(Tick(), after_s=1.1)
    assert failures(said) == [(SESSION, "edge", "deadline")]
    assert Skip(run.token) in said
    assert hired.ask(hired.opened(deadline_ms=1000)) == [], "it is over, whatever comes late"


# --- the end


def test_a_drained_worker_finishes_what_it_has_and_ends() -> None:
    hired = Hired()
    hired.hello()
    hired.reach_cloud()
    hired.ask(hired.opened())
    assert messages(hired.tell(BeginDrain("new version"))) == [Drain("new version")]
    assert hired.machine.readiness() == (False, "new version")
    (refused,) = messages(hired.hello(T))
    assert isinstance(refused, Reject)
    assert refused.code == "draining"
    (failed,) = messages(hired.say(hired.opened(2)))
    assert isinstance(failed, Failed)
    assert (failed.code, failed.retryable) == ("draining", True)
    said = hired.ask(hired.opened(attempt=2))
    assert not failures(said), "a later attempt of what is here goes on"
    assert hired.finish()
    assert hired.say(Done(S, 1))[-1] == Ended("new version")
    assert [type(one) for one in messages(hired.tell(Leave()))] == [Bye, Bye]


def test_a_drain_ends_at_once_if_nothing_is_here_and_in_the_end_in_any_case() -> None:
    hired = Hired(WorkerOptions(drain_s=5.0))
    hired.hello()
    assert hired.tell(BeginDrain("bye"))[-1] == Ended("bye")
    hired = Hired(WorkerOptions(drain_s=2.0))
    hired.hello()
    hired.ask(hired.opened())
    hired.tell(BeginDrain("bye"))
    assert not any(isinstance(one, Ended) for one in hired.tell(Tick(), after_s=1.9))
    assert hired.tell(Tick(), after_s=0.2)[-1] == Ended("bye, giving up 1 requests")
    assert not any(isinstance(one, Ended) for one in hired.tell(Tick(), after_s=1.0))


def test_nobody_waits_in_a_drain_for_who_is_away() -> None:
    hired = Hired()
    hired.hello()
    hired.ask(hired.opened())
    hired.tell(Down(SESSION, "reset"))
    assert isinstance(hired.tell(BeginDrain("bye"))[-1], Ended)
    hired = Hired()
    hired.hello()
    hired.ask(hired.opened())
    hired.tell(BeginDrain("bye"))
    assert isinstance(hired.tell(Down(SESSION, "reset"))[-1], Ended)


# --- who may say what


OTHERS_WORDS: dict[str, Callable[[Hired], object]] = {
    "cancel": lambda _: Cancel(S, 1, 9),
    "done": lambda _: Done(S, 1),
    "failed": lambda _: Failed(S, 1, 1, "edge", "busy", "so"),
    "have": lambda _: Have(S, 1, 1, 2, (0,)),
    "a later attempt": lambda hired: hired.opened(attempt=5),
}


@pytest.mark.parametrize("role", ["session", "worker"])
@pytest.mark.parametrize("word", OTHERS_WORDS)
def test_nobody_speaks_for_another(word: str, role: str) -> None:
    if (word, role) == ("a later attempt", "worker"):
        return  # that is what workers are for
    hired = Hired()
    hired.hello()
    hired.reach_cloud()
    hired.ask(hired.opened())
    hired.hello(T, role=role)
    said = hired.say(OTHERS_WORDS[word](hired), OTHER)  # type: ignore[arg-type]
    assert not messages(said, SESSION)
    assert not messages(said, CLOUD)
    assert hired.machine.flights[(S, 1)].attempt == 1
    assert [type(one) for one in messages(hired.finish(), CLOUD)] == [Open, Chunk]


def test_a_chunk_counts_only_from_who_announced_it() -> None:
    hired = Hired()
    hired.hello()
    opened = hired.opened()
    hired.say(opened)
    hired.hello(T, role="worker")
    (chunk,) = chunks_of(opened, [np.arange(5)])
    assert hired.say(chunk, OTHER) == []
    assert runs(hired.say(chunk))


def test_a_tier_beyond_cannot_begin_attempts() -> None:
    hired = Hired()
    hired.hello()
    hired.reach_cloud()
    hired.ask(hired.opened())
    hired.say(hired.opened(attempt=5), CLOUD)
    hired.say(hired.opened(7), CLOUD)
    assert set(hired.machine.flights) == {(S, 1)}
    assert hired.machine.flights[(S, 1)].attempt == 1


def test_a_worker_may_end_what_came_by_it() -> None:
    hired = Hired()
    hired.hello(T, role="worker")
    hired.say(hired.opened(), OTHER)
    hired.say(Cancel(S, 1, 1), OTHER)
    assert hired.machine.is_idle()


def test_the_version_agreed_is_the_newest_that_both_speak() -> None:
    hired = Hired()
    for newest, agreed in (((1, 0), (1, 0)), ((1, 1), (1, 1)), ((1, 2), VERSION), ((2, 0), VERSION)):
        (welcome,) = messages(hired.hello(version_min=(1, 0), version_max=newest))
        assert isinstance(welcome, Welcome)
        assert (welcome.version, welcome.slowdown_permille) == (agreed, 1000)
