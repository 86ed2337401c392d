"""Single events in the life of a worker, each on purpose."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.runtime.hired import Hired, failures
from tests.runtime.lone import SESSION, S

from flagsplit.runtime.events import Connect, Disconnect, Instruction, Leave, Ran, Run, Send, Skip, Tick
from flagsplit.runtime.liveness import LivenessOptions
from flagsplit.runtime.worker_machine import WorkerOptions
from flagsplit.transport.channel import Down, Received, Up, Violated, inbound_name
from flagsplit.transport.messages import (
    VERSION,
    Bye,
    Cancel,
    Chunk,
    Done,
    Failed,
    Hop,
    Open,
    PeerAddress,
    Ping,
    Pong,
    Reject,
    TensorHeader,
    Welcome,
)
from flagsplit.transport.tensors import chunks_of


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"bundle": "e" * 64}, "bundle"),
        ({"version_min": (2, 0), "version_max": (3, 0)}, "version"),
        ({"version_min": (0, 1), "version_max": (0, 9)}, "version"),
    ],
)
def test_a_stranger_is_rejected_and_not_heard(change: dict[str, Any], code: str) -> None:
    hired = Hired()
    (said,) = hired.hello(**change)
    assert isinstance(said, Send)
    assert isinstance(said.message, Reject)
    assert said.message.code == code
    assert hired.ask(hired.opened()) == []


def test_who_comes_while_the_worker_leaves_is_sent_away() -> None:
    hired = Hired()
    hired.hello()
    assert [said.peer for said in hired.tell(Leave()) if isinstance(said, Send)] == [SESSION]
    (said,) = hired.hello("6" * 32)
    assert isinstance(said, Send)
    assert isinstance(said.message, Reject)
    assert said.message.code == "draining"


def test_a_worker_dials_only_tiers_beyond_it_and_the_operator_knows_better() -> None:
    hired = Hired(cloud=PeerAddress("tcp://fixed:9"))
    addresses = {"phone": PeerAddress("tcp://phone:1"), "cloud": PeerAddress("tcp://cloud:1"), "moon": PeerAddress("m")}
    said = hired.hello(peers=addresses)
    assert [one for one in said if isinstance(one, Connect)] == [Connect("cloud@tcp://fixed:9", "tcp://fixed:9", "")]


def test_addresses_that_nobody_names_any_more_are_left() -> None:
    hired = Hired()
    hired.hello()
    hired.hello("6" * 32)
    assert not any(isinstance(said, Disconnect) for said in hired.tell(Received(SESSION, Bye("over"))))
    said = hired.hello("6" * 32, cloud="tcp://elsewhere:1")
    assert Disconnect("cloud@tcp://cloud:1") in said
    assert not any(isinstance(said, Disconnect) for said in hired.tell(Down(inbound_name("6" * 32), "gone")))
    assert not any(isinstance(said, Disconnect) for said in hired.tell(Tick(), after_s=9.9))
    assert Disconnect("cloud@tcp://elsewhere:1") in hired.tell(Tick(), after_s=0.2)
    hired.hello()
    assert Disconnect("cloud@tcp://cloud:1") in hired.tell(Received(SESSION, Bye("the session ends")))
    hired.hello()
    assert Connect("cloud@tcp://cloud:1", "tcp://cloud:1", "") in hired.said


def test_a_worker_runs_and_passes_on() -> None:
    hired = Hired()
    hired.hello()
    hired.reach_cloud()
    assert isinstance(hired.ask(hired.opened())[-1], Run)
    said = hired.finish()
    assert [type(one.message).__name__ for one in said if isinstance(one, Send)] == ["Open", "Chunk"]
    assert {one.peer for one in said if isinstance(one, Send)} == {"cloud@tcp://cloud:1"}


def test_what_comes_twice_runs_once() -> None:
    hired = Hired()
    hired.hello()
    hired.reach_cloud()
    hired.ask(hired.opened())
    assert hired.ask(hired.opened()) == []
    hired.finish()
    assert hired.ask(hired.opened()) == []
    assert hired.ask(hired.opened(attempt=0)) == []


def test_a_later_attempt_takes_what_is_there() -> None:
    hired = Hired()
    hired.hello()
    hired.reach_cloud()
    hired.ask(hired.opened())
    assert hired.ask(hired.opened(attempt=2)) == []
    said = hired.finish()
    (opened,) = [one.message for one in said if isinstance(one, Send) and isinstance(one.message, Open)]
    assert opened.attempt == 2
    said = hired.ask(hired.opened(attempt=3))
    assert [type(one.message).__name__ for one in said if isinstance(one, Send)] == ["Open", "Chunk"]


def test_a_session_that_left_leaves_nothing() -> None:
    for event in (Violated(SESSION, "it sent nonsense"), Received(SESSION, Bye("the session ends"))):
        hired = Hired()
        hired.hello()
        hired.ask(hired.opened())
        said = hired.tell(event)
        assert any(isinstance(one, Skip) for one in said)
        assert hired.machine.is_idle()
        assert hired.finish() == []


def test_a_lost_connection_is_not_cut_again() -> None:
    """The session may be back under the same name already."""
    hired = Hired()
    hired.hello()
    assert Disconnect(SESSION) not in hired.tell(Down(SESSION, "it connected anew"))


def test_done_and_cancel_forget_also_what_is_still_on_its_way() -> None:
    for word in (Done(S, 1), Cancel(S, 1, 1)):
        hired = Hired()
        hired.hello()
        hired.ask(hired.opened())
        hired.tell(Received(SESSION, word))
        assert hired.machine.is_idle()
        assert hired.ask(hired.opened()) == []
        assert hired.machine.is_idle()
    assert hired.ask(hired.opened(attempt=2))


def test_a_cancel_of_an_older_attempt_is_ignored() -> None:
    hired = Hired()
    hired.hello()
    hired.ask(hired.opened(attempt=2))
    hired.tell(Received(SESSION, Cancel(S, 1, 1)))
    assert not hired.machine.is_idle()


def test_a_busy_worker_says_so() -> None:
    hired = Hired(WorkerOptions(max_flights=1))
    hired.hello()
    hired.ask(hired.opened(1))
    assert failures(hired.ask(hired.opened(2))) == [(SESSION, "edge", "busy")]
    hired.tell(Received(SESSION, Done(S, 1)))
    assert isinstance(hired.ask(hired.opened(2))[-1], Run)


def test_bytes_count_for_a_later_attempt_too() -> None:
    hired = Hired(WorkerOptions(max_held_bytes=2000))
    hired.hello()
    hired.ask(hired.opened(1))
    big = replace(hired.opened(1, attempt=2), tensors=(TensorHeader("v0", "int64", (250,), 2000),))
    assert failures(hired.tell(Received(SESSION, big))) == [(SESSION, "edge", "busy")]


def test_a_failed_run_is_told_to_the_session() -> None:
    hired = Hired()
    hired.hello()
    run = hired.ask(hired.opened())[-1]
    assert isinstance(run, Run)
    assert failures(hired.tell(Ran(run.token, None, "no memory"))) == [(SESSION, "edge", "compute")]


def test_what_cannot_go_on_waits_a_while_and_fails() -> None:
    hired = Hired(WorkerOptions(reach_s=3.0, liveness=LivenessOptions(missed=5)))
    hired.hello()
    hired.ask(hired.opened())
    assert hired.finish() == []
    assert failures(hired.tell(Tick(), after_s=2.0)) == []
    assert failures(hired.tell(Tick(), after_s=2.0)) == [(SESSION, "cloud", "unreachable")]
    hired.ask(hired.opened(2))
    hired.finish()
    said = hired.tell(Down("cloud@tcp://cloud:1", "reset"))
    assert (SESSION, "cloud", "unreachable") in failures(said)


def test_what_waited_goes_out_with_the_welcome_unless_it_was_withdrawn() -> None:
    hired = Hired()
    hired.hello()
    for rid in (1, 2):
        hired.ask(hired.opened(rid))
        hired.finish()
    hired.tell(Received(SESSION, Done(S, 1)))
    hired.said.clear()
    hired.reach_cloud()
    out = [said.message for said in hired.said if isinstance(said, Send)]
    assert {message.rid for message in out if isinstance(message, Open | Chunk)} == {2}


def test_a_tier_beyond_that_is_another_is_not_used() -> None:
    hired = Hired()
    hired.hello()
    hired.ask(hired.opened())
    hired.finish()
    hired.tell(Up("cloud@tcp://cloud:1"))
    wrong = Welcome(VERSION, "2" * 32, 0, hired.facts.bundle, "far", 1, 1)
    assert failures(hired.tell(Received("cloud@tcp://cloud:1", wrong))) == [(SESSION, "cloud", "unreachable")]


def test_failures_from_beyond_go_on_to_the_session() -> None:
    hired = Hired()
    hired.hello()
    hired.reach_cloud()
    hired.ask(hired.opened())
    hired.finish()
    word = Failed(S, 1, 1, "cloud", "busy", "full")
    assert failures(hired.tell(Received("cloud@tcp://cloud:1", word))) == [(SESSION, "cloud", "busy")]
    assert failures(hired.tell(Received("cloud@tcp://cloud:1", replace(word, attempt=0)))) == []


def test_a_tier_beyond_that_nobody_named_fails_the_attempt() -> None:
    hired = Hired()
    hired.hello(cloud="")
    hired.ask(hired.opened())
    assert failures(hired.finish()) == [(SESSION, "edge", "protocol")]


_ZERO = TensorHeader("v0", "int64", (0,), 0)
OPEN_LIES: Mapping[str, Callable[[Open], Open]] = {
    "another tier's hop": lambda o: replace(
        o, hop=2, tensors=(TensorHeader("v1", "int64", (5,), 40),), trace=o.trace * 2
    ),
    "hop 0": lambda o: replace(o, hop=0, trace=()),
    "an unknown segment": lambda o: replace(o, route=(o.route[0], Hop("edge", "7", ("v1",)), *o.route[2:])),
    "no tensors": lambda o: replace(o, tensors=()),
    "a tensor that is not carried": lambda o: replace(o, tensors=(TensorHeader("v9", "int64", (5,), 40),)),
    "a trace of other length": lambda o: replace(o, trace=o.trace * 16),
    "too large": lambda o: replace(o, tensors=(TensorHeader("v0", "int64", (1 << 28,), 1 << 31),)),
    "a segment without its inputs": lambda o: replace(
        o, route=(Hop("phone", "", ("x",)), *o.route[1:]), tensors=(TensorHeader("x", "int64", (0,), 0),)
    ),
    "a route that ends here": lambda o: replace(o, route=(o.route[0], Hop("edge", "", ())), tensors=(_ZERO,)),
    "a carry that is not there": lambda o: replace(
        o, route=(o.route[0], Hop("edge", "", ("v7",)), *o.route[2:]), tensors=(_ZERO,)
    ),
    "a hop to itself": lambda o: replace(o, route=(o.route[0], Hop("edge", "", ()), *o.route[1:]), tensors=(_ZERO,)),
}


@pytest.mark.parametrize("lie", OPEN_LIES)
def test_a_malformed_route_is_answered_and_harmless(lie: str) -> None:
    hired = Hired()
    hired.hello()
    hired.reach_cloud()
    said = hired.tell(Received(SESSION, OPEN_LIES[lie](hired.opened())))
    assert failures(said) in ([(SESSION, "edge", "protocol")], [(SESSION, "edge", "busy")])
    assert isinstance(hired.ask(hired.opened(2))[-1], Run)


def test_a_route_cannot_change_within_an_attempt() -> None:
    hired = Hired()
    hired.hello()
    hired.reach_cloud()
    opened = hired.opened()
    hired.ask(opened)
    longer = (*opened.route, *opened.route[1:])
    second = replace(opened, hop=5, route=longer, tensors=(), trace=opened.trace * 5)
    assert failures(hired.tell(Received(SESSION, second))) == [(SESSION, "edge", "protocol")]


@pytest.mark.parametrize("change", [{"crc32": 0}, {"offset": 8}, {"tensor": 3}])
def test_a_wrong_chunk_fails_the_attempt(change: dict[str, int]) -> None:
    hired = Hired()
    hired.hello()
    opened = hired.opened()
    hired.tell(Received(SESSION, opened))
    (chunk,) = chunks_of(opened, [np.arange(5)])
    assert failures(hired.tell(Received(SESSION, replace(chunk, **change)))) == [(SESSION, "edge", "protocol")]  # type: ignore[arg-type]


def test_requests_of_nobody_are_forgotten_with_the_last_peer_that_brought_them() -> None:
    hired = Hired()
    hired.hello(role="worker")
    hired.ask(hired.opened(sid="9" * 32, deadline_ms=2**53 - 1))
    assert not hired.machine.is_idle()
    hired.tell(Down(SESSION, "gone"))
    hired.tell(Tick(), after_s=9.9)
    assert not hired.machine.is_idle()
    hired.tell(Tick(), after_s=0.2)
    assert hired.machine.is_idle()


def test_a_silent_session_is_let_go_however_much_others_say() -> None:
    hired = Hired()
    hired.hello()
    hired.hello("6" * 32)
    for _ in range(100):
        assert hired.machine.next_tick() <= hired.now + 1.0
        hired.tell(Received(inbound_name("6" * 32), Ping(0, 0)), after_s=0.1)
        if hired.now >= hired.machine.next_tick():
            hired.tell(Tick())
    assert Disconnect(SESSION) in hired.said
    assert Disconnect(inbound_name("6" * 32)) not in hired.said


def test_a_silent_tier_beyond_is_dialed_anew() -> None:
    hired = Hired()
    hired.hello()
    hired.reach_cloud()
    hired.ask(hired.opened())
    hired.finish()
    said: list[Instruction] = []
    for _ in range(6):
        hired.tell(Received(SESSION, Ping(0, 0)), after_s=1.0)
        said += hired.tell(Tick())
    assert (SESSION, "cloud", "unreachable") in failures(said)
    assert Connect("cloud@tcp://cloud:1", "tcp://cloud:1", "") in said


def test_a_ping_is_echoed_with_the_length_of_the_queue() -> None:
    hired = Hired()
    hired.hello()
    hired.ask(hired.opened())
    assert hired.tell(Received(SESSION, Ping(3, 7))) == [Send(SESSION, Pong(3, 7, 1, held_bytes=40 + 512))]
