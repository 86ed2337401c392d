"""Every kind of event, made to happen to a link with a real server behind it."""

import queue
import random
import socket
import threading
import time
from contextlib import ExitStack

import pytest
from tests.transport.emulation.live import (
    Handler,
    check_trip,
    client,
    count,
    echo,
    exchange,
    read,
    round_trip_s,
    server,
    wait_until,
)

from flagsplit.transport.emulation import (
    AnyEvent,
    BringUp,
    Corrupt,
    CutAfter,
    Drop,
    HalfClose,
    Heal,
    LinkShape,
    Partition,
    Profile,
    Reset,
    Script,
    Shape,
    ShapingProxy,
    Stall,
    Step,
    TakeDown,
    emulated_link,
)

SOON_S = 0.05
PATIENCE_S = 10.0


class Link:
    """A link on which a script is played, and what was done to it so far."""

    def __init__(self, stack: ExitStack, handler: Handler, *events: AnyEvent, seed: int = 0) -> None:
        self._told: queue.Queue[Step] = queue.Queue()
        port = stack.enter_context(server(handler))
        made = emulated_link(f"tcp://127.0.0.1:{port}", Script(events), seed, told=self._told.put)
        self.proxy = stack.enter_context(made)

    def next(self) -> Step:
        """Wait until the next step is done."""
        return self._told.get(timeout=PATIENCE_S)


def is_silent(connected: socket.socket, wait_s: float = 0.1) -> bool:
    connected.settimeout(wait_s)
    try:
        connected.recv(1)
    except TimeoutError:
        return True
    finally:
        connected.settimeout(PATIENCE_S)
    return False


def is_reset(connected: socket.socket) -> bool:
    """Whether it is reset before anything comes."""
    try:
        connected.sendall(b"ping")
        return not read(connected, 4)
    except (ConnectionResetError, BrokenPipeError):
        return True


@pytest.mark.slow
def test_shapes_and_profiles(stack: ExitStack) -> None:
    link = Link(stack, echo, Shape(0.0, link="1gbit/20ms"), Profile(0.5, name="lte"), Shape(0.9, link="1gbit/0ms"))
    connected = client(stack, link.proxy)
    assert link.next().at_s == 0
    assert round_trip_s(connected) >= 0.02
    link.next()
    assert link.proxy.state.up == LinkShape(2.5e6, 0.025, 0.008, 0.005)
    assert round_trip_s(connected) >= 0.05
    link.next()
    check_trip(connected, 0.0)


@pytest.mark.parametrize("way", ["up", "down"])
def test_stall(stack: ExitStack, way: str) -> None:
    """One direction stands still; what was sent comes when it goes on, and new connections are let in."""
    stall = Stall(0, way="up", for_s=0.2) if way == "up" else Stall(0, way="down", for_s=0.2)
    link = Link(stack, echo, stall)
    connected, other = client(stack, link.proxy), client(stack, link.proxy)
    connected.sendall(b"one")
    assert is_silent(connected)
    link.next()
    assert link.next().at_s == pytest.approx(0.2)
    assert read(connected, 3) == b"one"
    round_trip_s(other)
    up, down = link.proxy.carried_bytes
    assert up == down == 7


def test_a_stall_is_of_one_direction(stack: ExitStack) -> None:
    """What is on its way back arrives while nothing goes up."""
    proceed = threading.Event()

    def answer_later(connected: socket.socket) -> None:
        connected.recv(4)
        proceed.wait(PATIENCE_S)
        connected.sendall(b"answer")
        connected.recv(1)

    with ShapingProxy("127.0.0.1", stack.enter_context(server(answer_later)), LinkShape(1e9)) as proxy:
        connected = client(stack, proxy)
        connected.sendall(b"ping")
        wait_until(lambda: proxy.carried_bytes[0] == 4)
        proxy.stall("up")
        assert proxy.state.faults == ("up stalled",)
        proceed.set()
        assert read(connected, 6) == b"answer"


def test_partition(stack: ExitStack) -> None:
    """Nothing moves, nobody is told, new connections hang; afterwards all goes on."""
    link = Link(stack, echo, Partition(SOON_S), Heal(0.2))
    connected = client(stack, link.proxy)
    round_trip_s(connected)
    link.next()
    assert link.proxy.state.faults == ("partitioned",)
    other = client(stack, link.proxy)
    for each in (connected, other):
        each.sendall(b"late")
    assert is_silent(connected, 0.05)
    assert is_silent(other, 0.05)
    assert link.proxy.state.connections == 1
    assert link.next().event == Heal(0.2)
    assert read(connected, 4) == read(other, 4) == b"late"


def test_reset(stack: ExitStack) -> None:
    link = Link(stack, echo, Reset(SOON_S))
    connected = client(stack, link.proxy)
    link.next()
    assert is_reset(connected)
    round_trip_s(client(stack, link.proxy))


def test_down_and_up(stack: ExitStack) -> None:
    link = Link(stack, echo, TakeDown(SOON_S, for_s=0.1), TakeDown(0.17), BringUp(0.19))
    connected = client(stack, link.proxy)
    round_trip_s(connected)
    link.next()
    assert is_reset(connected)
    assert reset_on_arrival(stack, link.proxy)
    for _ in range(3):
        link.next()
    assert link.proxy.state.faults == ()
    round_trip_s(client(stack, link.proxy))


def reset_on_arrival(stack: ExitStack, proxy: ShapingProxy) -> bool:
    try:
        return is_reset(client(stack, proxy))
    except ConnectionResetError:  # the proxy was quick
        return True


def test_drop(stack: ExitStack) -> None:
    """Those connections that the seed names, and no others."""
    link = Link(stack, echo, Drop(0, percent=40), seed=7)
    draws = random.Random("7 connections")
    expected = [draws.random() < 0.4 for _ in range(30)]
    assert [reset_on_arrival(stack, link.proxy) for _ in expected] == expected
    assert link.proxy.state.faults == ("drops 0.4 of new connections",)


def test_half_close_up(stack: ExitStack) -> None:
    """The server hears the end and can still answer; what comes later is not carried."""
    link = Link(stack, count, HalfClose(0.1, way="up"))
    connected = client(stack, link.proxy)
    connected.sendall(b"12345")
    link.next()
    connected.sendall(b"678")
    assert read(connected, 2) == b"5\n"


def test_half_close_down(stack: ExitStack) -> None:
    """The client hears the end, and what it says still arrives."""
    heard: queue.Queue[bytes] = queue.Queue()

    def listen(connected: socket.socket) -> None:
        while data := connected.recv(100):
            heard.put(data)

    link = Link(stack, listen, HalfClose(SOON_S, way="down"))
    connected = client(stack, link.proxy)
    connected.sendall(b"one")
    assert heard.get(timeout=PATIENCE_S) == b"one"
    link.next()
    assert connected.recv(1) == b""
    connected.sendall(b"two")
    assert heard.get(timeout=PATIENCE_S) == b"two"


@pytest.mark.parametrize("cut", [0, 1, 1448, 100_000])
def test_cut_after_up(stack: ExitStack, cut: int) -> None:
    """The server gets that many bytes and then a reset, and so does the client."""
    heard: queue.Queue[int] = queue.Queue()

    def listen(connected: socket.socket) -> None:
        total = 0
        try:
            while data := connected.recv(65536):
                total += len(data)
        except ConnectionResetError:
            heard.put(total)

    link = Link(stack, listen, CutAfter(0, way="up", bytes=cut))
    connected = client(stack, link.proxy)
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        drip(connected)
    assert heard.get(timeout=PATIENCE_S) == cut
    assert link.proxy.carried_bytes[0] == cut
    client(stack, link.proxy).sendall(b"the next one lives")
    wait_until(lambda: link.proxy.carried_bytes[0] == cut + 18)


def drip(connected: socket.socket) -> None:
    for _ in range(1000):
        connected.sendall(bytes(1000))
        time.sleep(0.0005)


def test_cut_after_down(stack: ExitStack) -> None:
    link = Link(stack, echo, CutAfter(0, way="down", bytes=6))
    connected = client(stack, link.proxy)
    connected.sendall(b"ping")
    assert read(connected, 4) == b"ping"
    connected.sendall(b"pong")
    assert read(connected, 2) == b"po"
    with pytest.raises(ConnectionResetError):
        connected.recv(1)


@pytest.mark.parametrize("way", ["up", "down"])
def test_corrupt(stack: ExitStack, way: str) -> None:
    event = Corrupt(0, way="up", byte=70_000) if way == "up" else Corrupt(0, way="down", byte=70_000)
    link = Link(stack, echo, event)
    data = random.Random(1).randbytes(100_000)
    back, _ = exchange(client(stack, link.proxy), data)
    assert [index for index in range(len(data)) if back[index] != data[index]] == [70_000]
    assert back[70_000] == data[70_000] ^ 0xFF
