"""Replicas that say what is not so, and clients that leave: it costs an attempt, and no stream or memory."""

import dataclasses
from collections.abc import Callable

import pytest
from tests.runtime.generation.stream_oracle import BUNDLE
from tests.runtime.generation.stream_world import StreamWorld
from tests.runtime.generation.test_stream_client import long_request, run_until
from tests.runtime.generation.test_stream_histories import check, nothing_left

from flagsplit.errors import UnavailableError
from flagsplit.runtime.generation.client_streams import ClientOptions
from flagsplit.transport.messages import Bye, Failed, Have, Message, Reject, Tokens, Welcome


def lying(world: StreamWorld, replica: str, lie: Callable[[Tokens], Message]) -> None:
    """What a replica says of tokens is changed on the way, once a stream is under way."""
    network = world.network
    send = network.send

    def changed(node: object, peer: str, message: Message) -> None:
        if isinstance(message, Tokens) and message.offset == 5 and node is world.node(replica):
            message = lie(message)
        send(node, peer, message)  # type: ignore[arg-type]

    network.send = changed  # type: ignore[method-assign]


LIES: dict[str, Callable[[Tokens], Message]] = {
    "too many": lambda said: dataclasses.replace(said, tokens=tuple(range(2, 102))),
    "a gap": lambda said: dataclasses.replace(said, offset=2**53 - 1),
    "cancelled": lambda said: dataclasses.replace(said, tokens=(), last=True, reason="cancelled"),
    "late": lambda said: dataclasses.replace(said, tokens=(), last=True, reason="deadline"),
    "odd": lambda said: dataclasses.replace(said, tokens=(), last=True, reason="x"),
    "failed": lambda said: Failed(said.sid, said.rid, said.attempt, "cloud", "deadline", "too late"),
    "odd failure": lambda said: Failed(said.sid, said.rid, said.attempt, "cloud", "x" * 64, "", retryable=True),
    "no state": lambda said: Failed(said.sid, said.rid, said.attempt, "cloud", "no-state", "", retryable=True),
    "another attempt": lambda said: dataclasses.replace(said, attempt=said.attempt + 1),
    "another stream": lambda said: dataclasses.replace(said, rid=99),
    "have": lambda said: Have(said.sid, said.rid, said.attempt, 1, (1, 2, 3)),
    "bye": lambda _: Bye("so long"),
    "welcome": lambda _: Welcome((1, 2), "f" * 32, 0, BUNDLE, "cloud", 1, 1, ("generate",)),
    "rejected": lambda _: Reject("rights", "no"),
}


@pytest.mark.parametrize("what", LIES)
def test_a_replica_that_lies_costs_an_attempt_and_no_stream(what: str) -> None:
    world = StreamWorld(2, client=ClientOptions(stall_s=3.0))
    world.join()
    told = world.ask(long_request())
    run_until(world, told, 3)
    lying(world, told.places[0].replica.removeprefix("sim://"), LIES[what])
    world.run(60)
    check(world, [told])


def test_leaving_ends_all_streams_and_tells_the_services() -> None:
    world = StreamWorld(2)
    world.join()
    told = world.ask(long_request())
    run_until(world, told, 5)
    world.leave("c")
    assert told.over is not None
    assert isinstance(told.over.error, UnavailableError)
    world.run(1)
    nothing_left(world)
