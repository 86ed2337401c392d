"""The HTTP server against real sockets: what it answers, and what it does not let anybody do to it."""

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from flagsplit.errors import ConfigError
from flagsplit.runtime.telemetry.http import (
    MAX_HEAD_BYTES,
    HttpOptions,
    HttpServer,
    Page,
    json_page,
    parse_http_address,
)

OPTIONS = HttpOptions(max_connections=3, head_s=0.3, write_s=0.5)


def broken() -> Page:
    raise ZeroDivisionError("a secret")


PAGES = {
    "/stats": lambda: json_page(200, {"x": float("nan"), "y": [1, float("inf")]}),
    "/broken": broken,
    "/large": lambda: Page(200, "text/plain", b"x" * (32 << 20)),
}


@pytest.fixture
def server() -> Iterator[HttpServer]:
    found = HttpServer("127.0.0.1:0", PAGES, OPTIONS)
    yield found
    found.close()
    assert not [each for each in threading.enumerate() if each.name == "flagsplit-http"]


def port_of(server: HttpServer) -> int:
    return int(server.url.rpartition(":")[2])


def dial(server: HttpServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port_of(server)), timeout=5)


def ask(server: HttpServer, raw: bytes) -> tuple[int, bytes]:
    """Status and the rest of the answer to raw bytes; status 0 if there was none."""
    with dial(server) as connection:
        connection.sendall(raw)
        return answer_of(connection)


def answer_of(connection: socket.socket) -> tuple[int, bytes]:
    found = bytearray()
    try:
        while part := connection.recv(1 << 16):
            found += part
    except ConnectionResetError:
        pass
    head, _, body = bytes(found).partition(b"\r\n\r\n")
    return (int(head.split()[1]), body) if head else (0, b"")


def get(server: HttpServer, path: str) -> tuple[int, bytes]:
    return ask(server, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())


def test_pages(server: HttpServer) -> None:
    with urllib.request.urlopen(f"{server.url}/stats?x=1", timeout=5) as answer:
        assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Server"].startswith("flagsplit/")
        assert json.load(answer) == {"x": None, "y": [1, None]}
    status, body = get(server, "/broken")
    assert (status, json.loads(body)) == (500, {"error": "ZeroDivisionError"})
    assert ask(server, b"HEAD /stats HTTP/1.0\r\n\r\n") == (200, b"")


@pytest.mark.parametrize("path", ["/", "/etc/passwd", "/../../etc/passwd", "/stats/", "/%2e%2e/stats"])
def test_there_is_nothing_behind_other_paths(server: HttpServer, path: str) -> None:
    status, body = get(server, path)
    assert status == 404
    assert json.loads(body)["pages"] == ["/broken", "/large", "/stats"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "NONSENSE"])
def test_other_methods(server: HttpServer, method: str) -> None:
    assert ask(server, f"{method} /stats HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())[0] == 405


def test_one_request_per_connection(server: HttpServer) -> None:
    status, body = ask(server, b"GET /stats HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n" * 2)
    assert status == 200
    assert body.count(b"HTTP/1") == 0


@pytest.mark.parametrize(
    "raw",
    [
        b"GET /stats HTTP/1.1\r\n" + b"X: y\r\n" * MAX_HEAD_BYTES,
        b"GET /" + b"x" * (2 * MAX_HEAD_BYTES),
        b"x" * (1 << 20),
    ],
)
def test_large_heads(server: HttpServer, raw: bytes) -> None:
    with dial(server) as connection:
        try:
            connection.sendall(raw)
            status = answer_of(connection)[0]
        except OSError:
            status = 0  # it did not even take all of it
    assert status in (0, 431)
    assert get(server, "/stats")[0] == 200


@pytest.mark.parametrize(
    "raw", [b"\r\n\r\n", b"GET\r\n\r\n", b"\0\xff\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"a b c d\n\n"]
)
def test_nonsense(server: HttpServer, raw: bytes) -> None:
    assert ask(server, raw)[0] in (0, 400, 404, 405, 505)
    assert get(server, "/stats")[0] == 200


@pytest.mark.slow
def test_slow_heads_are_cut_off(server: HttpServer) -> None:
    """A byte now and then does not keep a connection: all of the head must come in time."""
    started = time.monotonic()
    with dial(server) as connection:
        cut = False
        for byte in b"GET /stats HTTP/1.1\r\nX-Slow: " + b"y" * 100:
            try:
                connection.sendall(bytes([byte]))
            except OSError:
                cut = True
                break
            time.sleep(0.05)
        assert cut
    assert time.monotonic() - started < 3
    with dial(server) as silent:
        assert answer_of(silent) == (0, b"")


@pytest.mark.slow
def test_readers_that_do_not_read_are_cut_off(server: HttpServer) -> None:
    """They take all places, and lose them."""
    connections = [dial(server) for _ in range(OPTIONS.max_connections)]
    for each in connections:
        each.sendall(b"GET /large HTTP/1.0\r\n\r\n")
    deadline = time.monotonic() + 10
    while get(server, "/stats")[0] != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for each in connections:
        each.close()


@pytest.mark.slow
def test_too_many_connections_are_turned_away(server: HttpServer) -> None:
    idle = [dial(server) for _ in range(OPTIONS.max_connections)]
    try:
        deadline = time.monotonic() + 5
        while get(server, "/stats")[0] == 200:
            assert time.monotonic() < deadline
        with dial(server) as turned_away:
            assert answer_of(turned_away)[0] == 503
    finally:
        for each in idle:
            each.close()
    deadline = time.monotonic() + 5
    while get(server, "/stats")[0] != 200:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_closing_ends_open_connections() -> None:
    server = HttpServer(":0", PAGES)
    assert server.url.startswith("http://127.0.0.1:")
    with dial(server) as connection:
        connection.sendall(b"GET /st")
        time.sleep(0.05)
        started = time.monotonic()
        server.close()
        assert answer_of(connection) == (0, b"")
        assert time.monotonic() - started < 2
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{server.url}/stats", timeout=1)
    server.close()


@pytest.mark.parametrize(
    "address", ["", "9100", "host", "host:", ":x", "host:99999", "::1:9100", "[::1]", "a:-1", "host:٣"]
)
def test_wrong_addresses(address: str) -> None:
    with pytest.raises(ConfigError, match="expected HOST:PORT"):
        parse_http_address(address)


def test_addresses(server: HttpServer) -> None:
    assert parse_http_address("[::1]:80") == ("::1", 80)
    assert parse_http_address(":0") == ("127.0.0.1", 0)
    for taken in (f"127.0.0.1:{port_of(server)}", "192.0.2.1:0", "no.such.host.invalid:0"):
        with pytest.raises(ConfigError, match="cannot serve HTTP"):
            HttpServer(taken, PAGES)


def test_a_host_that_is_out_of_threads_is_answered_again_when_it_has_some(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for _ in range(2 * OPTIONS.max_connections):
            with dial(server) as connection:
                assert connection.recv(100) == b""
    with urllib.request.urlopen(f"{server.url}/stats", timeout=5) as answer:
        assert answer.status == 200
