"""Messages that carry what they announce: who gets them, and what becomes of those that are damaged."""

from dataclasses import replace

import numpy as np
import pytest
from tests.runtime.hired import Hired, failures
from tests.runtime.lone import SESSION, Lone, answer_to

from flagsplit.runtime.events import Deliver, Run, Send
from flagsplit.transport.channel import Received, Up
from flagsplit.transport.checksum import crc32
from flagsplit.transport.messages import INLINE, VERSION, Chunk, Open, Welcome


def inlined(answer: Open) -> Open:
    payload = np.arange(5).tobytes()
    return replace(answer, inline_crc32=crc32(payload), payload=payload)


def test_an_answer_that_came_whole_is_worked_on_once() -> None:
    lone = Lone()
    lone.up("edge")
    lone.up("cloud")
    answer = inlined(answer_to(lone.to_edge()))
    (run,) = lone.tell(Received("edge", answer))
    assert isinstance(run, Run)
    assert np.array_equal(run.inputs["v2"], np.arange(5))
    assert lone.tell(Received("edge", answer)) == []
    assert sum(isinstance(one, Deliver) for one in lone.ran()) == 1


def test_an_answer_that_came_whole_and_damaged_is_a_lie() -> None:
    lone = Lone()
    lone.up("edge")
    lone.up("cloud")
    answer = inlined(answer_to(lone.to_edge()))
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
    opened = inlined(hired.opened())
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
    opened = replace(inlined(hired.opened()), inline_crc32=1)
    assert failures(hired.tell(Received(SESSION, opened))) == [(SESSION, "edge", "protocol")]
    assert hired.machine.is_idle()
