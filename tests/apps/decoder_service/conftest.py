"""Gateways on loopback for tests, and a client that says what came."""

import http.client
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest

from flagsplit.apps.decoder_service.gateway_backend import Backend
from flagsplit.apps.decoder_service.gateway_settings import GatewaySettings

BOUNDARY = "====a-boundary===="


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def data(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return str(self.data["error"]["message"])

    @property
    def events(self) -> list[Any]:
        """The data of server-sent events."""
        texts = [part.removeprefix("data: ") for part in self.body.decode().split("\n\n") if part]
        return [text if text == "[DONE]" else json.loads(text) for text in texts]


@dataclass
class Client:
    """Asks one gateway; a connection for each request."""

    host: str
    port: int
    headers: dict[str, str] = field(default_factory=dict)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=10)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, {**self.headers, **named})
            found = connection.getresponse()
            return Answer(found.status, {name.lower(): value for name, value in found.getheaders()}, found.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, **headers)

    def complete(self, **fields: Any) -> Answer:
        return self.ask("POST", "/v1/completions", json.dumps(fields).encode(), Content_Type="application/json")

    def transcribe(self, file: bytes | None, **fields: str) -> Answer:
        body = form({**fields, **({"file": file} if file is not None else {})})
        kind = f'multipart/form-data; boundary="{BOUNDARY}"'
        return self.ask("POST", "/v1/audio/transcriptions", body, Content_Type=kind)


def form(fields: Mapping[str, str | bytes]) -> bytes:
    """A form as browsers write it; bytes are files."""
    parts = []
    for name, value in fields.items():
        file = f'; filename="{name}.wav"\r\nContent-Type: audio/wav' if isinstance(value, bytes) else ""
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
        parts.append(head.encode() + (value if isinstance(value, bytes) else value.encode()) + b"\r\n")
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


Open = Callable[..., Client]


@pytest.fixture
def gateway() -> Iterator[Open]:
    """Starts gateways; they end with the test."""
    pytest.importorskip("aiohttp")
    from flagsplit.apps.decoder_service.gateway import Gateway

    with ExitStack() as stack:

        def start(*backends: Backend, **settings: Any) -> Client:
            found = Gateway(backends, GatewaySettings(**{"listen": "127.0.0.1:0", "drain_s": 5.0, **settings}))
            stack.callback(found.close)
            host, _, port = found.url.removeprefix("http://").rpartition(":")
            return Client(host, int(port))

        yield start
