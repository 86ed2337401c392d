"""Scripts drawn by a seed against a real server: whatever happens to a link, no byte is doubled or out of place."""

import random
import socket
import threading
import time
from contextlib import ExitStack

import pytest
from tests.transport.emulation.live import echo, round_trip_s, server, wait_until

from flagsplit.transport.emulation import (
    AnyEvent,
    CutAfter,
    Drop,
    HalfClose,
    Partition,
    Profile,
    Reset,
    Script,
    Shape,
    Stall,
    TakeDown,
    emulated_link,
)
from flagsplit.transport.emulation.proxy import Way

LENGTH_S = 0.8
WAYS: tuple[Way, ...] = ("up", "down", "both")


def drawn(seed: int) -> Script:
    """Thirty events in under a second, all of which are over by then."""
    draws = random.Random(seed)

    def event() -> AnyEvent:
        at_s, for_s = draws.uniform(0, LENGTH_S - 0.2), draws.uniform(0.005, 0.1)
        way = draws.choice(WAYS)
        kinds: list[AnyEvent] = [
            Shape(at_s, link=draws.choice(["20mbit/2ms/1ms", "200mbit/1ms/0us/1%", "1gbit/0ms"])),
            Profile(at_s, name="5g"),
            Stall(at_s, way=way, for_s=for_s),
            Partition(at_s, for_s=for_s),
            TakeDown(at_s, for_s=for_s / 4),
            Drop(at_s, percent=30, for_s=for_s),
            Reset(at_s),
            HalfClose(at_s, way=way),
            CutAfter(at_s, way=way, bytes=draws.randrange(100_000)),
        ]
        return draws.choice(kinds)

    return Script((*(event() for _ in range(30)), Shape(LENGTH_S, link="1gbit/0ms")))


def talk(port: int, number: int, until: float, wrong: list[str]) -> None:
    """Connect again and again, send what can be told apart, and compare what comes back with it."""
    pattern = random.Random(number).randbytes(1 << 20)
    while time.monotonic() < until:
        came = b""
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connected:
                connected.settimeout(0.3)
                for start in range(0, 200_000, 10_000):
                    connected.sendall(pattern[start : start + 10_000])
                    came += connected.recv(1 << 16)
        except OSError:
            time.sleep(0.005)
        if not pattern.startswith(came):
            wrong.append(f"client {number} got what it did not send, at {len(came)} bytes")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_what_arrives_is_what_was_sent(stack: ExitStack, seed: int) -> None:
    port = stack.enter_context(server(echo))
    wrong: list[str] = []
    with emulated_link(f"tcp://127.0.0.1:{port}", drawn(seed), seed) as proxy:
        until = time.monotonic() + LENGTH_S
        clients = [threading.Thread(target=talk, args=(proxy.port, number, until, wrong)) for number in range(5)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        assert wrong == []
        wait_until(lambda: proxy.state.faults == ())
        assert goes_through(proxy.port)


def goes_through(port: int) -> bool:
    """Whether the link works again; cuts that still wait for their byte take a connection each."""
    for _ in range(40):
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connected:
                connected.sendall(bytes(100_000))
                left = 100_000
                while left and (got := len(connected.recv(left))):
                    left -= got
                return left == 0 and round_trip_s(connected) > 0
        except OSError:
            continue
    return False
