"""Every kind of event, made to happen to a link with a real server behind it."""

import queue
import random
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest
from tests.transport.emulation.live import (
    Handler,
    check_rate,
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

from flagsplit.errors import ConfigError
from flagsplit.transport.emulation import (
    PROFILES,
    AnyEvent,
    BringUp,
    Corrupt,
    CutAfter,
    Drop,
    HalfClose,
    Heal,
    LinkProfile,
    LinkShape,
    Partition,
    Player,
    Profile,
    Reset,
    Script,
    Shape,
    ShapingProxy,
    Stall,
    Step,
    TakeDown,
    emulated_link,
    parse_trace,
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


@pytest.mark.slow
@pytest.mark.parametrize("name", PROFILES)
def test_profiles_have_their_rates(stack: ExitStack, name: str) -> None:
    """Without losses and jitter, within 15 %; and no round trip is shorter than asked."""
    up, down = (replace(shape, loss=0.0, jitter_s=0.0) for shape in (PROFILES[name].up, PROFILES[name].down))
    port = stack.enter_context(server(count))
    proxy = stack.enter_context(emulated_link(f"tcp://127.0.0.1:{port}", LinkProfile(name, up, down)))
    data = bytes(int(up.bytes_per_s * 0.4))

    def ask() -> float:
        connected = client(stack, proxy)
        started = time.monotonic()
        connected.sendall(data)
        connected.shutdown(socket.SHUT_WR)
        assert read(connected, len(str(len(data)))) == str(len(data)).encode()
        took_s = time.monotonic() - started - up.delay_s - down.delay_s
        assert took_s > 0
        return took_s

    check_rate(ask, len(data), up.bytes_per_s)


@pytest.mark.slow
def test_a_script_besides_a_profile(stack: ExitStack) -> None:
    port = stack.enter_context(server(echo))
    with emulated_link(f"tcp://127.0.0.1:{port}", "1gbit/20ms", script=Script((Reset(0.3),))) as proxy:
        connected = client(stack, proxy)
        assert round_trip_s(connected) >= 0.02
        with pytest.raises(ConnectionResetError):
            connected.recv(1)


@pytest.mark.slow
def test_a_trace_is_replayed(stack: ExitStack) -> None:
    """In one of a few rounds each part of the trace has its rate, within 15 %, and the outage carries nothing."""
    trace = parse_trace(b"seconds,mbit\n0,8\n0.3,2\n0.6,0\n0.9,16\n")
    seen: queue.Queue[tuple[float, int]] = queue.Queue()
    ready = threading.Event()

    def told(step: Step) -> None:
        if ready.is_set():
            seen.put((time.monotonic(), proxy.carried_bytes[0]))

    def swallow(connected: socket.socket) -> None:
        while connected.recv(1 << 20):
            pass

    port = stack.enter_context(server(swallow))
    with emulated_link(f"tcp://127.0.0.1:{port}", trace, told=told) as proxy:
        ready.set()
        connected = client(stack, proxy)
        sender = threading.Thread(target=send_on, args=(connected,))
        sender.start()
        rates: list[list[float]] = [[], [], [], []]
        began, carried = seen.get(timeout=PATIENCE_S)
        for index in range(1, 13):
            ended, total = seen.get(timeout=PATIENCE_S)
            rates[index % 4].append((total - carried) / (ended - began))
            began, carried = ended, total
    sender.join()
    for found, point in zip(rates, trace.points, strict=True):
        off = min(abs(rate - point.up_bytes_per_s) for rate in found)
        assert off <= max(0.15 * point.up_bytes_per_s, 20_000), (found, point)


def send_on(connected: socket.socket) -> None:
    try:
        for _ in range(10_000):
            connected.sendall(bytes(10_000))
    except OSError:
        return


@pytest.mark.slow
def test_losses_cost_what_the_seed_says(stack: ExitStack) -> None:
    """A busy connection over a lossy link takes as long as the same draws do on made-up time, and loses no byte."""
    shape = LinkShape(2.5e6, 0.005, 0.0, 0.005)
    port = stack.enter_context(server(echo))
    data = random.Random(2).randbytes(1_000_000)
    with emulated_link(f"tcp://127.0.0.1:{port}", LinkProfile("lossy", shape, LinkShape(1e9)), seed=3) as proxy:
        back, took_s = exchange(client(stack, proxy), data)
    assert back == data
    draws = random.Random("3 up")
    stalls = 0
    for _ in range(len(data) // 1448):
        draws.uniform(0, 0)
        stalls += draws.random() < shape.lost(1448)
    assert stalls > 0
    asked_s = len(data) / shape.bytes_per_s + stalls * shape.timeout_s
    assert 0.85 * asked_s < took_s < 1.3 * asked_s + 0.2


@pytest.mark.slow
def test_others_go_on_while_one_waits_for_a_lost_packet(stack: ExitStack) -> None:
    """A loss holds up its own connection only: of many asking once, most do not wait for those that lose something."""
    port = stack.enter_context(server(echo))
    up = LinkShape(1e9, 0.15, 0.0, 0.2)
    with emulated_link(f"tcp://127.0.0.1:{port}", LinkProfile("lossy", up, LinkShape(1e9)), seed=1) as proxy:
        clients = [client(stack, proxy) for _ in range(40)]
        started = time.monotonic()
        for each in clients:
            each.sendall(b"ping")
        took_s = answers_s(clients, started)
        assert proxy.carried_bytes == (160, 160)
    assert max(took_s) >= 0.15 + up.timeout_s
    assert took_s[len(took_s) // 2] < max(took_s) - 0.25


def answers_s(clients: list[socket.socket], started: float) -> list[float]:
    """When each answered, in the order of the answers."""
    waiting, found = set(clients), []
    while waiting:
        ready, _, _ = select.select(waiting, [], [], PATIENCE_S)
        assert ready
        for each in ready:
            assert read(each, 4) == b"ping"
            waiting.remove(each)
            found.append(time.monotonic() - started)
    return found


def test_the_player_ends_in_mid_schedule(stack: ExitStack) -> None:
    def endless() -> Iterator[Step]:
        yield Step(0.0, Reset(0.0))
        yield Step(1e6, Reset(1e6))

    done = threading.Event()
    with ShapingProxy("127.0.0.1", 9, LinkShape(1e9)) as proxy, Player(proxy, endless(), lambda _step: done.set()):
        assert done.wait(PATIENCE_S)


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: emulated_link("ipc:///tmp/x", "lte"), "only TCP can be emulated"),
        (lambda: emulated_link("here", "lte"), "expected tcp://HOST:PORT"),
        (lambda: emulated_link("tcp://127.0.0.1:1", "gsm"), "link 'gsm': expected BW/RTT"),
        (lambda: emulated_link("tcp://127.0.0.1:1", "lte", listen=("192.0.2.1", 0)), "cannot listen at 192.0.2.1:0"),
    ],
)
def test_wrong_links(ask: Callable[[], ExitStack], said: str) -> None:
    with pytest.raises(ConfigError) as raised, ask():
        pass
    assert said in str(raised.value)


def test_shares_to_drop(stack: ExitStack) -> None:
    with ShapingProxy("127.0.0.1", 9, LinkShape(1e9)) as proxy, pytest.raises(ConfigError, match="expected 0 to 1"):
        proxy.drop_new(1.1)
