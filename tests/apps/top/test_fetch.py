"""Asking pages of real servers: good ones, hostile ones, and none."""

import json
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from tests.apps.top.pages import session_data, worker_data

from flagsplit.apps.top import fetch
from flagsplit.apps.top.fetch import fetch_all, stats_url
from flagsplit.apps.top.model import Stats
from flagsplit.errors import ConfigError
from flagsplit.runtime.telemetry.http import HttpServer, Page

Serve = Callable[[bytes], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves bytes as a /stats page; gives the address."""
    servers: list[HttpServer] = []

    def start(body: bytes) -> str:
        servers.append(HttpServer("127.0.0.1:0", {"/stats": lambda: Page(200, "application/json", body)}))
        return servers[-1].url

    yield start
    for server in servers:
        server.close()


def test_both_sides_agree_about_the_schema() -> None:
    """What a session and a worker say is understood, to the last key that is not there for programs alone."""
    for data in (session_data(), worker_data()):
        known = {field.alias or name for name, field in Stats.model_fields.items()}
        assert set(data) - known <= {"instance", "squeezed", "switches"}
        again = Stats.model_validate(json.loads(json.dumps(data)))
        assert again.tier == data["tier"]
        assert len(again.requests.series) == 60
    first, _, last = Stats.model_validate(session_data()).decisions
    assert (first.reason, last.numbers["loss"]) == ("cloud is down", None)


def test_pages_come(serve: Serve) -> None:
    good = serve(json.dumps({**session_data(), "new_key": {"of": "a newer worker"}}).encode())
    (page,) = fetch_all([stats_url(good)])
    assert page.error == ""
    assert page.stats is not None
    assert page.stats.plan == "phone+cloud-1"
    assert page.data is not None
    assert "new_key" in page.data


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", "it is no JSON"),
        (b"<html>", "it is no JSON"),
        (b"\xff\xfe", "it is no JSON"),
        (b"[" * 100_000, "it is no JSON"),
        (b"[]", "the page"),
        (b"{}", "schema"),
        (b'{"schema": 1, "kind": "other", "tier": "x"}', "kind"),
        (b'{"schema": 1, "kind": "worker", "tier": "x", "uptime_s": NaN}', "uptime_s"),
        (b'{"schema": 1, "kind": "worker", "tier": "x", "queue": -1}', "queue"),
        (json.dumps({"schema": 1, "kind": "worker", "tier": "x" * 5000}).encode(), "tier"),
        (b" " * (5 << 20), "more than 4 MiB"),
    ],
)
def test_other_pages(serve: Serve, body: bytes, error: str) -> None:
    (page,) = fetch_all([stats_url(serve(body))])
    assert page.stats is None
    assert error in page.error


def test_nobody_there(serve: Serve) -> None:
    server = HttpServer("127.0.0.1:0", {})
    gone = server.url
    refused, absent = stats_url(gone), stats_url(serve(b"{}").replace("/stats", "")) + "x"
    assert fetch_all([refused])[0].error == "HTTP 404"
    server.close()
    pages = fetch_all([refused, absent, "http://no.such.host.invalid:1/stats"])
    assert [page.stats for page in pages] == [None] * 3
    assert "unreachable" in pages[0].error
    assert pages[1].error == "HTTP 404"
    assert "unreachable" in pages[2].error


@pytest.mark.slow
def test_a_page_that_comes_too_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "TIMEOUT_S", 0.3)
    gate = threading.Event()

    def wait() -> Page:
        gate.wait(10)
        return Page(200, "x", b"")

    server = HttpServer("127.0.0.1:0", {"/stats": wait})
    started = time.monotonic()
    (page,) = fetch_all([f"{server.url}/stats"])
    assert "unreachable" in page.error
    assert time.monotonic() - started < 5
    gate.set()
    server.close()


def test_addresses() -> None:
    assert stats_url("127.0.0.1:9100") == stats_url("http://127.0.0.1:9100/") == "http://127.0.0.1:9100/stats"
    assert stats_url("https://x.example/behind/a/proxy") == "https://x.example/behind/a/proxy"
    assert stats_url("[::1]:9100") == "http://[::1]:9100/stats"
    for wrong in ("", "ftp://x:1", "file:///etc/passwd", "http://", "http://x:port", "http://x:99999", "http://[::1"):
        with pytest.raises(ConfigError, match="expected the address"):
            stats_url(wrong)
