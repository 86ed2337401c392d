"""Credit and limits to the microsecond: the memory channel on a clock that stands still."""

from dataclasses import dataclass, field

import pytest

from flagsplit.transport.channel import Acked, ChannelEvent, ChannelOptions, Down, Received, Up, Violated, inbound_name
from flagsplit.transport.memory import MemoryChannel, MemoryNetwork
from flagsplit.transport.messages import VERSION, Chunk, Credit, Message, Ping, Welcome
from flagsplit.transport.tensors import chunks_of
from flagsplit.transport.testing import Faults, VirtualClock, sample_hello, sample_open


@dataclass
class World:
    """A phone and an edge worker after Hello and Welcome."""

    options: ChannelOptions = field(default_factory=lambda: ChannelOptions(window_bytes=10_000))
    phone_options: ChannelOptions | None = None

    def __post_init__(self) -> None:
        self.clock, self.faults = VirtualClock(), Faults()
        self.network = MemoryNetwork(policy=self.faults, clock=self.clock)
        self.phone = MemoryChannel(self.network, name="phone", options=self.phone_options or self.options)
        self.edge = MemoryChannel(self.network, name="edge", options=self.options)
        self.edge.listen("mem://edge")
        self.phone.connect("edge", "mem://edge")
        self.name = inbound_name(self.phone.instance)
        self.phone.poll(None)
        self.greet()

    def greet(self) -> None:
        self.phone.send("edge", sample_hello(self.phone))
        self.edge.poll(None)
        self.edge.send(self.name, Welcome(VERSION, self.edge.instance, 0, "sha256:0", "edge", 1 << 20, 1 << 20))
        assert [type(event) for event in self.phone.poll(None)] == [Received]

    def at(self, now_s: float) -> tuple[list[ChannelEvent], list[ChannelEvent]]:
        """Move the clock; what the phone and the edge then see."""
        self.clock.advance(now_s - self.clock.now_s())
        edge = self.edge.poll(None)
        return self.phone.poll(None), edge


def chunks(count: int, size_bytes: int = 1000) -> list[Message]:
    return list(chunks_of(sample_open(count * size_bytes), [bytes(count * size_bytes)], size_bytes))


def came(events: list[ChannelEvent]) -> int:
    return sum(isinstance(event, Received) and isinstance(event.message, Chunk) for event in events)


def test_a_little_is_acknowledged_once_after_the_delay() -> None:
    world = World()
    for chunk in chunks(2):
        world.phone.send("edge", chunk)
    assert came(world.at(1.0)[1]) == 2
    assert world.at(1.009) == ([], [])
    assert world.at(1.010) == ([Acked("edge", 2000, 0, 0.010)], [])
    assert world.at(9.0) == ([], [])


def test_the_delay_does_not_count_the_way() -> None:
    world = World()
    world.faults.delay("phone", "edge", 0.030)
    world.faults.delay("edge", "phone", 0.005)
    for chunk in chunks(20):
        world.phone.send("edge", chunk)
    assert came(world.at(0.029)[1]) == 0
    assert came(world.at(0.030)[1]) == 10
    world.clock.advance(0.002)  # the edge is busy with what it took
    assert world.at(0.032) == ([], [])
    acked = world.at(0.037)[0]
    assert acked == [Acked("edge", 10_000, 10_000, 0.002)]
    assert came(world.at(0.066)[1]) == 0
    assert came(world.at(0.067)[1]) == 10


def test_requests_and_answers_cost_one_credit_each_way_per_delay() -> None:
    world = World(ChannelOptions())
    said = 0
    for millisecond in range(200):
        world.phone.send("edge", chunks(1, 4096)[0])
        world.edge.send(world.name, chunks(1, 4096)[0])
        phone, edge = world.at(1.0 + millisecond / 1000)
        assert came(phone) == came(edge) == 1
        said += sum(isinstance(event, Acked) for event in phone + edge)
    assert 30 <= said <= 40


def test_what_is_lost_costs_no_credit_and_credit_that_is_lost_is_said_again() -> None:
    world = World()
    world.faults.drop(lambda message: isinstance(message, Chunk), count=50)
    world.faults.drop(lambda message: isinstance(message, Credit), count=3)
    for chunk in chunks(80):
        assert world.phone.send("edge", chunk)
    total = sum(came(world.at(1.0 + step / 100)[1]) for step in range(30))
    assert total == 30
    assert world.phone.backlog_bytes("edge") == 0


def test_a_rate_of_bytes_slows_a_peer_with_credit() -> None:
    world = World(ChannelOptions(window_bytes=1 << 20, max_data_bytes_per_s=1 << 20))
    for chunk in chunks(64, 1 << 18):
        world.phone.send("edge", chunk)
    arrived, events = [], []
    for step in range(1600):
        phone, edge = world.at(step / 100)
        arrived += [step / 100] * came(edge)
        events += [*phone, *edge]
    assert len(arrived) == 64
    # 16 MiB: 2 at once, and a window on the way; the rest at the rate.
    assert 12.0 < arrived[-1] <= 14.1
    assert not any(isinstance(event, Violated | Down) for event in events)


def test_a_rate_of_bytes_cuts_a_peer_without_credit() -> None:
    off = ChannelOptions(window_bytes=0, max_data_bytes_per_s=1 << 20)
    world = World(off)
    for chunk in chunks(16, 1 << 18):
        world.phone.send("edge", chunk)
    _, edge = world.at(0.0)
    assert came(edge) == 8
    assert [type(event) for event in edge[-2:]] == [Violated, Down]


def test_too_many_messages_and_hellos_are_cut() -> None:
    world = World(ChannelOptions(max_messages_per_s=10))
    for number in range(20):
        world.phone.send("edge", Ping(number, 0))
    assert [type(event) for event in world.at(0.0)[1]] == [*[Received] * 19, Violated, Down]
    world = World(ChannelOptions(max_hellos_per_s=0.5))
    for _ in range(2):
        world.phone.send("edge", sample_hello(world.phone))
    assert [type(event) for event in world.at(0.0)[1]] == [Received, Violated, Down]


def test_a_full_listener_refuses_the_newest_and_takes_it_later() -> None:
    world = World(ChannelOptions(max_inbound_connections=1))
    other = MemoryChannel(world.network, name="other")
    other.connect("edge", "mem://edge")
    (down,) = other.poll(None)
    assert isinstance(down, Down)
    assert "all 1 connections of this listener are taken" in down.reason
    assert other.poll(None) == []
    world.phone.close()
    assert other.poll(None) == [Up("edge")]


@pytest.mark.parametrize("paused", [False, True])
def test_pausing_before_the_welcome_opens_with_the_least(paused: bool) -> None:
    world = World()
    world.phone.sever("edge", "a test")
    world.phone.poll(None)
    world.edge.poll(None)
    world.phone.poll(None)
    world.phone.send("edge", sample_hello(world.phone))
    world.edge.poll(None)
    world.edge.pause(world.name, paused)
    world.edge.send(world.name, Welcome(VERSION, world.edge.instance, 0, "sha256:0", "edge", 1 << 20, 1 << 20))
    (welcome,) = world.phone.poll(None)
    assert isinstance(welcome, Received)
    assert isinstance(welcome.message, Welcome)
    assert welcome.message.credit_bytes == (1 if paused else 10_000)
    for chunk in chunks(20):
        world.phone.send("edge", chunk)
    assert came(world.at(1.0)[1]) == (1 if paused else 10)


class Pipe:
    """A link of 500 Mbit/s and 30 ms each way; what is sent waits for what was sent before."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.free_s: dict[str, float] = {}

    def reachable(self, source: str, target: str) -> bool:
        return True

    def transit_s(self, source: str, target: str, message: Message) -> float:
        now_s = self.clock.now_s()
        size_bytes = len(message.payload) if isinstance(message, Chunk) else 64
        self.free_s[source] = max(now_s, self.free_s.get(source, 0.0)) + size_bytes * 8 / 500e6
        return self.free_s[source] - now_s + 0.030


def test_the_default_window_keeps_a_long_fat_link_full() -> None:
    world = World(ChannelOptions())
    world.network.policy = Pipe(world.clock)
    sent = chunks(128, 1 << 18)
    for chunk in sent:
        assert world.phone.send("edge", chunk)
    arrived, step = 0, 0
    while arrived < len(sent):
        step += 1
        assert step < 2000
        arrived += came(world.at(step / 1000)[1])
    alone_s = len(sent) * (1 << 18) * 8 / 500e6 + 0.030
    assert step / 1000 < 1.02 * alone_s
