"""What a client does about streams that replicas have too little memory for, and what services say of it."""

import dataclasses

import pytest
from tests.runtime.generation.stream_oracle import STEP_S
from tests.runtime.generation.stream_world import StreamWorld
from tests.runtime.generation.test_stream_client import long_request
from tests.runtime.generation.test_stream_histories import check, moves, nothing_left
from tests.runtime.generation.test_stream_machine import Desk, S, sent

from flagsplit.errors import InputError, UnavailableError
from flagsplit.runtime.generation.events import Generate, Refused, Tokens
from flagsplit.runtime.generation.stream_events import Generated, Place
from flagsplit.transport.messages import Cancel, Failed


def make_small(world: StreamWorld, name: str) -> None:
    """Let a replica have too little memory for any stream."""

    def submit(generate: Generate) -> None:
        refused = Generated(Refused(generate.stream_id, "too-large", "it may need more bytes than there are"))
        world.later(STEP_S, lambda: world.tell_node(world.node(name), refused))

    world.engines[name].submit = submit  # type: ignore[method-assign]


def test_each_replica_is_asked_once_until_one_has_room() -> None:
    world = StreamWorld(4)
    for name in ("r0", "r1", "r3"):
        make_small(world, name)
    world.join()
    streams = [world.ask(long_request(number)) for number in range(8)]
    world.run(60)
    check(world, streams)
    assert {place.replica for told in streams for place in told.places} == {"sim://r2"}
    assert 0 < moves(world, "c")["too-large"] <= 3 * len(streams)
    nothing_left(world)


def test_where_nobody_has_room_this_process_makes_it() -> None:
    world = StreamWorld(2, local=True)
    for name in world.names:
        make_small(world, name)
    world.join()
    told = world.ask(long_request())
    world.run(30)
    check(world, [told])
    assert set(told.places) == {Place("phone")}


@pytest.mark.parametrize("local", [False, True])
def test_a_stream_of_rows_that_nobody_has_room_for_ends_at_once(*, local: bool) -> None:
    """A loop of its own is no help: that begins from the tensors of a cut."""
    world = StreamWorld(2, local=local)
    for name in world.names:
        make_small(world, name)
    world.join()
    told = world.ask(world.request(rows=True))
    world.run(2)
    assert told.over is not None
    assert isinstance(told.over.error, InputError)
    assert "no replica has room for the stream; sim://r" in str(told.over.error)
    nothing_left(world)


def test_one_that_is_away_may_have_room_when_it_comes() -> None:
    world = StreamWorld(2)
    make_small(world, "r0")
    world.kill("r1")
    world.join()
    told, late = world.ask(long_request()), world.ask(dataclasses.replace(long_request(1), deadline=3.0))
    world.run(5)
    assert told.over is None
    assert late.over is not None
    assert isinstance(late.over.error, UnavailableError)
    assert "more bytes than there are" in str(late.over.error)
    world.start("r1")
    world.run(60)
    check(world, [told])


@pytest.mark.parametrize(
    ("code", "wire", "retryable"),
    [
        ("busy", "busy", True),
        ("drain", "draining", True),
        ("no-state", "no-state", True),
        ("broken", "compute", True),
        ("deadline", "deadline", False),
        ("bad-input", "input", False),
        ("too-large", "too-large", False),
    ],
)
def test_what_the_engine_refuses_the_client_is_told(code: str, wire: str, *, retryable: bool) -> None:
    desk = Desk()
    asked = desk.begun()
    (said,) = sent(desk.tell(Generated(Refused(asked.stream_id, code, "because", 1.5))))  # type: ignore[arg-type]
    assert said == Failed(S, 1, 1, "cloud", wire, "because", retryable, 1500)
    assert not desk.tell(Generated(Tokens(asked.stream_id, 0, (1,))))
    desk.say(Cancel(S, 1, 1))
    assert desk.machine.is_idle()
