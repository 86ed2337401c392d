"""Single events in the life of a session and its workers, each on purpose."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.runtime.hired import Hired, failures
from tests.runtime.lone import ALONE, BY_CLOUD, GRAPH, SESSION, TIERS, TRIP, Lone, S, X, facts
from tests.runtime.worlds import Graph, Numbers, make_facts, same

from flagsplit.errors import InputError, InternalError, PeerError, PolicyError, UnavailableError
from flagsplit.runtime.events import (
    Abandon,
    Connect,
    Deliver,
    Disconnect,
    Fail,
    Instruction,
    Leave,
    Ran,
    Run,
    Send,
    Skip,
    Submit,
    Tick,
    TierChanged,
    Withdraw,
)
from flagsplit.runtime.liveness import LivenessOptions
from flagsplit.runtime.session_machine import SessionMachine, SessionOptions
from flagsplit.runtime.testing import Cluster
from flagsplit.runtime.worker_machine import WorkerOptions
from flagsplit.transport.channel import Down, Received, Up, Violated, inbound_name
from flagsplit.transport.checksum import crc32
from flagsplit.transport.messages import (
    BUNDLES,
    INLINE,
    RESUME,
    VERSION,
    Bye,
    Cancel,
    Chunk,
    Done,
    Failed,
    Hello,
    Hop,
    HopTiming,
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


# --- the whole line


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


# --- a session by itself


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
    answer = replace(opened, hop=4, tensors=(TensorHeader("v2", "int64", (5,), 40),), trace=(_timing(),) * 4)
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


def _timing() -> HopTiming:
    return HopTiming("edge", "1", 1, 1, 1, 1)


def _answer(opened: Open) -> Open:
    """What the edge would send to the phone at the end."""
    header = TensorHeader("v2", "int64", (5,), 40)
    return replace(opened, hop=4, tensors=(header,), trace=(_timing(),) * 4, inline_crc32=None, payload=b"")


def _inline(answer: Open) -> Open:
    payload = np.arange(5).tobytes()
    return replace(answer, inline_crc32=crc32(payload), payload=payload)


def test_an_answer_that_came_whole_is_worked_on_once() -> None:
    lone = Lone()
    lone.up("edge")
    lone.up("cloud")
    answer = _inline(_answer(lone.to_edge()))
    (run,) = lone.tell(Received("edge", answer))
    assert isinstance(run, Run)
    assert np.array_equal(run.inputs["v2"], np.arange(5))
    assert lone.tell(Received("edge", answer)) == []
    assert sum(isinstance(one, Deliver) for one in lone.ran()) == 1


def test_an_answer_that_came_whole_and_damaged_is_a_lie() -> None:
    lone = Lone()
    lone.up("edge")
    lone.up("cloud")
    answer = _inline(_answer(lone.to_edge()))
    lone.tell(Received("edge", replace(answer, payload=bytes(40))))
    assert lone.sent(Open)[-1].plan == "by-cloud"  # type: ignore[attr-defined]


@pytest.mark.parametrize("feature", [INLINE, ""])
def test_what_is_small_goes_with_its_announcement_to_who_understands_that(feature: str) -> None:
    lone = Lone()
    lone.tell(Up("edge"))
    lone.tell(Received("edge", replace(lone.welcome("edge"), features=(feature,))))
    lone.up("cloud")
    opened = lone.to_edge()
    assert bool(opened.payload) == (len(lone.sent(Chunk)) == 0) == bool(feature)
    if feature:
        assert (len(opened.payload), opened.inline_crc32) == (40, crc32(opened.payload))


@pytest.mark.parametrize("features", [(INLINE,), ()])
def test_a_worker_takes_what_came_whole_and_passes_it_on_so(features: tuple[str, ...]) -> None:
    hired = Hired()
    hired.hello()
    hired.reach_cloud()
    hired.machine.peers.beyond["cloud@tcp://cloud:1"].features = frozenset(features)
    opened = _inline(hired.opened())
    (run,) = hired.tell(Received(SESSION, opened))
    assert isinstance(run, Run)
    assert hired.tell(Received(SESSION, opened)) == []
    sent = [one.message for one in hired.finish() if isinstance(one, Send)]
    assert [type(one) for one in sent] == ([Open] if features else [Open, Chunk])
    assert sum(len(one.payload) for one in sent if isinstance(one, Open | Chunk)) == 40


def test_a_worker_whose_tier_beyond_is_not_welcome_yet_keeps_to_chunks() -> None:
    hired = Hired()
    hired.hello()
    hired.ask(hired.opened())
    assert not any(isinstance(one, Send) and isinstance(one.message, Open) for one in hired.finish())
    hired.tell(Up("cloud@tcp://cloud:1"))
    welcome = Welcome(VERSION, "2" * 32, 0, hired.facts.bundle, "cloud", 1, 1, (INLINE,))
    said = hired.tell(Received("cloud@tcp://cloud:1", welcome))
    assert [type(one.message).__name__ for one in said if isinstance(one, Send)] == ["Open", "Chunk"]


def test_what_came_whole_and_damaged_fails_the_attempt() -> None:
    hired = Hired()
    hired.hello()
    opened = replace(_inline(hired.opened()), inline_crc32=1)
    assert failures(hired.tell(Received(SESSION, opened))) == [(SESSION, "edge", "protocol")]
    assert hired.machine.is_idle()


Change = Callable[[Open], Open]
LIES: Mapping[str, Change] = {
    "another route": lambda o: replace(o, route=(*o.route[:3], Hop("edge", "", o.route[3].carry), Hop("phone", "0"))),
    "a longer route": lambda o: replace(o, route=(*o.route, *o.route[1:]), hop=8, trace=(_timing(),) * 8),
    "no tensors": lambda o: replace(o, tensors=()),
    "another tensor": lambda o: replace(o, tensors=(TensorHeader("x", "int64", (5,), 40),)),
    "not our hop": lambda o: replace(
        o, hop=3, tensors=(TensorHeader("v2", "int64", (5,), 40),), trace=(_timing(),) * 3
    ),
    "hop 0": lambda o: replace(o, hop=0, trace=()),
    "a segment that is not ours": lambda o: replace(o, route=(*o.route[:4], Hop("phone", "9"))),
    "too many timings": lambda o: replace(o, trace=(_timing(),) * 16),
    "a tensor over the limit": lambda o: replace(o, tensors=(TensorHeader("v2", "int64", (1 << 40,), 1 << 43),)),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_worker_that_lies_is_avoided(lie: str) -> None:
    lone = Lone()
    lone.up("edge")
    lone.up("cloud")
    message = LIES[lie](_answer(lone.to_edge()))
    lone.tell(Received("edge", message))
    assert lone.sent(Open)[-1].plan == "by-cloud"  # type: ignore[attr-defined]
    assert not any(isinstance(said, Fail) for said in lone.said)


def test_a_chunk_with_a_bad_checksum_is_a_lie() -> None:
    lone = Lone()
    lone.up("edge")
    lone.up("cloud")
    answer = _answer(lone.to_edge())
    assert lone.tell(Received("edge", answer)) == []
    (chunk,) = chunks_of(answer, [np.arange(5)])
    lone.tell(Received("edge", replace(chunk, crc32=chunk.crc32 ^ 1)))
    assert lone.sent(Open)[-1].plan == "by-cloud"  # type: ignore[attr-defined]


def test_duplicates_of_the_answer_change_nothing() -> None:
    lone = Lone()
    lone.up("edge")
    lone.up("cloud")
    answer = _answer(lone.to_edge())
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


# --- a worker by itself


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
OPEN_LIES: Mapping[str, Change] = {
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
