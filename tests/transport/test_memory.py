"""The memory channel's faults: scripted, on a clock that stands still."""

from collections.abc import Callable

import pytest

from flagsplit.errors import ConfigError, InternalError
from flagsplit.transport.channel import Down, Received, Up, inbound_name
from flagsplit.transport.memory import MemoryChannel, MemoryNetwork
from flagsplit.transport.messages import Message, Ping
from flagsplit.transport.testing import Faults, VirtualClock, kill, sample_hello, sample_open


class World:
    """A phone that is up with an edge worker."""

    def __init__(self) -> None:
        self.clock, self.faults = VirtualClock(), Faults()
        self.network = MemoryNetwork(policy=self.faults, clock=self.clock)
        self.phone = MemoryChannel(self.network, name="phone")
        self.edge = MemoryChannel(self.network, name="edge")
        self.edge.listen("mem://edge")
        self.phone.connect("edge", "mem://edge")
        assert self.phone.poll(None) == [Up("edge")]
        self.phone.send("edge", sample_hello(self.phone))
        self.name = inbound_name(self.phone.instance)
        assert self.edge.poll(None) == [Up(self.name), Received(self.name, sample_hello(self.phone))]

    def arrived(self) -> list[Message]:
        return [event.message for event in self.edge.poll(None) if isinstance(event, Received)]


def is_ping(seq: int) -> Callable[[Message], bool]:
    return lambda message: isinstance(message, Ping) and message.seq == seq


def test_dropped_messages_vanish_and_are_recorded() -> None:
    world = World()
    world.faults.drop(is_ping(1))
    assert all(world.phone.send("edge", Ping(seq, 0)) for seq in (0, 1, 2, 1))
    assert world.arrived() == [Ping(0, 0), Ping(2, 0), Ping(1, 0)]
    assert world.faults.dropped == [Ping(1, 0)]


def test_delays_pass_on_the_virtual_clock_and_keep_order() -> None:
    world = World()
    world.faults.delay("phone", "edge", 1.0)
    world.phone.send("edge", Ping(1, 0))
    world.faults.delay("phone", "edge", 0.1)
    world.phone.send("edge", Ping(2, 0))
    world.clock.advance(0.5)
    assert world.arrived() == []
    world.clock.advance(0.5)
    assert world.arrived() == [Ping(1, 0), Ping(2, 0)]
    with pytest.raises(InternalError):
        world.clock.advance(-1)


def test_a_partition_swallows_silently_until_healed() -> None:
    world = World()
    world.faults.partition("phone", "edge")
    assert world.phone.send("edge", Ping(1, 0))
    assert world.edge.send(world.name, Ping(2, 0))
    assert world.edge.poll(None) == []
    assert world.phone.poll(None) == []
    world.phone.sever("edge", "the link is gone")
    assert world.phone.poll(None) == [Down("edge", "the link is gone")]
    assert world.edge.poll(None) == [Down(world.name, "the link is gone")]
    assert world.phone.poll(None) == []
    world.faults.heal("edge", "phone")
    assert world.phone.poll(None) == [Up("edge")]


def test_a_killed_peer_takes_its_last_words_along() -> None:
    world = World()
    world.phone.send("edge", Ping(1, 0))
    kill(world.phone)
    assert [type(event) for event in world.edge.poll(None)] == [Down]


def test_a_closed_peer_is_still_heard() -> None:
    world = World()
    world.phone.send("edge", Ping(1, 0))
    world.phone.close()
    assert [type(event) for event in world.edge.poll(None)] == [Received, Down]


def test_bad_addresses_and_names_are_refused() -> None:
    world = World()
    other = MemoryChannel(world.network)
    for address in ("mem://edge", "mem://", "tcp://127.0.0.1:1"):
        with pytest.raises(ConfigError, match="address"):
            other.listen(address)
    for peer, address in (("x", "mem://*"), ("x", "edge"), ("in:x", "mem://edge")):
        with pytest.raises(ConfigError):
            other.connect(peer, address)
    other.close()
    with pytest.raises(InternalError, match="closed"):
        other.poll(0.0)


def test_withdraw_takes_back_only_what_the_request_queued() -> None:
    world = World()
    for rid in (1, 2, 1):
        world.phone.send("edge", sample_open(0, rid=rid))
    assert world.phone.withdraw("edge", "s", 1) == 2
    assert world.arrived() == [sample_open(0, rid=2)]
    assert world.phone.backlog_bytes("edge") == 0
