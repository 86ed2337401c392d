"""Streams over services that die, freeze, drain and refuse: each is complete, right, and given once."""

import random
from collections import Counter

import pytest
from tests.runtime.generation.stream_oracle import expected
from tests.runtime.generation.stream_world import StreamWorld, Told

from flagsplit.runtime.generation.client_streams import ClientOptions
from flagsplit.runtime.generation.service_machine import StreamMachine
from flagsplit.runtime.worker_machine import WorkerOptions


def check(world: StreamWorld, streams: list[Told]) -> None:
    for told in streams:
        assert told.over is not None, "\n".join(world.story)
        assert told.over.error is None, told.over.error
        assert (told.tokens, told.over.reason) == expected(told.request)


def moves(world: StreamWorld, *clients: str) -> Counter[str]:
    """Why streams left their places."""
    found: Counter[str] = Counter()
    for client in clients:
        found.update(world.node(client).machine.moves)
    return found


def nothing_left(world: StreamWorld) -> None:
    """No service holds anything of a stream that is over."""
    for name in world.names:
        node = world.node(name)
        if node.alive:
            assert isinstance(node.machine, StreamMachine)
            assert not node.machine.flights
            assert not node.machine.streams
            assert not node.machine._at_engine
            assert not node.machine.shares.held_bytes
            assert not world.engines[name].running


def test_a_stream_of_each_kind() -> None:
    world = StreamWorld(1)
    world.join()
    streams = [world.ask(world.request(rows=index % 3 == 0)) for index in range(8)]
    world.run(30)
    check(world, streams)
    assert {place.replica for told in streams for place in told.places} == {"sim://r0"}
    nothing_left(world)
    assert not world.node("c").machine.streams


def troubled(seed: int, *, local: bool, slots: int, replicas: int = 3) -> tuple[StreamWorld, list[Told]]:
    """Streams asked for over twenty seconds in which services come and go."""
    draw = random.Random(seed)
    options = ClientOptions(choice=draw.choice(["hash", "load"]), stall_s=4.0, max_failures=40)
    service = WorkerOptions(linger_s=draw.choice([0.5, 10.0]), drain_s=draw.choice([0.2, 3.0]))
    world = StreamWorld(replicas, seed=seed, slots=slots, client=options, service=service, local=local)
    streams: list[Told] = []
    for client in ("c", "d"):
        world.join(client)
        for _ in range(12):
            rows = not local and draw.random() < 0.3
            key = draw.choice(["", "k"])
            at_s = draw.uniform(0, 15)
            world.at(at_s, lambda r=rows, k=key, c=client: streams.append(world.ask(world.request(rows=r, key=k), c)))  # type: ignore[misc]
    for _ in range(draw.randint(3, 14)):
        name, at_s, for_s = draw.choice(world.names), draw.uniform(0, 18), draw.uniform(0.05, 4)
        kind = draw.choice(["kill", "freeze", "lose", "drain"])
        if kind == "freeze":
            world.at(at_s, lambda n=name: world.stop(n))  # type: ignore[misc]
            world.at(at_s + for_s, lambda n=name: world.resume(n))  # type: ignore[misc]
        elif kind == "lose":
            client = draw.choice(["c", "d"])
            world.at(at_s, lambda n=name, c=client: world.lose(c, n))  # type: ignore[misc]
        else:
            world.at(at_s, lambda n=name, k=kind: (world.kill if k == "kill" else world.drain)(n))  # type: ignore[misc]
            world.at(at_s + 3.5 + for_s, lambda n=name: world.start(n))  # type: ignore[misc]
    return world, streams


@pytest.mark.slow
@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_no_stream_is_lost_whatever_becomes_of_services(seed: int, *, local: bool) -> None:
    world, streams = troubled(seed, local=local, slots=2)
    world.run(140)
    assert len(streams) == 24
    check(world, streams)
    assert not moves(world, "c", "d").keys() & {"protocol", "input", "compute", "gap"}
    for client in ("c", "d"):
        assert not world.node(client).machine.streams
    world.run(15)  # what lingers of streams that went on elsewhere
    nothing_left(world)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_messages_that_come_twice_or_late_change_nothing(seed: int) -> None:
    world, streams = troubled(100 + seed, local=seed % 2 == 0, slots=2)
    draw = random.Random(seed)
    repeated = ("Tokens", "Failed", "Open", "Chunk", "Have", "Cancel")

    def fate(_source: str, _target: str, message: object) -> tuple[float, ...]:
        if type(message).__name__ not in repeated or draw.random() > 0.2:
            return (0.0,)
        return draw.choice([(0.0, draw.uniform(0, 2)), (draw.uniform(0, 1),)])

    world.fate = fate
    world.run(140)
    check(world, streams)
    world.run(15)
    nothing_left(world)
