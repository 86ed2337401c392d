"""What each client may hold at a worker, who is paused, and what a worker tells of itself."""

from dataclasses import replace

import pytest
from tests.runtime.hired import CLOUD, OTHER, SESSION, Hired, S, T, failures, messages

from flagsplit.runtime.events import Instruction, Pause, Run, Tick
from flagsplit.runtime.testing import served_of
from flagsplit.runtime.worker_machine import WorkerHooks, WorkerMachine, WorkerOptions
from flagsplit.transport.channel import Acked, Down, Received, Up
from flagsplit.transport.messages import Done, Failed, Hello, Ping, Pong, Probe, TensorHeader, Welcome


def pauses(said: list[Instruction]) -> list[Pause]:
    return [one for one in said if isinstance(one, Pause)]


def test_a_client_has_all_while_it_is_alone_and_its_share_while_others_are_there() -> None:
    hired = Hired(WorkerOptions(max_flights=4))
    hired.hello()
    for rid in range(3):
        assert not failures(hired.ask(hired.opened(rid)))
    hired.hello(T)
    (failed,) = messages(hired.say(hired.opened(3)))
    assert isinstance(failed, Failed)
    assert (failed.code, failed.retryable) == ("busy", True)
    assert "of max_flights 4 the share of each of 2 clients is 2" in failed.reason
    assert not failures(hired.ask(hired.opened(1, sid=T), T))
    assert failures(hired.ask(hired.opened(2, sid=T), T)) == [(SESSION, "edge", "busy")], "the first gives way"
    assert set(hired.machine.flights) == {(S, 0), (S, 1), (T, 1), (T, 2)}
    assert failures(hired.ask(hired.opened(3, sid=T), T)) == [(OTHER, "edge", "busy")], "nobody has too much"
    hired.say(Done(S, 0))
    assert failures(hired.ask(hired.opened(4, sid=T), T)) == [(OTHER, "edge", "busy")], "it is somebody else's share"
    assert not failures(hired.ask(hired.opened(5)))


def test_sessions_of_one_key_are_one_client() -> None:
    """Together they have one share of the places and of the engine's time."""
    hired = Hired(WorkerOptions(max_flights=4))
    for sid in (S, T):
        hired.hello(sid, key="ours")
    said = [one for rid, sid in enumerate((S, T, S, T)) for one in hired.ask(hired.opened(rid, sid=sid), sid)]
    assert {one.client for one in said if isinstance(one, Run)} == {"ours"}
    assert hired.machine.stats().clients == {"ours": (4, 4 * 552)}, "alone it may have all"
    third = "7" * 32
    hired.hello(third, key="another's")
    said = [one for rid in range(2) for one in hired.ask(hired.opened(rid, sid=third), third)]
    assert failures(said) == [(OTHER, "edge", "busy"), (SESSION, "edge", "busy")], "its newest ones give way"
    (failed,) = messages(hired.say(hired.opened(9)))
    assert isinstance(failed, Failed)
    assert "of max_flights 4 the share of each of 2 clients is 2" in failed.reason
    hired.say(Done(S, 0))
    assert hired.machine.stats().clients == {"ours": (1, 552), "another's": (2, 2 * 552)}
    hired.tell(Down(OTHER, "gone"))
    hired.hello(T, key="ours")
    assert not failures(hired.ask(hired.opened(1, 2, sid=T), T))
    assert hired.machine.stats().clients["ours"] == (1, 552)


def test_all_sessions_of_the_largest_client_are_paused() -> None:
    hired = Hired(WorkerOptions(max_held_bytes=10_000, max_held_bytes_per_client=10_000))
    for sid in (S, T):
        hired.hello(sid, key="ours")
    said = [one for rid in range(8) for sid in (S, T) for one in hired.ask(hired.opened(rid, sid=sid), sid)]
    assert pauses(said) == [Pause(SESSION, True), Pause(OTHER, True)]


def test_a_request_that_gave_way_stays_over_and_its_next_attempt_is_welcome() -> None:
    hired = Hired(WorkerOptions(max_flights=2))
    hired.hello()
    hired.hello("7" * 32, role="worker")
    for rid in range(2):
        hired.ask(hired.opened(rid))
    hired.hello(T)
    assert failures(hired.ask(hired.opened(1, sid=T), T)) == [(SESSION, "edge", "busy")]
    assert not messages(hired.ask(hired.opened(1), "7" * 32)), "the same attempt, late, by another way"
    hired.say(Done(T, 1), OTHER)
    hired.tell(Down(OTHER, "gone"))
    assert not failures(hired.ask(hired.opened(1, attempt=2)))
    assert hired.machine.flights[S, 1].attempt == 2


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        (None, "of max_held_bytes 4000 the share of each of 2 clients is 2000"),
        (2000, "this client would have 2112 bytes, max_held_bytes_per_client is 2000"),
    ],
)
def test_bytes_are_shared_too(limit: int | None, reason: str) -> None:
    hired = Hired(WorkerOptions(max_held_bytes=4000, max_held_bytes_per_client=limit))
    hired.hello()
    hired.hello(T)
    large = replace(hired.opened(), tensors=(TensorHeader("v0", "int64", (200,), 1600),))
    (failed,) = messages(hired.say(large))
    assert isinstance(failed, Failed)
    assert reason in failed.reason
    assert not failures(hired.ask(hired.opened(2)))


def test_a_tensor_larger_than_a_share_has_what_nobody_uses() -> None:
    """A hundred clients that are idle do not keep one from using what is there."""
    hired = Hired(WorkerOptions(max_held_bytes=100_000))
    hired.hello()
    for number in range(100):
        hired.hello(f"{number:032x}")
    large = replace(hired.opened(), tensors=(TensorHeader("v0", "int64", (6000,), 48_000),))
    assert not failures(hired.say(large))


def test_a_manager_and_a_worker_are_no_competition() -> None:
    hired = Hired(WorkerOptions(max_flights=2), hooks=WorkerHooks(is_admin=lambda _: True))
    hired.hello()
    hired.hello(T, bundle="")
    hired.hello("7" * 32, role="worker")
    for rid in range(2):
        assert not failures(hired.ask(hired.opened(rid)))


def test_the_largest_is_paused_while_runs_will_free_memory() -> None:
    hired = Hired(WorkerOptions(max_held_bytes=10_000, max_held_bytes_per_client=10_000))
    hired.hello()
    hired.hello(T)
    hired.ask(hired.opened(1, sid=T), T)
    said = []
    for rid in range(14):
        said += hired.ask(hired.opened(rid))
    assert pauses(said) == [Pause(SESSION, True)]
    assert hired.machine.stats().paused == (SESSION,)
    said = [one for rid in range(14) for one in hired.say(Done(S, rid))]
    assert pauses(said) == [Pause(SESSION, False)]
    assert hired.machine.stats().held_bytes == 552


def test_nobody_is_paused_when_no_run_is_left_that_could_free_anything() -> None:
    hired = Hired(WorkerOptions(max_held_bytes=1000))
    hired.hello()
    opened = replace(hired.opened(), tensors=(TensorHeader("v0", "int64", (40,), 320),))
    assert not pauses(hired.say(opened)), "only the session's own data can bring it on"
    hired.ask(hired.opened(attempt=2))
    assert not hired.machine.stats().paused


def test_a_peer_that_left_is_not_paused_when_it_returns() -> None:
    hired = Hired(WorkerOptions(max_held_bytes=1000))
    hired.hello()
    for rid in range(2):
        hired.ask(hired.opened(rid))
    hired.ask(replace(hired.opened(0), attempt=2))
    hired.tell(Down(SESSION, "reset"))
    assert not hired.machine.stats().paused


def test_held_bytes_are_right_whatever_happens() -> None:
    hired = Hired()
    hired.hello()
    hired.reach_cloud()
    hired.ask(hired.opened(1))
    assert hired.machine.stats().held_bytes == 40 + 512
    hired.finish()
    assert hired.machine.stats().held_bytes == 2 * (40 + 512)
    hired.ask(hired.opened(1, attempt=2))
    assert hired.machine.stats().clients == {S: (1, 2 * (40 + 512))}
    hired.say(Done(S, 1))
    assert hired.machine.stats().clients == {}


def test_a_flood_of_tensors_without_bytes_reaches_the_limit() -> None:
    hired = Hired(WorkerOptions(max_held_bytes=100_000))
    hired.hello()
    refused = False
    for attempt in range(1, 200):
        names = tuple(f"n{attempt}.{at}" for at in range(10))
        route = (replace(hired.opened().route[0], carry=names), *hired.opened().route[1:])
        headers = tuple(TensorHeader(name, "int64", (0,), 0) for name in names)
        opened = replace(hired.opened(attempt=attempt), route=route, tensors=headers)
        refused = refused or (SESSION, "edge", "busy") in failures(hired.say(opened))
    assert refused
    assert sum(len(flight.values) for flight in hired.machine.flights.values()) < 200


def test_a_pong_tells_how_busy_the_worker_is() -> None:
    hired = Hired(hooks=WorkerHooks(wait_us=lambda: 1234))
    hired.hello()
    hired.ask(hired.opened())
    assert messages(hired.say(Ping(3, 7))) == [Pong(3, 7, 1, 0, 1234, 552)]


def test_a_pong_tells_what_links_are_like() -> None:
    hired = Hired()
    hired.hello()
    hired.reach_cloud()
    hired.tell(Received(CLOUD, Pong(1, int((hired.now - 0.02) * 1e6))))
    hired.say(Probe(0, 200_000, payload=b"x"))
    hired.tell(Acked(SESSION, 200_000, 0, 0.0), after_s=0.1)
    (pong,) = messages(hired.say(Ping(3, 7)))
    assert isinstance(pong, Pong)
    links = {gauge.tier: gauge for gauge in pong.links}
    assert links["cloud"].rtt_us == pytest.approx(20_000, rel=0.05)
    assert links["phone"].bytes_per_s == pytest.approx(2_000_000, rel=0.5)


def test_a_slow_down_is_told() -> None:
    hired = Hired()
    machine = WorkerMachine("edge", {"d" * 64: served_of(hired.facts, "edge")}, "1" * 32, slowdown=2.5)
    machine.handle(Up(SESSION), 1.0)
    hello = Hello((1, 0), (1, 1), S, "session", "d" * 64, 1000)
    (welcome,) = messages(machine.handle(Received(SESSION, hello), 1.0))
    assert isinstance(welcome, Welcome)
    assert welcome.slowdown_permille == 2500


def test_peers_are_limited() -> None:
    hired = Hired(WorkerOptions(max_peers=1))
    hired.hello()
    (said,) = messages(hired.hello(T))
    assert said.TYPE == "RJ"
    assert messages(hired.hello())[0].TYPE == "WE", "who is here may ask again"


def test_stats_count() -> None:
    hired = Hired()
    hired.hello()
    hired.reach_cloud()
    hired.ask(hired.opened(1))
    hired.ask(hired.opened(2, deadline_ms=0))
    hired.finish()
    hired.say(Done(S, 1))
    stats = hired.machine.stats()
    assert (stats.tier, stats.bundles, stats.sessions, stats.workers) == ("edge", ("d" * 64,), 1, 0)
    assert (stats.opened, stats.done, stats.flights, stats.waiting_runs) == (1, 1, 0, 0)
    assert stats.failed == {"deadline": 1}
    assert stats.beyond == {"cloud@tcp://cloud:1": True}
    assert not any(isinstance(one, Run) for one in hired.tell(Tick()))
