"""The HTTP and WebSocket gateway: OpenAI's pages for whoever is behind it, on a thread of its own.

Here is how it begins and ends; `gateway_app` has the pages. What it needs of a model is in `gateway_backend`.
"""

import asyncio
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

from prometheus_client import CollectorRegistry

from flagsplit.apps.decoder_service.gateway_backend import Backend
from flagsplit.apps.decoder_service.gateway_load import Load
from flagsplit.apps.decoder_service.gateway_log import http_log
from flagsplit.apps.decoder_service.gateway_metrics import GatewayMetrics
from flagsplit.apps.decoder_service.gateway_models import Models
from flagsplit.apps.decoder_service.gateway_settings import GatewaySettings
from flagsplit.errors import ConfigError

_MAX_HEAD_LINE_BYTES = 8190
_BACKLOG = 128
_HANG_UP_S = 0.25
"""For connections to end after requests had their time."""


class Gateway:
    """Serves from the constructor on.

    Args:
        backends: what answers; used on the gateway's event loop only.
        settings: choices.
        registry: where its figures are to be found; by default one of its own.

    Attributes:
        url: where, such as `http://127.0.0.1:8000`.
        metrics: figures of it.

    Raises:
        ConfigError: aiohttp is not installed, the address is taken or open to others, or files of keys cannot be used.
    """

    def __init__(
        self,
        backends: Sequence[Backend],
        settings: GatewaySettings | None = None,
        registry: CollectorRegistry | None = None,
    ) -> None:
        require_aiohttp()
        self._settings = settings or GatewaySettings()
        self._models = Models(backends)
        self._tls = self._settings.tls()
        self._listening = _listen(*self._settings.address())
        self._load = Load(self._settings)
        self.metrics = GatewayMetrics(self._load, registry)
        host, port = self._listening.getsockname()[:2]
        scheme = "http" if self._tls is None else "https"
        self.url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
        self._began: Future[asyncio.AbstractEventLoop] = Future()
        self._end: asyncio.Event | None = None
        self._at_once: asyncio.Event | None = None
        self._finishing: threading.Thread | None = None
        self._thread = threading.Thread(target=self._run, name="flagsplit-gateway", daemon=True)
        self._thread.start()
        try:
            self._loop = self._began.result()
        except BaseException:
            self._thread.join()
            raise

    def call(self, function: Callable[[], Any]) -> None:
        """Call a function on the gateway's event loop, where its backends are used."""
        self._loop.call_soon_threadsafe(function)

    def drain(self) -> None:
        """Turn new requests away from now on; those that are in hand go on."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._turn_away)

    def finish(self, done: Callable[[], None]) -> None:
        """Begin to end, and call `done` when it has ended; `close` waits for that, or makes it happen at once."""

        def work() -> None:
            self.close()
            done()

        self._finishing = threading.Thread(target=work, name="flagsplit-gateway-end", daemon=True)
        self._finishing.start()

    def close(self, *, at_once: bool = False) -> None:
        """End: requests in hand get `drain_s` to end, or no time at all. A second call does nothing but wait."""
        self.drain()
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._tell_end, at_once)
        self._thread.join()
        if self._finishing is not None and self._finishing is not threading.current_thread():
            self._finishing.join()

    def _turn_away(self) -> None:
        self._load.draining = True

    def _tell_end(self, at_once: bool) -> None:
        if self._end is not None and self._at_once is not None:
            self._end.set()
            if at_once:
                self._at_once.set()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            if self._began.done():
                raise
            self._began.set_exception(error)
        finally:
            self._listening.close()

    async def _serve(self) -> None:
        from aiohttp import web  # only here, because aiohttp is an extra

        from flagsplit.apps.decoder_service.gateway_app import GatewayApp

        self._end, self._at_once = asyncio.Event(), asyncio.Event()
        app = GatewayApp(self._models, self._settings, self._load, self.metrics)
        runner = web.AppRunner(
            app.application(),
            access_log=None,
            logger=http_log(),
            handler_cancellation=True,
            keepalive_timeout=self._settings.head_s,
            max_line_size=_MAX_HEAD_LINE_BYTES,
            max_field_size=_MAX_HEAD_LINE_BYTES,
            auto_decompress=False,
            shutdown_timeout=_HANG_UP_S,
        )
        await runner.setup()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: _guarded(runner.server, self._settings.max_connections),
            sock=self._listening,
            ssl=self._tls,
            ssl_handshake_timeout=self._settings.head_s if self._tls is not None else None,
            backlog=_BACKLOG,
        )
        try:
            self._began.set_result(loop)
            await self._end.wait()
            app.stopping.set()
            await app.wait_idle(self._settings.drain_s, self._at_once)
        finally:
            server.close()
            await runner.cleanup()


def require_aiohttp() -> None:
    """Raise unless the extra is installed.

    Raises:
        ConfigError: it is not.
    """
    if find_spec("aiohttp") is None:
        raise ConfigError('the gateway needs aiohttp, which is not installed; pip install "flagsplit[gateway]"')


class _Refusing(asyncio.Protocol):
    """For a connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Hang up."""
        if isinstance(transport, asyncio.WriteTransport):
            transport.write(
                b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )
            transport.close()


def _guarded(server: Any, most: int) -> asyncio.BaseProtocol:
    if len(server.connections) >= most:
        return _Refusing()
    found = server()
    assert isinstance(found, asyncio.BaseProtocol)
    return found


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, proto)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
        except BaseException:
            found.close()
            raise
    except (OSError, UnicodeError) as error:
        text = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"cannot serve the gateway at {host}:{port}: {text}; name another HOST:PORT") from None
    return found
