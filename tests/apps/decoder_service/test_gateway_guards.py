"""What stands before the gateway's pages: tokens, origins, limits of sizes, times and numbers; and how it ends."""

import asyncio
import http.client
import json
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.apps.decoder_service.conftest import Answer, Client, Open
from tests.apps.decoder_service.rote import Rote, RoteListener, recording

from flagsplit.apps.decoder_service.gateway import Gateway
from flagsplit.apps.decoder_service.gateway_settings import GatewaySettings
from flagsplit.errors import ConfigError

pytest.importorskip("aiohttp")

ANNA, BERT = "anna-0123456789abcdef", "bert-0123456789abcdef"
PAGE = "https://page.example"


def until(what: Any, longest_s: float = 5.0) -> None:
    end = time.monotonic() + longest_s
    while not what():
        assert time.monotonic() < end
        time.sleep(0.005)


def in_background(client: Client, **fields: Any) -> tuple[threading.Thread, list[Answer]]:
    found: list[Answer] = []
    thread = threading.Thread(target=lambda: found.append(client.complete(**fields)))
    thread.start()
    return thread, found


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(f"anna {ANNA}\nbert {BERT}\n")
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer nobody"}, {"Authorization": f"Basic {ANNA}"}])
def test_nobody_without_a_token(gateway: Open, tokens: Path, header: dict[str, str]) -> None:
    client = gateway(rote := Rote(), api_keys=tokens)
    client.headers.update(header)
    for path in ("/v1/models", "/v1/none", "/v1/stream"):
        found = client.get(path)
        assert (found.status, found.data["error"]["code"]) == (401, "invalid_api_key")
    assert client.complete(prompt="x").headers["www-authenticate"] == "Bearer"
    assert rote.asked == []
    assert client.get("/healthz").status == client.get("/readyz").status == 200


def test_a_token_names_the_client(gateway: Open, tokens: Path) -> None:
    client = gateway(rote := Rote(), api_keys=tokens)
    client.headers["Authorization"] = f"bearer {BERT}"
    assert client.complete(prompt="x").status == 200
    assert rote.asked[0].client == "bert"
    tokens.unlink()
    assert client.complete(prompt="x").status == 503


def test_pages_of_other_origins(gateway: Open) -> None:
    """Browsers send forms to any address without asking first."""
    closed, open_ = gateway(Rote()), gateway(Rote(), allow_origins=(PAGE,))
    assert closed.get("/v1/models", Origin=PAGE).data["error"]["code"] == "origin"
    for origin in ("null", "https://page.example.evil", "http://page.example"):
        assert open_.get("/v1/models", Origin=origin).status == 403
    found = open_.get("/v1/models", Origin=PAGE)
    assert (found.status, found.headers["access-control-allow-origin"], found.headers["vary"]) == (200, PAGE, "Origin")
    assert "access-control-allow-origin" not in closed.get("/v1/models").headers


def test_a_browser_asks_whether_it_may(gateway: Open, tokens: Path) -> None:
    client = gateway(Rote(), allow_origins=("*",), api_keys=tokens)
    asks = {"Origin": PAGE, "Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "authorization"}
    found = client.ask("OPTIONS", "/v1/completions", **asks)
    assert (found.status, found.headers["access-control-allow-origin"]) == (204, PAGE)
    assert "Authorization" in found.headers["access-control-allow-headers"]


@pytest.mark.parametrize(
    ("method", "path", "status", "said"),
    [
        ("GET", "/", 404, "no such page; "),
        ("GET", "/v1/completions", 405, "this page takes POST; "),
        ("DELETE", "/v1/models", 405, "this page takes GET,HEAD; "),
    ],
)
def test_no_such_page(gateway: Open, method: str, path: str, status: int, said: str) -> None:
    found = gateway(Rote()).ask(method, path)
    assert (found.status, found.data["error"]["type"]) == (status, "invalid_request_error")
    assert found.data["error"]["message"] == f"{said}docs/gateway.md lists them"
    assert found.headers["server"].startswith("flagsplit/")
    assert found.headers["x-request-id"].startswith("req_")


def test_bodies_that_are_too_long(gateway: Open) -> None:
    """Neither one that says so nor one that does not is read to its end."""
    client = gateway(RoteListener(), Rote(), max_audio_bytes=1000, max_json_bytes=1000)
    assert client.transcribe(recording(1)).status == 413
    for path in ("/v1/completions", "/v1/audio/transcriptions"):
        connection = http.client.HTTPConnection(client.host, client.port, timeout=5)
        connection.request("POST", path, iter([b"x" * 600] * 2), {}, encode_chunked=True)
        assert connection.getresponse().status == 413
        connection.close()


def test_no_memory_for_more_bodies(gateway: Open) -> None:
    client = gateway(RoteListener(), body_budget_bytes=100_000)
    assert client.transcribe(recording(2)).status == 429
    assert client.transcribe(recording(0)).status == 200


def test_packed_bodies(gateway: Open) -> None:
    found = gateway(Rote()).ask("POST", "/v1/completions", b"x", Content_Encoding="gzip")
    assert found.status == 415


def test_a_body_that_does_not_come(gateway: Open) -> None:
    client = gateway(Rote(), body_s=0.05)
    with socket.create_connection((client.host, client.port), timeout=5) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        assert connection.recv(100).startswith(b"HTTP/1.1 408")


@pytest.mark.slow
def test_a_head_that_does_not_come(gateway: Open) -> None:
    client = gateway(Rote(), head_s=0.2)
    with socket.create_connection((client.host, client.port), timeout=5) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\n")
        assert connection.recv(100) == b""


@pytest.mark.parametrize(
    "said",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 3,
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % number for number in range(20_000)),
        b"GET http://[::1/ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
    ids=["TLS", "a long line", "many headers", "no URL", "two lengths", "HTTP/2"],
)
def test_strangers_do_not_fill_the_log(gateway: Open, caplog: pytest.LogCaptureFixture, said: bytes) -> None:
    client = gateway(Rote())
    with socket.create_connection((client.host, client.port), timeout=10) as line:
        line.sendall(said)
        assert line.recv(100).startswith(b"HTTP/1.")
    assert client.get("/healthz").status == 200
    assert caplog.records == []


def test_connections_too_many(gateway: Open) -> None:
    client = gateway(Rote(), max_connections=1)
    with socket.create_connection((client.host, client.port), timeout=5) as first:
        first.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert first.recv(100).startswith(b"HTTP/1.1 200")
        with socket.create_connection((client.host, client.port), timeout=5) as second:
            assert second.recv(100).startswith(b"HTTP/1.1 503")


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["max_streams", "max_streams_per_client"])
def test_streams_too_many(gateway: Open, limit: str) -> None:
    client = gateway(rote := Rote(gap_s=0.01), **{limit: 1})
    thread, found = in_background(client, prompt="x", max_tokens=60)
    until(lambda: rote.open == 1)
    refused = client.complete(prompt="x", max_tokens=1)
    assert (refused.status, refused.headers["retry-after"]) == (429, "1")
    thread.join()
    assert found[0].status == client.complete(prompt="x", max_tokens=1).status == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_stream(gateway: Open, stream: bool) -> None:
    client = gateway(rote := Rote(gap_s=0.01))
    connection = http.client.HTTPConnection(client.host, client.port, timeout=5)
    connection.request("POST", "/v1/completions", json.dumps({"prompt": "x", "max_tokens": 500, "stream": stream}))
    until(lambda: rote.open == 1)
    if stream:
        assert connection.getresponse().read(1)
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    until(lambda: rote.open == 0)
    assert rote.cancelled == 1


@pytest.mark.slow
def test_a_client_that_does_not_read_ends_its_stream(gateway: Open) -> None:
    client = gateway(rote := Rote(), write_s=0.3)
    rote.facts = type(rote.facts)("rote", "text", 256, 1 << 20)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((client.host, client.port))
        body = json.dumps({"prompt": "x", "max_tokens": 131_072, "stream": True}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        connection.sendall(head + body)
        until(lambda: rote.open == 1)
        until(lambda: rote.open == 0, 20)
    assert rote.cancelled == 1


def test_an_answer_that_takes_too_long(gateway: Open) -> None:
    client = gateway(rote := Rote(gap_s=0.01), request_s=0.1)
    assert client.complete(prompt="x", max_tokens=500).status == 504
    *_, told = client.complete(prompt="x", max_tokens=500, stream=True).events
    assert told["error"]["code"] == "timeout"
    assert rote.open == 0


@pytest.mark.slow
def test_what_breaks_after_the_first_event_is_an_event(gateway: Open, caplog: pytest.LogCaptureFixture) -> None:
    class Breaking(Rote):
        async def generate(self, wanted: Any) -> Any:
            async for piece in super().generate(wanted):
                yield piece
                if self.asked[1:]:
                    await asyncio.sleep(2)  # until the first event is written, on a busy host too
                    raise ZeroDivisionError("a secret")

    client = gateway(rote := Breaking())
    assert client.complete(prompt="x", max_tokens=3).status == 200
    first, told = client.complete(prompt="x", max_tokens=30, stream=True).events
    assert first["choices"][0]["text"]
    assert told["error"]["code"] == "internal_error"
    broken = client.complete(prompt="x", max_tokens=30)
    assert (broken.status, b"secret" in broken.body) == (500, False)
    assert rote.open == 0
    assert "a secret" in caplog.text


def test_not_ready(gateway: Open) -> None:
    client = gateway(Rote(reason="no replica is there"), RoteListener())
    found = client.get("/readyz")
    assert (found.status, found.data) == (503, {"ready": False, "reason": "rote: no replica is there"})
    assert client.get("/healthz").status == 200


@pytest.mark.slow
def test_the_end_waits_for_streams() -> None:
    gateway = Gateway([rote := Rote(gap_s=0.01)], GatewaySettings("127.0.0.1:0"))
    host, _, port = gateway.url.removeprefix("http://").rpartition(":")
    client = Client(host, int(port))
    thread, found = in_background(client, prompt="x", max_tokens=30, stream=True)
    until(lambda: rote.open == 1)
    waiting = http.client.HTTPConnection(client.host, client.port, timeout=5)
    waiting.request("GET", "/readyz")
    waiting.getresponse().read()
    gateway.drain()
    waiting.request("GET", "/readyz")
    assert waiting.getresponse().read() == b'{"ready": false, "reason": "draining"}'
    waiting.close()
    assert client.complete(prompt="x").headers["retry-after"] == "1"
    gateway.close()
    thread.join()
    assert found[0].events[-1] == "[DONE]"
    gateway.close()


@pytest.mark.slow
def test_the_end_does_not_wait_for_ever() -> None:
    gateway = Gateway([rote := Rote(gap_s=0.01)], GatewaySettings("127.0.0.1:0", drain_s=0.05))
    host, _, port = gateway.url.removeprefix("http://").rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=5)
    connection.request("POST", "/v1/completions", json.dumps({"prompt": "x", "max_tokens": 500, "stream": True}))
    until(lambda: rote.open == 1)
    started = time.monotonic()
    gateway.close()
    assert time.monotonic() - started < 3
    assert (rote.open, rote.cancelled) == (0, 1)
    connection.close()


def test_it_can_end_at_once_while_it_ends() -> None:
    gateway, ended = Gateway([rote := Rote(gap_s=0.01)], GatewaySettings("127.0.0.1:0")), threading.Event()
    host, _, port = gateway.url.removeprefix("http://").rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=5)
    connection.request("POST", "/v1/completions", json.dumps({"prompt": "x", "max_tokens": 500, "stream": True}))
    until(lambda: rote.open == 1)
    gateway.finish(ended.set)
    client = Client(host, int(port))
    until(lambda: client.get("/readyz").status == 503)
    assert client.complete(prompt="x").status == 503
    assert not ended.is_set()
    gateway.close(at_once=True)
    assert ended.is_set()
    assert rote.cancelled == 1
    connection.close()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"listen": "0.0.0.0:0"}, "without TLS"),
        ({"listen": "[::]:0"}, "without TLS"),
        ({"listen": "gateway.example:0"}, "without TLS"),
        ({"listen": "nowhere"}, "expected HOST:PORT"),
        ({"tls_cert": Path("none.pem")}, "belong together"),
        ({"tls_cert": Path("none.pem"), "tls_key": Path("none.pem")}, "cannot use --tls-cert none.pem"),
        ({"api_keys": Path("none")}, "cannot read the tokens"),
    ],
)
def test_it_does_not_begin(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Gateway([Rote()], GatewaySettings(**{"listen": "127.0.0.1:0", **settings}))


def test_an_address_that_is_taken(gateway: Open) -> None:
    client = gateway(Rote())
    with pytest.raises(ConfigError, match="cannot serve the gateway at"):
        Gateway([Rote()], GatewaySettings(f"127.0.0.1:{client.port}"))


def test_two_models_of_one_name() -> None:
    with pytest.raises(ConfigError, match="names of their own"):
        Gateway([Rote(), Rote()])


def test_beyond_this_host_if_it_is_said() -> None:
    gateway = Gateway([Rote()], GatewaySettings("0.0.0.0:0", insecure_public=True))
    gateway.close()
    assert gateway.url.startswith("http://")


@pytest.mark.slow
def test_tls(tmp_path: Path) -> None:
    certificate, key = certify(tmp_path)
    gateway = Gateway([Rote()], GatewaySettings("0.0.0.0:0", tls_cert=certificate, tls_key=key))
    try:
        port = int(gateway.url.rpartition(":")[2])
        assert gateway.url.startswith("https://")
        trusting = ssl.create_default_context(cafile=certificate)
        connection = http.client.HTTPSConnection("localhost", port, timeout=5, context=trusting)
        connection.request("GET", "/healthz")
        assert connection.getresponse().status == 200
        connection.close()
        with socket.create_connection(("127.0.0.1", port), timeout=5) as plain:
            plain.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert not plain.recv(100).startswith(b"HTTP")
    finally:
        gateway.close()


def certify(folder: Path) -> tuple[Path, Path]:
    """A certificate of its own for localhost; openssl makes it."""
    import shutil
    import subprocess

    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    return certificate, key
