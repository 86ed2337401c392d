"""Links as they are asked for, with a real server behind them: rates, losses, traces, and what is asked wrongly."""

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
    check_rate,
    client,
    count,
    echo,
    exchange,
    read,
    round_trip_s,
    server,
)

from flagsplit.errors import ConfigError
from flagsplit.transport.emulation import (
    PROFILES,
    LinkProfile,
    LinkShape,
    Player,
    Reset,
    Script,
    ShapingProxy,
    Step,
    emulated_link,
    parse_trace,
)

PATIENCE_S = 10.0


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
