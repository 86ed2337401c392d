"""The HTTP side: /metrics, /healthz, /readyz and /stats of one worker or session, for whoever may reach the port.

It only reads. One request per connection; the head of a request must be here within seconds and is small; a few
connections at a time, others are turned away at once. There are no paths but these four and no files behind them.
There is no encryption and no password: bind it to loopback, or to a network where only the operator is.
"""

import io
import json
import math
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from flagsplit._version import VERSION
from flagsplit.errors import ConfigError

MAX_HEAD_BYTES: Final = 8192
_JSON = "application/json; charset=utf-8"


@dataclass(frozen=True)
class Page:
    """An answer: HTTP status, media type and body."""

    status: int
    kind: str
    body: bytes


def json_page(status: int, data: Mapping[str, Any]) -> Page:
    """A JSON object as an answer; numbers that JSON lacks become null."""
    return Page(status, _JSON, json.dumps(finite(data), ensure_ascii=True).encode() + b"\n")


def finite(value: Any) -> Any:
    """Plain data in which infinities and NaNs are None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return value


@dataclass(frozen=True)
class HttpOptions:
    """Limits of the server.

    Attributes:
        max_connections: at a time; more get 503 and are closed.
        head_s: seconds until the head of a request is here.
        write_s: seconds until an answer is taken.
    """

    max_connections: int = 16
    head_s: float = 5.0
    write_s: float = 10.0


class HttpServer:
    """Serves pages on threads of its own until `close`.

    Args:
        address: HOST:PORT; without a host, 127.0.0.1; port 0 takes a free one.
        pages: by path, what makes the answer; called on the thread of a connection.
        options: limits.

    Attributes:
        url: where it is, such as "http://127.0.0.1:9100".

    Raises:
        ConfigError: the address is malformed or taken.
    """

    def __init__(
        self, address: str, pages: Mapping[str, Callable[[], Page]], options: HttpOptions | None = None
    ) -> None:
        host, port = parse_http_address(address)
        try:
            self._server = _Server(host, port, pages, options or HttpOptions())
        except (OSError, UnicodeError) as error:
            text = getattr(error, "strerror", None) or str(error)
            raise ConfigError(f"cannot serve HTTP at {address}: {text}; name another HOST:PORT") from None
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="flagsplit-http", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """End, together with the connections that are open. A second call does nothing."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._server.hang_up()


def parse_http_address(address: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`, `:PORT` or `[IPv6]:PORT`.

    Raises:
        ConfigError: it is none of these.
    """
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535 or (":" in host and not bracketed):
        raise ConfigError(f"expected HOST:PORT for HTTP, came {address!r}; 127.0.0.1:0 takes a free port")
    return (host[1:-1] if bracketed else host) or "127.0.0.1", int(port)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 16
    allow_reuse_address = True

    def __init__(self, host: str, port: int, pages: Mapping[str, Callable[[], Page]], options: HttpOptions) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.pages = pages
        self.options = options
        self._free = threading.BoundedSemaphore(options.max_connections)
        self._connections: set[socket.socket] = set()
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        # HTTPServer would look its own name up, which can take seconds without a name server.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[0], self.server_address[1]  # type: ignore[assignment]

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            request.settimeout(0.1)
            with suppress(OSError):
                request.sendall(b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n")
            self.shutdown_request(request)
            return
        self._connections.add(request)
        try:
            super().process_request(request, client_address)
        except BaseException:  # there is no thread for it
            self._forget(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._forget(request)

    def _forget(self, request: socket.socket) -> None:
        self._connections.discard(request)
        self._free.release()

    def hang_up(self) -> None:
        for connection in tuple(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is the client's affair; nothing is printed."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = f"flagsplit/{VERSION}"
    sys_version = ""
    default_request_version = "HTTP/1.0"

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = io.BytesIO(self._head())
        self.connection.settimeout(self.server.options.write_s)

    def _head(self) -> bytes:
        """The request's head, however slowly it comes, within the time for all of it; empty if it does not come."""
        head, deadline = b"", time.monotonic() + self.server.options.head_s
        while b"\r\n\r\n" not in head and b"\n\n" not in head and len(head) <= MAX_HEAD_BYTES:
            self.connection.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                part = self.connection.recv(2048) if time.monotonic() < deadline else b""
            except OSError:
                return b""
            if not part:
                return b""
            head += part
        return head

    def parse_request(self) -> bool:
        if len(self.rfile.getvalue()) > MAX_HEAD_BYTES:  # type: ignore[attr-defined]
            self.command, self.requestline, self.request_version = "GET", "", "HTTP/1.0"
            self._answer(json_page(431, {"error": f"the head of a request may have {MAX_HEAD_BYTES} bytes"}))
            return False
        if not super().parse_request():
            return False
        self.close_connection = True
        if self.command not in ("GET", "HEAD"):
            self._answer(json_page(405, {"error": "only GET and HEAD"}))
            return False
        return True

    def do_GET(self) -> None:
        make = self.server.pages.get(self.path.partition("?")[0])
        if make is None:
            self._answer(json_page(404, {"error": "no such page", "pages": sorted(self.server.pages)}))
            return
        try:
            page = make()
        except Exception as error:  # noqa: BLE001 - whoever looks must not be able to end the thread with a traceback
            page = json_page(500, {"error": type(error).__name__})
        self._answer(page)

    do_HEAD = do_GET  # noqa: N815 - as above

    def _answer(self, page: Page) -> None:
        self.send_response(page.status)
        for name, value in (
            ("Content-Type", page.kind),
            ("Content-Length", str(len(page.body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("Connection", "close"),
        ):
            self.send_header(name, value)
        if page.status == 405:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(page.body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """For what the base class finds wrong: its page would be HTML with the request in it."""
        self._answer(json_page(code, {"error": HTTPStatus(code).phrase}))

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the base class calls it so
        """Say nothing: scrapes come every few seconds."""
