"""Another bundle or policy under way, workers that drain or lose each other, transfers that resume."""

from dataclasses import replace
from typing import Any

import numpy as np
from tests.runtime.lone import ALONE, BY_CLOUD, GRAPH, TIERS, TRIP, Lone, S, X, facts

from flagsplit.runtime.events import (
    Adopt,
    Adopted,
    Connect,
    Deliver,
    Disconnect,
    Instruction,
    Note,
    Ran,
    Released,
    Run,
    Send,
    Submit,
    Superseded,
    Tick,
    TierChanged,
)
from flagsplit.runtime.session_machine import SessionOptions
from flagsplit.transport.channel import Down, Received, Up
from flagsplit.transport.messages import Chunk, Drain, Failed, Have, Hello, Open, Reject
from flagsplit.transport.tensors import chunks_of

NEW = "e" * 64


def _messages(said: list[Instruction], kind: type) -> list[Any]:
    return [one.message for one in said if isinstance(one, Send) and isinstance(one.message, kind)]


def _kinds(said: list[Instruction]) -> list[str]:
    return [type(one).__name__ for one in said]


def _both_up(options: SessionOptions | None = None) -> Lone:
    lone = Lone(options)
    lone.up("edge")
    lone.up("cloud")
    return lone


def _adopt(lone: Lone) -> None:
    """Adopt the new bundle on both workers."""
    lone.tell(Adopt(replace(lone.facts, bundle=NEW)))
    for tier in TIERS[1:]:
        lone.tell(Received(tier, replace(lone.welcome(tier), bundle=NEW)))


def test_a_policy_over_the_same_bundle_holds_at_once() -> None:
    lone = _both_up()
    lone.to_edge()
    said = lone.tell(Adopt(facts(trip=TRIP, alone=ALONE)))
    assert Adopted(1, lone.facts.bundle) in said
    assert not _messages(said, Hello)
    assert not any(isinstance(one, Released) for one in said)


def test_a_new_bundle_is_asked_for_and_used_when_all_have_answered() -> None:
    lone = _both_up()
    first = lone.to_edge(1)
    said = lone.tell(Adopt(replace(lone.facts, bundle=NEW)))
    assert [hello.bundle for hello in _messages(said, Hello)] == [NEW, NEW]
    assert lone.to_edge(2).bundle == lone.facts.bundle, "not yet"
    lone.tell(Received("edge", replace(lone.welcome("edge"), bundle=NEW)))
    said = lone.tell(Received("cloud", replace(lone.welcome("cloud"), bundle=NEW)))
    assert said == [Adopted(1, NEW)]
    later = lone.to_edge(3)
    assert (first.bundle, first.epoch) == (lone.facts.bundle, 0)
    assert (later.bundle, later.epoch) == (NEW, 1)


def test_requests_end_in_the_epoch_that_they_began_in_and_then_the_old_bundle_is_released() -> None:
    lone = _both_up()
    lone.to_edge(1)
    _adopt(lone)
    lone.to_edge(2)
    said = lone.tell(Received("edge", Failed(S, 1, 1, "edge", "busy")))
    again = next(opened for opened in _messages(lone.said, Open) if opened.rid == 1)
    assert again.bundle == lone.facts.bundle
    for tier in TIERS[1:]:
        said = lone.tell(Down(tier, "gone"))
    assert not any(isinstance(one, Released) for one in lone.said)
    runs = [one for one in lone.said if isinstance(one, Run)]
    assert {run.bundle for run in runs[-2:]} == {lone.facts.bundle, NEW}
    for run in runs[-2:]:
        said = lone.tell(Ran(run.token, GRAPH.run(run.segment, run.inputs)))
        done = next(one for one in said if isinstance(one, Deliver))
        assert np.array_equal(done.outputs["v3"], GRAPH.answer(X["x"])["v3"])
        assert done.report.epoch == (1 if run.bundle == NEW else 0)
        assert (Released(lone.facts.bundle) in said) == (run.bundle == lone.facts.bundle)


def test_a_plan_that_was_asked_for_is_tried_again_although_the_new_policy_lacks_it() -> None:
    lone = _both_up()
    lone.submit(plan="by-cloud")
    lone.ran()
    lone.tell(Adopt(facts(trip=TRIP, alone=ALONE)))
    said = lone.tell(Down("edge", "gone"))
    again = next(opened for opened in _messages(said, Open))
    assert (again.plan, again.attempt, again.epoch) == ("by-cloud", 2, 0)


def test_a_worker_without_the_new_bundle_is_done_without() -> None:
    lone = _both_up()
    said = lone.tell(Adopt(replace(lone.facts, bundle=NEW)))
    lone.tell(Received("edge", Reject("bundle", "what is that")))
    said = lone.tell(Received("cloud", replace(lone.welcome("cloud"), bundle=NEW)))
    assert Adopted(1, NEW, ("edge",)) in said
    assert Released(lone.facts.bundle) in said
    assert Disconnect("edge") not in lone.said
    assert any(isinstance(one, Note) for one in lone.said)
    lone.submit()
    lone.ran()
    assert _messages(lone.said, Open)[-1].plan == "by-cloud"


def test_who_refused_one_bundle_is_asked_for_the_next() -> None:
    lone = Lone()
    lone.tell(Up("edge"))
    lone.tell(Received("edge", Reject("bundle", "what is that")))
    said = lone.tell(Adopt(replace(lone.facts, bundle=NEW)))
    assert [one.peer for one in said if isinstance(one, Connect)] == ["edge"]
    (hello,) = _messages(lone.tell(Up("edge")), Hello)
    assert hello.bundle == NEW


def test_a_silent_worker_does_not_hold_up_a_new_bundle_for_ever() -> None:
    lone = _both_up(SessionOptions(adopt_s=3.0))
    lone.tell(Adopt(replace(lone.facts, bundle=NEW)))
    lone.tell(Received("cloud", replace(lone.welcome("cloud"), bundle=NEW)))
    assert lone.machine.next_tick() <= lone.now + 3.0
    said = [one for _ in range(3) for one in lone.tell(Tick(), after_s=1.0)]
    assert Adopted(1, NEW, ("edge",)) in said


def test_one_new_bundle_overtakes_another() -> None:
    lone = _both_up()
    lone.tell(Adopt(replace(lone.facts, bundle="f" * 64)))
    said = lone.tell(Adopt(replace(lone.facts, bundle=NEW)))
    assert Released("f" * 64) in said
    for tier in TIERS[1:]:
        lone.tell(Received(tier, Reject("bundle", "no")))
    for tier in TIERS[1:]:
        said = lone.tell(Received(tier, replace(lone.welcome(tier), bundle=NEW)))
    assert Adopted(1, NEW) in said


def test_who_connects_anew_is_asked_for_every_bundle_in_use() -> None:
    lone = _both_up()
    lone.to_edge(1)
    _adopt(lone)
    lone.tell(Down("cloud", "reset"))
    assert [hello.bundle for hello in _messages(lone.tell(Up("cloud")), Hello)] == [
        lone.facts.bundle,
        NEW,
    ]


def test_a_draining_worker_finishes_what_it_has_and_gets_nothing_new() -> None:
    lone = _both_up()
    lone.to_edge(1)
    said = lone.tell(Received("edge", Drain("maintenance")))
    assert said == [TierChanged("edge", "draining", "maintenance")]
    lone.submit(2)
    assert next(opened for opened in _messages(lone.ran(), Open)).plan == "by-cloud"


def test_a_bundle_that_a_worker_retires_is_told_with_its_successor() -> None:
    lone = _both_up()
    _adopt(lone)
    said = lone.tell(Received("edge", Drain("new version", lone.facts.bundle, NEW)))
    assert said == [Superseded("edge", lone.facts.bundle, NEW)]
    assert lone.to_edge(5).plan == "trip", "only the old one drains"


def test_workers_that_cannot_reach_each_other_are_joined_by_the_session() -> None:
    lone = Lone(trip=TRIP, alone=ALONE)
    lone.up("edge")
    lone.up("cloud")
    opened = lone.to_edge(1)
    assert [hop.tier for hop in opened.route] == ["phone", "edge", "cloud", "edge", "phone"]
    said = lone.tell(Received("edge", Failed(S, 1, 1, "cloud", "unreachable", "no route", retryable=True)))
    (again,) = _messages(said, Open)
    assert [hop.tier for hop in again.route] == ["phone", "edge", "phone", "cloud", "phone"]
    assert again.attempt == 2
    assert [hop.tier for hop in lone.to_edge(2).route] == ["phone", "edge", "phone", "cloud", "phone"]
    lone.now += 2.0
    assert [hop.tier for hop in lone.to_edge(3).route] == ["phone", "edge", "cloud", "edge", "phone"], "tried again"


def test_a_second_attempt_asks_what_is_there_already_and_sends_the_rest() -> None:
    lone = Lone(SessionOptions(attempt_s=1000.0), cloud=BY_CLOUD)
    lone.up("cloud")
    big = {"x": np.arange(50_000)}
    lone.tell(Submit(1, big, lone.now + 500.0))
    first = _messages(lone.ran(), Open)[0]
    assert not first.resume
    assert len(lone.sent(Chunk)) > 1
    lone.tell(Down("cloud", "reset"))
    lone.tell(Up("cloud"))
    said = lone.tell(Received("cloud", lone.welcome("cloud")))
    (again,) = _messages(said, Open)
    assert (again.attempt, again.resume) == (2, True)
    assert not _messages(said, Chunk)
    assert not _messages(lone.tell(Received("cloud", Have(S, 1, 1, 1, (8,)))), Chunk), "of an older attempt"
    rest = _messages(lone.tell(Received("cloud", Have(S, 1, 2, 1, (300_000,)))), Chunk)
    assert sum(len(chunk.payload) for chunk in rest) == again.tensors[0].size_bytes - 300_000
    assert not _messages(lone.tell(Received("cloud", Have(S, 1, 2, 1, (0,)))), Chunk), "only once"


def test_an_answer_that_was_coming_in_goes_on_where_it_stopped() -> None:
    lone = Lone(SessionOptions(attempt_s=1000.0), cloud=BY_CLOUD)
    lone.up("cloud")
    big = {"x": np.arange(50_000)}
    lone.tell(Submit(1, big, lone.now + 500.0))
    opened = _messages(lone.ran(), Open)[0]
    assert isinstance(opened, Open)
    result = GRAPH.answer(big["x"])["v3"]
    middle = GRAPH.run("1.2", {"v0": GRAPH.run("0", big)["v0"]})
    header = replace(opened.tensors[0], name="v2")
    back = replace(opened, hop=2, tensors=(header,), trace=(opened.trace[0], opened.trace[0]))
    chunks = list(chunks_of(back, [middle["v2"]], 100_000))
    lone.tell(Received("cloud", back))
    lone.tell(Received("cloud", chunks[0]))
    lone.tell(Down("cloud", "reset"))
    lone.tell(Up("cloud"))
    lone.tell(Received("cloud", lone.welcome("cloud")))
    said = lone.tell(Received("cloud", replace(back, attempt=2, resume=True)))
    assert said == [Send("cloud", Have(S, 1, 2, 2, (100_000,)))]
    for chunk in chunks_of(replace(back, attempt=2), [middle["v2"]], offsets=(100_000,)):
        said = lone.tell(Received("cloud", chunk))
    run = next(one for one in said if isinstance(one, Run))
    said = lone.tell(Ran(run.token, GRAPH.run(run.segment, run.inputs)))
    done = next(one for one in said if isinstance(one, Deliver))
    assert np.array_equal(done.outputs["v3"], result)
    assert _kinds(said)[-1] == "Deliver"
