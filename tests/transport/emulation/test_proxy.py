"""The shaping proxy on real sockets: rates and delays within what a busy machine allows, every byte in its place."""

import random
import socket
import struct
import threading
import time
from contextlib import ExitStack

import pytest
from tests.transport.emulation.live import (
    FAST,
    check_rate,
    check_trip,
    client,
    count,
    echo,
    exchange,
    read,
    round_trip_s,
    through,
)

from flagsplit.errors import ConfigError
from flagsplit.transport.channel import Received, Up
from flagsplit.transport.emulation import LinkShape, ShapingProxy
from flagsplit.transport.security import NO_SECURITY
from flagsplit.transport.testing import sample_hello
from flagsplit.transport.zeromq import ZmqChannel


@pytest.mark.slow
def test_rate_and_delay(stack: ExitStack) -> None:
    """20 Mbit/s and 5 ms each way, as asked."""
    proxy = through(stack, echo, LinkShape(2.5e6, 0.005))
    connected = client(stack, proxy)
    check_trip(connected, 0.01)
    data = random.Random(0).randbytes(750_000)

    def ask() -> float:
        back, took_s = exchange(connected, data)
        assert back == data
        return took_s - 0.01

    check_rate(ask, len(data), 2.5e6)


@pytest.mark.slow
def test_each_direction_has_its_own_shape_and_can_change(stack: ExitStack) -> None:
    proxy = through(stack, echo, LinkShape(5e6), LinkShape(1e6, 0.02))
    connected = client(stack, proxy)
    data = random.Random(1).randbytes(200_000)
    check_trip(connected, 0.02)
    check_rate(lambda: exchange(connected, data)[1] - 0.02, len(data), 1e6)
    proxy.set_shapes(LinkShape(1e6, 0.03), LinkShape(50e6, 0.03))
    check_trip(connected, 0.06)
    check_rate(lambda: exchange(connected, data)[1] - 0.06, len(data), 1e6)
    up, down = proxy.carried_bytes
    assert up == down >= 2 * len(data)


def test_many_connections(stack: ExitStack) -> None:
    proxy = through(stack, echo, LinkShape(50e6, 0.001))
    clients = [client(stack, proxy) for _ in range(60)]
    for number, connected in enumerate(clients):
        connected.sendall(b"%4d" % number * 100)
    for number, connected in enumerate(clients):
        assert read(connected, 400) == b"%4d" % number * 100


@pytest.mark.slow
def test_connections_share_the_rate_in_turns(stack: ExitStack) -> None:
    """Ten at once take ten times as long, and none is done long before the others."""
    proxy = through(stack, echo, LinkShape(2.5e6, 0.002))
    data = {number: random.Random(number).randbytes(80_000) for number in range(10)}
    clients = [client(stack, proxy) for _ in data]
    shares: list[float] = []

    def ask() -> float:
        ends: dict[int, float] = {}
        echoes: dict[int, bytes] = {}
        together = threading.Barrier(len(clients))
        started = time.monotonic()

        def ask_one(number: int) -> None:
            together.wait()
            echoes[number], _ = exchange(clients[number], data[number])
            ends[number] = time.monotonic() - started

        threads = [threading.Thread(target=ask_one, args=(number,)) for number in data]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert echoes == data
        shares.append(min(ends.values()) / max(ends.values()))
        return max(ends.values()) - 0.004

    check_rate(ask, 10 * 80_000, 2.5e6)
    assert max(shares) > 0.5


def test_the_sender_feels_the_link(stack: ExitStack) -> None:
    """Beside what sockets buffer, no more than the link takes leaves the sender."""
    proxy = through(stack, echo, LinkShape(10_000))
    connected = client(stack, proxy)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    connected.settimeout(0.1)
    with pytest.raises(TimeoutError):
        connected.sendall(bytes(4 << 20))


def test_half_close(stack: ExitStack) -> None:
    """What was sent before the end arrives, and the answer still comes back."""
    proxy = through(stack, count, LinkShape(20e6, 0.01))
    connected = client(stack, proxy)
    connected.sendall(bytes(123_456))
    connected.shutdown(socket.SHUT_WR)
    assert read(connected, 7) == b"123456\n"
    assert connected.recv(1) == b""


def test_stall_and_resume(stack: ExitStack) -> None:
    proxy = through(stack, echo, LinkShape(1e9, 0.001))
    connected = client(stack, proxy)
    round_trip_s(connected)
    proxy.stall()
    connected.sendall(b"later")
    connected.settimeout(0.1)
    with pytest.raises(TimeoutError):
        connected.recv(5)
    connected.settimeout(10)
    proxy.resume()
    assert read(connected, 5) == b"later"


def test_cut_resets_and_lets_in_again(stack: ExitStack) -> None:
    proxy = through(stack, echo, FAST)
    connected = client(stack, proxy)
    round_trip_s(connected)
    proxy.cut()
    with pytest.raises(ConnectionResetError):
        connected.recv(1)
    round_trip_s(client(stack, proxy))


def test_a_reset_is_passed_on(stack: ExitStack) -> None:

    def break_off(connected: socket.socket) -> None:
        assert connected.recv(4) == b"ping"
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    proxy = through(stack, break_off, FAST)
    connected = client(stack, proxy)
    connected.sendall(b"ping")
    with pytest.raises(ConnectionResetError):
        connected.recv(1)


def test_the_target_is_down(stack: ExitStack) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    proxy = stack.enter_context(ShapingProxy("127.0.0.1", port, FAST))
    with pytest.raises(ConnectionResetError):  # from either of the two: the proxy may be quick
        client(stack, proxy).recv(1)


def test_closing_twice_and_using_it_afterwards() -> None:
    proxy = ShapingProxy("127.0.0.1", 9, FAST)
    proxy.close()
    proxy.close()
    proxy.cut()
    proxy.set_shapes(FAST)
    assert proxy.carried_bytes == (0, 0)


def test_an_unknown_target() -> None:
    with pytest.raises(ConfigError, match=r"^expected a host to forward to, came 'no\.such\.host\.invalid'"):
        ShapingProxy("no.such.host.invalid", 1, FAST)


def test_channels_go_through(stack: ExitStack) -> None:
    """The real thing: ZeroMQ over an emulated link."""
    near, far = (ZmqChannel(security=NO_SECURITY) for _ in range(2))
    stack.callback(near.close)
    stack.callback(far.close)
    port = int(far.listen("tcp://127.0.0.1:0").rpartition(":")[2])
    proxy = stack.enter_context(ShapingProxy("127.0.0.1", port, LinkShape(1e6, 0.005)))
    near.connect("far", proxy.address)
    said: list[object] = []
    give_up = time.monotonic() + 10
    while not any(isinstance(event, Received) for event in said):
        assert time.monotonic() < give_up
        for event in near.poll(0.01):
            if isinstance(event, Up):
                near.send("far", sample_hello(near))
        said += far.poll(0.01)
    assert [event.message for event in said if isinstance(event, Received)] == [sample_hello(near)]
