"""What a client of token streams does about one stream: busy, drain, deadlines, cancelling, being left alone."""

import dataclasses

import numpy as np
import pytest
from tests.runtime.generation.stream_oracle import BUNDLE, PROMPT, expected
from tests.runtime.generation.stream_world import StreamWorld, Told
from tests.runtime.generation.test_stream_histories import check, moves, nothing_left

from flagsplit.errors import InputError, UnavailableError
from flagsplit.runtime.generation.client_streams import ClientOptions
from flagsplit.runtime.generation.options import GenerationOptions
from flagsplit.runtime.generation.stream_events import Place, StreamRequest
from flagsplit.runtime.worker_machine import WorkerOptions
from flagsplit.transport.messages import Chunk, Message, Open, Reject, Tokens, Welcome

TENSORS = {"hidden": np.arange(40_000, dtype=np.float32)[None]}


def long_request(number: int = 0, **changes: object) -> StreamRequest:
    """A stream of at least eighty tokens."""
    for seed in range(number * 1000, number * 1000 + 1000):
        request = StreamRequest(TENSORS, (), GenerationOptions(max_tokens=80, seed=seed), "p1", 1e4)
        if len(expected(request)[0]) == 80:
            return dataclasses.replace(request, **changes)  # type: ignore[arg-type]
    raise AssertionError


def run_until(world: StreamWorld, told: Told, tokens: int) -> None:
    while len(told.tokens) < tokens:
        world.run(0.01)


def opens(world: StreamWorld) -> list[tuple[str, Open]]:
    """From now on, the announcements that arrive, and where."""
    found: list[tuple[str, Open]] = []

    def watch(_source: str, target: str, message: Message) -> None:
        if isinstance(message, Open):
            found.append((target, message))

    world.watch = watch
    return found


def test_a_client_that_reconnects_goes_on_without_sending_its_tensors_again() -> None:
    world = StreamWorld(1)
    world.join()
    seen = opens(world)
    told = world.ask(long_request())
    run_until(world, told, 20)
    world.lose("c", "r0")
    world.run(30)
    check(world, [told])
    first, second = (opened for _, opened in seen)
    assert [header.name for header in first.tensors] == ["hidden"]
    assert [header.name for header in second.tensors] == ["tokens"]
    assert world.node("r0").machine.stream_counts.resumed == 1


def test_an_upload_that_was_interrupted_goes_on_where_it_was() -> None:
    world = StreamWorld(1)
    world.join()
    world.run(1)
    size = 400_000
    sent: list[Chunk] = []

    def watch(_source: str, _target: str, message: Message) -> None:
        if isinstance(message, Chunk):
            sent.append(message)
            if len(sent) == 3:
                world.lose("c", "r0")

    world.watch = watch
    world.fate = lambda _source, _target, message: (message.offset / 5e5 if isinstance(message, Chunk) else 0.0,)
    told = world.ask(dataclasses.replace(long_request(), tensors={"hidden": np.ones((1, size), np.float32)}))
    world.run(30)
    check(world, [told])
    received = sum(len(chunk.payload) for chunk in sent)
    assert len({chunk.attempt for chunk in sent}) == 2
    assert 4 * size <= received < 6 * size


def test_a_service_that_was_started_again_gets_everything_again() -> None:
    world = StreamWorld(1)
    world.join()
    seen = opens(world)
    told = world.ask(long_request())
    run_until(world, told, 20)
    world.kill("r0")
    world.run(1)
    world.start("r0")
    world.run(30)
    check(world, [told])
    assert [header.name for header in seen[-1][1].tensors] == ["hidden", "tokens"]


def test_each_token_says_where_it_was_made() -> None:
    world = StreamWorld(2, local=True)
    world.join()
    told = world.ask(long_request())
    run_until(world, told, 10)
    first = told.places[0].replica
    world.kill(first.removeprefix("sim://"))
    run_until(world, told, 30)
    for name in world.names:
        world.kill(name)
    world.run(60)
    check(world, [told])
    assert len(set(told.places)) == 3
    assert told.places[-1] == Place("phone")


def test_streams_of_one_key_go_to_one_replica() -> None:
    world = StreamWorld(4, slots=40)
    world.join()
    world.run(1)
    places = []
    for key in ("one", "two", "three", "four", "five", "six"):
        streams = [world.ask(world.request(key=key)) for _ in range(3)]
        world.run(10)
        places.append({place for told in streams for place in told.places})
    assert all(len(each) <= 1 for each in places)
    assert len(set.union(*places)) > 1


def test_by_load_streams_are_spread() -> None:
    world = StreamWorld(4, slots=40, client=ClientOptions(choice="load"))
    world.join()
    world.run(1)
    streams = [world.ask(long_request(number, key="same")) for number in range(8)]
    world.run(1)
    assert sorted(len(engine.running) for engine in world.engines.values()) == [2, 2, 2, 2]
    world.run(60)
    check(world, streams)


def test_where_all_are_busy_this_process_goes_on() -> None:
    world = StreamWorld(2, slots=1, local=True)
    world.join()
    world.run(1)
    streams = [world.ask(long_request(number)) for number in range(4)]
    world.run(30)
    check(world, streams)
    assert sum(told.places[0] == Place("phone") for told in streams) == 2
    nothing_left(world)


def test_without_a_loop_of_its_own_it_comes_again_when_there_is_room() -> None:
    world = StreamWorld(1, slots=1)
    world.join()
    streams = [world.ask(long_request(number)) for number in range(3)]
    world.run(60)
    check(world, streams)
    assert moves(world, "c")["busy"] >= 2
    nothing_left(world)


def test_a_client_may_have_so_many_streams_at_a_service_and_no_more() -> None:
    world = StreamWorld(1, service=WorkerOptions(max_flights_per_client=2))
    world.join()
    streams = [world.ask(long_request(number)) for number in range(5)]
    world.run(2)
    assert len(world.engines["r0"].running) == 2
    world.run(60)
    check(world, streams)


def test_with_no_replica_named_this_process_begins_at_once() -> None:
    world = StreamWorld(0, local=True)
    world.join()
    told = world.ask(long_request())
    world.run(0.5)
    assert told.tokens
    world.run(30)
    check(world, [told])


def test_a_cancelled_stream_is_freed_on_both_sides() -> None:
    world = StreamWorld(2)
    world.join()
    told = world.ask(long_request())
    run_until(world, told, 5)
    world.cancel(told)
    world.run(0.5)
    assert told.over is not None
    assert (told.over.reason, told.over.error) == ("cancelled", None)
    assert told.tokens == expected(told.request)[0][: len(told.tokens)]
    nothing_left(world)


def test_a_deadline_ends_a_stream_with_what_it_has() -> None:
    world = StreamWorld(1)
    world.join()
    told = world.ask(long_request(deadline=2.0))
    world.run(5)
    assert told.over is not None
    assert (told.over.reason, told.over.error) == ("deadline", None)
    assert 0 < len(told.tokens) < 80
    nothing_left(world)


def test_a_deadline_without_a_replica_is_an_error() -> None:
    world = StreamWorld(1)
    world.kill("r0")
    world.join()
    told = world.ask(world.request(deadline_s=2))
    world.run(5)
    assert told.over is not None
    assert isinstance(told.over.error, UnavailableError)
    assert "sim://r0" in str(told.over.error)


def test_a_silent_replica_is_left_after_some_heartbeats() -> None:
    world = StreamWorld(2)
    world.join()
    told = world.ask(long_request())
    run_until(world, told, 10)
    frozen = told.places[0].replica.removeprefix("sim://")
    world.stop(frozen)
    world.run(4)
    assert len(set(told.places)) == 2
    world.resume(frozen)
    world.run(30)
    check(world, [told])
    world.run(15)
    nothing_left(world)


def test_a_replica_that_lives_and_makes_no_tokens_is_left() -> None:
    world = StreamWorld(2, client=ClientOptions(stall_s=3.0))
    world.join()
    told = world.ask(long_request())
    run_until(world, told, 10)
    stuck = told.places[0].replica.removeprefix("sim://")
    world.fate = lambda source, _target, message: () if isinstance(message, Tokens) and source == stuck else (0.0,)
    world.run(30)
    check(world, [told])
    assert moves(world, "c")["stalled"] == 1
    nothing_left(world)


def test_a_search_may_take_its_time() -> None:
    world = StreamWorld(2, client=ClientOptions(stall_s=3.0))
    world.join()
    world.run(1)
    world.fate = lambda _source, _target, message: () if isinstance(message, Tokens) else (0.0,)
    options = GenerationOptions(max_tokens=5, beams=4)
    told = world.ask(dataclasses.replace(long_request(), options=options, deadline=40.0))
    world.run(15)
    assert not moves(world, "c")
    world.run(10)
    assert moves(world, "c")["stalled"] == 1
    assert told.over is None


def test_tokens_that_get_lost_on_the_way_are_asked_for_again() -> None:
    world = StreamWorld(1)
    world.join()
    told = world.ask(long_request())
    run_until(world, told, 10)
    lost: list[int] = []

    def fate(_source: str, _target: str, message: Message) -> tuple[float, ...]:
        if isinstance(message, Tokens) and not lost:
            lost.append(message.offset)
            return ()
        return (0.0,)

    world.fate = fate
    world.run(30)
    check(world, [told])
    assert moves(world, "c")["gap"] == 1


def test_a_service_that_drains_finishes_what_it_can_and_hands_over_the_rest() -> None:
    world = StreamWorld(2, service=WorkerOptions(drain_s=2.0))
    world.join()
    streams = [world.ask(long_request(number, key="same")) for number in range(2)]
    short = world.ask(dataclasses.replace(long_request(7, key="same"), options=GenerationOptions(max_tokens=5, seed=1)))
    run_until(world, streams[0], 3)
    drained = streams[0].places[0].replica.removeprefix("sim://")
    world.drain(drained)
    world.run(30)
    check(world, [*streams, short])
    assert {place.replica for place in short.places} == {f"sim://{drained}"}
    assert all(len(set(told.places)) == 2 for told in streams)
    assert not world.node(drained).alive
    assert moves(world, "c")["draining"] == 2


def test_a_stream_that_brings_down_every_replica_is_given_up() -> None:
    world = StreamWorld(2, client=ClientOptions(max_failures=4))
    world.join()
    good, bad = world.ask(long_request()), world.ask(world.request(rows=True))

    def watch(_source: str, target: str, message: Message) -> None:
        if isinstance(message, Open) and message.rid == 2:
            world.kill(target)
            world.later((0.5, 1.0), lambda: world.start(target))

    world.watch = watch
    world.run(200)
    check(world, [good])
    assert bad.over is not None
    assert isinstance(bad.over.error, UnavailableError)
    assert "5 times" in str(bad.over.error)


def test_a_token_beyond_the_vocabulary_ends_the_stream_at_once() -> None:
    world = StreamWorld(2)
    world.join()
    told = world.ask(dataclasses.replace(long_request(), prompt=(5, 4711)))
    world.run(5)
    assert told.over is not None
    assert isinstance(told.over.error, InputError)
    assert "0..96" in str(told.over.error)
    nothing_left(world)


def test_options_that_no_message_can_carry_are_refused_here() -> None:
    world = StreamWorld(1)
    world.join()
    world.run(1)
    many = GenerationOptions(suppress=tuple(range(1_000_000_000, 1_000_001_000)))
    told = world.ask(dataclasses.replace(long_request(), options=many))
    world.run(1)
    assert told.over is not None
    assert isinstance(told.over.error, InputError)
    assert "8192" in str(told.over.error)


def test_a_replica_that_makes_no_tokens_is_not_asked_for_any() -> None:
    world = StreamWorld(2)
    seen = opens(world)
    machine = world.node("r0").machine
    machine.options = dataclasses.replace(machine.options, features=())
    world.join()
    told = world.ask(long_request())
    world.run(30)
    check(world, [told])
    assert {target for target, _ in seen} == {"r1"}
    assert "no token streams" in world.node("c").machine.replicas.states()["sim://r0"]


def test_another_bundle_is_refused_and_asked_again_later() -> None:
    world = StreamWorld(1)
    said: list[Message] = []
    world.watch = lambda _source, _target, message: said.append(message)
    machine = world.node("r0").machine
    served = dict(machine.bundles.served)
    machine.bundles.served.clear()
    world.join()
    told = world.ask(long_request())
    world.run(3)
    assert any(isinstance(message, Reject) and message.code == "bundle" for message in said)
    assert not any(isinstance(message, Welcome) for message in said)
    machine.bundles.served.update(served)
    world.run(60)
    check(world, [told])


def test_the_models_own_prompt_begins_streams_without_one() -> None:
    world = StreamWorld(1)
    world.join()
    own, same = world.ask(long_request()), world.ask(dataclasses.replace(long_request(), prompt=PROMPT))
    world.run(30)
    check(world, [own, same])
    assert own.tokens == same.tokens


@pytest.mark.parametrize("rows", [False, True])
def test_memory_of_a_service_is_what_its_streams_need(*, rows: bool) -> None:
    world = StreamWorld(1)
    world.join()
    request = world.request(rows=True, most=80) if rows else long_request()
    told = world.ask(request)
    run_until(world, told, min(3, len(expected(request)[0])))
    machine = world.node("r0").machine
    (flight,) = machine.flights.values()
    # Of a stream's tensors only what was made of them stays, of rows nothing: those are in the engine's cache.
    assert sorted(flight.values) == ([] if rows else ["context/hidden"])
    assert machine.shares.held_bytes < 2000 + (0 if rows else 4 * 32)
    assert flight.bundle == BUNDLE


def test_a_stream_that_another_client_began_goes_on() -> None:
    world = StreamWorld(1)
    world.join()
    whole = long_request()
    wanted, reason = expected(whole)
    told = world.ask(dataclasses.replace(whole, delivered=tuple(wanted[:30])))
    world.run(30)
    assert told.over is not None
    assert (told.over.reason, told.over.error) == (reason, None)
    assert told.tokens == wanted[30:]
