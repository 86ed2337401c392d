"""Real servers behind a proxy, clients in front of it, and what may be asked of its rates and delays."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from flagsplit.transport.emulation import LinkShape, ShapingProxy

FAST = LinkShape(1e9)
Handler = Callable[[socket.socket], None]


def echo(client: socket.socket) -> None:
    while data := client.recv(65536):
        client.sendall(data)


def count(client: socket.socket) -> None:
    """Read to the end, then say how much it was."""
    total = 0
    while data := client.recv(65536):
        total += len(data)
    client.sendall(f"{total}\n".encode())


@contextmanager
def server(handler: Handler) -> Iterator[int]:
    """A server on threads; its port."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    threads: list[threading.Thread] = []

    def handle(client: socket.socket) -> None:
        with client:
            try:
                handler(client)
            except OSError:
                return

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=handle, args=(client,)))
            threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join()
        for thread in threads:
            thread.join()


def through(stack: ExitStack, handler: Handler, up: LinkShape, down: LinkShape | None = None) -> ShapingProxy:
    """A proxy to a new server."""
    port = stack.enter_context(server(handler))
    return stack.enter_context(ShapingProxy("127.0.0.1", port, up, down))


def client(stack: ExitStack, proxy: ShapingProxy) -> socket.socket:
    connected = stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port), timeout=10))
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connected


def read(connected: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = connected.recv(size - len(data))
        assert piece, "the connection ended early"
        data += piece
    return data


def round_trip_s(connected: socket.socket) -> float:
    started = time.monotonic()
    connected.sendall(b"ping")
    read(connected, 4)
    return time.monotonic() - started


def exchange(connected: socket.socket, data: bytes) -> tuple[bytes, float]:
    """Send and read the echo at the same time; the echo and the seconds."""
    started = time.monotonic()
    sender = threading.Thread(target=connected.sendall, args=(data,))
    sender.start()
    back = read(connected, len(data))
    sender.join()
    return back, time.monotonic() - started


def check_trip(connected: socket.socket, asked_s: float) -> None:
    """No round trip is shorter than asked; a busy machine makes some longer, not all."""
    trips = [round_trip_s(connected) for _ in range(9)]
    assert asked_s <= min(trips) < asked_s + 0.03


def check_rate(ask: Callable[[], float], size: int, bytes_per_s: float) -> None:
    """The rate is within 15 % of what was asked; a busy machine makes some tries slower, not each of several.

    `ask` moves so many bytes and gives the seconds that it took, the link's delay left out.
    """
    rates: list[float] = []
    while len(rates) < 10 and max(rates, default=0.0) <= 0.85 * bytes_per_s:
        rates.append(size / ask())
        assert rates[-1] < 1.15 * bytes_per_s
    assert max(rates) > 0.85 * bytes_per_s, rates


def wait_until(holds: Callable[[], bool], patience_s: float = 10.0) -> None:
    """Wait until something holds; fail if it does not come true."""
    deadline = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def check_line(message: str) -> None:
    """An error is one line that a terminal can show."""
    assert message.isprintable()
