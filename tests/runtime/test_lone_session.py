"""Single events in the life of a session, each on purpose."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
from tests.runtime.hired import Hired
from tests.runtime.lone import ALONE, GRAPH, TIERS, TRIP, Lone, S, X, answer_to, timing
from tests.runtime.worlds import Graph, make_facts

from flagsplit.errors import InternalError, PolicyError, UnavailableError
from flagsplit.runtime.events import (
    Abandon,
    Connect,
    Deliver,
    Disconnect,
    Fail,
    Leave,
    Ran,
    Run,
    Send,
    Submit,
    Tick,
    TierChanged,
    Withdraw,
)
from flagsplit.runtime.liveness import LivenessOptions
from flagsplit.runtime.session_machine import SessionMachine, SessionOptions
from flagsplit.transport.channel import Down, Received, Up, Violated
from flagsplit.transport.messages import (
    VERSION,
    Bye,
    Chunk,
    Done,
    Failed,
    Hello,
    Hop,
    Message,
    Open,
    PeerAddress,
    Ping,
    Pong,
    Reject,
    TensorHeader,
    Welcome,
)
from flagsplit.transport.tensors import chunks_of


def test_start_connects_to_all_and_greets_with_the_addresses_of_the_others() -> None:
    lone = Lone()
    assert lone.said == [Connect("edge", "tcp://edge:1", ""), Connect("cloud", "tcp://cloud:1", "")]
    (said,) = lone.tell(Up("edge"))
    assert isinstance(said, Send)
    assert isinstance(said.message, Hello)
    assert said.message.peers == {"cloud": PeerAddress("tcp://cloud:1")}


@pytest.mark.parametrize("change", [{"tier": "cloud"}, {"bundle": "e" * 64}])
def test_a_worker_of_another_tier_or_bundle_is_refused(change: dict[str, str]) -> None:
    lone = Lone()
    lone.tell(Up("edge"))
    said = lone.tell(Received("edge", replace(lone.welcome("edge"), **change)))  # type: ignore[arg-type]
    assert said[0] == Disconnect("edge")
    assert isinstance(said[1], TierChanged)
    assert said[1].state == "refused"


def test_a_reject_is_final_unless_the_worker_is_only_leaving() -> None:
    lone = Lone()
    lone.tell(Up("edge"))
    said = lone.tell(Received("edge", Reject("bundle", "use the same file")))
    assert Disconnect("edge") in said
    assert TierChanged("edge", "refused", "use the same file") in said
    lone.tell(Up("cloud"))
    assert Disconnect("cloud") not in lone.tell(Received("cloud", Reject("draining", "shutting down")))


def test_a_worker_that_says_goodbye_is_not_asked() -> None:
    lone = Lone()
    lone.up("edge")
    lone.up("cloud")
    lone.to_edge()
    assert TierChanged("edge", "down", "maintenance") in lone.tell(Received("edge", Bye("maintenance")))
    assert lone.sent(Open)[-1].plan == "by-cloud"  # type: ignore[attr-defined]


def test_the_window_is_respected_and_refilled() -> None:
    lone = Lone(SessionOptions(window=2), alone=ALONE)
    for rid in (1, 2, 3):
        lone.submit(rid)
    assert sum(isinstance(said, Run) for said in lone.said) == 2
    first = next(said for said in lone.said if isinstance(said, Run))
    said = lone.tell(Ran(first.token, GRAPH.run(first.segment, first.inputs)))
    assert [type(one).__name__ for one in said] == ["Deliver", "Run"]


def test_a_deadline_passes_in_the_queue_whatever_its_place() -> None:
    lone = Lone(SessionOptions(window=1), alone=ALONE)
    lone.submit(1)
    lone.submit(2, deadline_s=50.0)
    lone.submit(3, deadline_s=2.0)
    assert lone.machine.next_tick() <= lone.now + 2.0
    said = lone.tell(Tick(), after_s=2.0)
    assert [one.rid for one in said if isinstance(one, Fail)] == [3]
    assert lone.machine.next_tick() > lone.now
    lone.tell(Abandon(2))
    assert [type(one).__name__ for one in lone.ran()] == ["Deliver"]


def test_a_request_that_comes_too_late_fails_at_once() -> None:
    lone = Lone(alone=ALONE)
    assert [type(said).__name__ for said in lone.submit(deadline_s=0.0)] == ["Fail"]


def test_answers_of_older_attempts_and_other_sessions_are_ignored() -> None:
    lone = Lone()
    lone.up("edge")
    lone.up("cloud")
    opened = lone.to_edge()
    answer = replace(opened, hop=4, tensors=(TensorHeader("v2", "int64", (5,), 40),), trace=(timing(),) * 4)
    strange: list[Message] = [
        replace(answer, attempt=0),
        replace(answer, attempt=9),
        replace(answer, sid="6" * 32),
        replace(answer, rid=77),
        Failed("6" * 32, 1, 1, "edge", "busy"),
        Failed(S, 1, 0, "edge", "busy"),
        Failed(S, 99, 1, "edge", "busy"),
        Chunk(S, 1, 1, 4, 0, 0, 0, payload=b"12345678"),
        Pong(0, 0),
        Ping(0, 0),
        Done(S, 1),
    ]
    for message in strange:
        assert lone.tell(Received("edge", message)) == []


LIES: Mapping[str, Callable[[Open], Open]] = {
    "another route": lambda o: replace(o, route=(*o.route[:3], Hop("edge", "", o.route[3].carry), Hop("phone", "0"))),
    "a longer route": lambda o: replace(o, route=(*o.route, *o.route[1:]), hop=8, trace=(timing(),) * 8),
    "no tensors": lambda o: replace(o, tensors=()),
    "another tensor": lambda o: replace(o, tensors=(TensorHeader("x", "int64", (5,), 40),)),
    "not our hop": lambda o: replace(o, hop=3, tensors=(TensorHeader("v2", "int64", (5,), 40),), trace=(timing(),) * 3),
    "hop 0": lambda o: replace(o, hop=0, trace=()),
    "a segment that is not ours": lambda o: replace(o, route=(*o.route[:4], Hop("phone", "9"))),
    "too many timings": lambda o: replace(o, trace=(timing(),) * 16),
    "a tensor over the limit": lambda o: replace(o, tensors=(TensorHeader("v2", "int64", (1 << 40,), 1 << 43),)),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_worker_that_lies_is_avoided(lie: str) -> None:
    lone = Lone()
    lone.up("edge")
    lone.up("cloud")
    message = LIES[lie](answer_to(lone.to_edge()))
    lone.tell(Received("edge", message))
    assert lone.sent(Open)[-1].plan == "by-cloud"  # type: ignore[attr-defined]
    assert not any(isinstance(said, Fail) for said in lone.said)


def test_a_chunk_with_a_bad_checksum_is_a_lie() -> None:
    lone = Lone()
    lone.up("edge")
    lone.up("cloud")
    answer = answer_to(lone.to_edge())
    assert lone.tell(Received("edge", answer)) == []
    (chunk,) = chunks_of(answer, [np.arange(5)])
    lone.tell(Received("edge", replace(chunk, crc32=chunk.crc32 ^ 1)))
    assert lone.sent(Open)[-1].plan == "by-cloud"  # type: ignore[attr-defined]


def test_duplicates_of_the_answer_change_nothing() -> None:
    lone = Lone()
    lone.up("edge")
    lone.up("cloud")
    answer = answer_to(lone.to_edge())
    (chunk,) = chunks_of(answer, [np.arange(5)])
    assert lone.tell(Received("edge", answer)) == []
    assert lone.tell(Received("edge", answer)) == []
    assert [type(said).__name__ for said in lone.tell(Received("edge", chunk))] == ["Run"]
    assert lone.tell(Received("edge", answer)) == []
    assert lone.tell(Received("edge", chunk)) == []
    said = lone.ran()
    assert sum(isinstance(one, Deliver) for one in said) == 1
    assert {one.peer for one in said if isinstance(one, Send) and isinstance(one.message, Done)} == {"edge", "cloud"}
    assert lone.tell(Received("edge", answer)) == []


def test_attempts_end_at_their_limit() -> None:
    patient = LivenessOptions(missed=1000)
    lone = Lone(SessionOptions(max_attempts=3, attempt_s=1000.0, liveness=patient), trip=TRIP)
    lone.up("edge")
    lone.up("cloud")
    lone.to_edge()
    for attempt in range(1, 4):
        lone.tell(Received("edge", Failed(S, 1, attempt, "edge", "busy", "full")))
        lone.tell(Tick(), after_s=5.0)
    (fail,) = [said for said in lone.said if isinstance(said, Fail)]
    assert isinstance(fail.error, UnavailableError)
    assert "3 attempts failed" in str(fail.error)
    assert "full" in str(fail.error)
    assert not lone.machine.flights


def test_a_new_attempt_withdraws_the_last() -> None:
    lone = Lone()
    lone.up("edge")
    lone.up("cloud")
    lone.to_edge()
    said = lone.tell(Received("edge", Failed(S, 1, 1, "edge", "busy")))
    assert {one for one in said if isinstance(one, Withdraw)} == {Withdraw("edge", S, 1), Withdraw("cloud", S, 1)}


def test_a_silent_worker_is_dialed_anew() -> None:
    lone = Lone(SessionOptions(liveness=LivenessOptions(heartbeat_s=1.0, missed=3)))
    lone.up("edge")
    pings = [lone.tell(Tick(), after_s=1.0) for _ in range(3)]
    assert all(isinstance(said[0], Send) and isinstance(said[0].message, Ping) for said in pings[:2])
    assert pings[2] == [
        TierChanged("edge", "down", "it went silent"),
        Disconnect("edge"),
        Connect("edge", "tcp://edge:1", ""),
    ]


def test_a_broken_connection_and_a_broken_rule_count_alike() -> None:
    for event in (Down("edge", "reset"), Violated("edge", "garbage")):
        lone = Lone()
        lone.up("edge")
        assert [type(said).__name__ for said in lone.tell(event)] == ["TierChanged"]


def test_leaving_says_goodbye_to_who_is_up() -> None:
    lone = Lone()
    lone.up("edge")
    assert [said.peer for said in lone.tell(Leave()) if isinstance(said, Send)] == ["edge"]


def test_a_route_that_no_message_can_hold_fails_its_request_only() -> None:
    ops = tuple((f"v{i - 1}",) if i else ("x",) for i in range(20))
    graph = Graph(ops, ("v19",))
    zigzag = make_facts(graph, TIERS[:2], {"zigzag": [i % 2 for i in range(20)], "alone": [0] * 20})
    machine = SessionMachine(zigzag, {"edge": PeerAddress("tcp://edge:1")}, S)
    machine.handle(Up("edge"), 1.0)
    machine.handle(Received("edge", Welcome(VERSION, "0" * 32, 0, zigzag.bundle, "edge", 1, 1)), 1.0)
    (fail,) = machine.handle(Submit(1, X, 9.0), 1.0)
    assert isinstance(fail, Fail)
    assert isinstance(fail.error, PolicyError)
    assert isinstance(machine.handle(Submit(2, X, 9.0, "alone"), 1.0)[-1], Run)


def test_a_value_that_cannot_travel_fails_its_request_only() -> None:
    lone = Lone()
    lone.up("edge")
    lone.up("cloud")
    lone.submit()
    text = np.array(["a", "b"], dtype=object)
    said = lone.tell(Ran(lone.run().token, {"v0": text}))
    assert isinstance(said[-1], Fail)
    assert isinstance(said[-1].error, InternalError)
    assert lone.submit(2)


def test_an_endless_deadline_can_be_sent() -> None:
    lone = Lone()
    lone.up("edge")
    lone.up("cloud")
    lone.submit(deadline_s=float("inf"))
    lone.ran()
    assert lone.sent(Open)[-1].deadline_ms > 10**9  # type: ignore[attr-defined]


def test_a_machine_refuses_events_that_are_none() -> None:
    for machine in (Lone().machine, Hired().machine):
        with pytest.raises(InternalError, match="cannot handle"):
            machine.handle("news", 1.0)  # type: ignore[arg-type]
        with pytest.raises(InternalError, match="nobody asked for"):
            machine.handle(Ran(17, {}), 1.0)
