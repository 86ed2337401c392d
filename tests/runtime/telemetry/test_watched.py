"""Real sessions and workers that are watched over real HTTP, on channels in memory."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.runtime.bundles import TIERS, build_bundle, inputs_of

import flagsplit
from flagsplit.errors import ConfigError, FlagsplitError
from flagsplit.runtime.bundle import Bundle
from flagsplit.runtime.session import Session, SessionSettings
from flagsplit.runtime.telemetry import TelemetrySettings, otlp
from flagsplit.runtime.telemetry.http import HttpServer, Page
from flagsplit.runtime.telemetry.stats import PeerStats, WorkerStats
from flagsplit.runtime.worker import Worker, WorkerSettings
from flagsplit.runtime.worker_machine import WorkerMachine
from flagsplit.targets.interface import Executable, LoadOptions
from flagsplit.transport.memory import MemoryChannel, MemoryNetwork
from flagsplit.transport.messages import PeerAddress

pytestmark = pytest.mark.slow
WATCHED = WorkerSettings(telemetry=TelemetrySettings("127.0.0.1:0"))
SETTINGS = SessionSettings(deadline_s=20.0, connect_s=5.0, host=LoadOptions(threads=1), http="127.0.0.1:0")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle")
    return flagsplit.open(build_bundle(folder), cache=folder / "cache")


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    wait_for(lambda: not set(threading.enumerate()) - before, "threads are left")


def wait_for(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def stats(url: str) -> dict[str, Any]:
    found = json.loads(get(f"{url}/stats")[1])
    assert isinstance(found, dict)
    return found


def states(url: str) -> dict[str, str]:
    return {tier: each["state"] for tier, each in stats(url)["tiers"].items()}


def samples(url: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """What a scrape says, as Prometheus' own parser reads it."""
    status, text = get(f"{url}/metrics")
    assert status == 200
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(url: str, name: str, **labels: str) -> float:
    return samples(url)[name, frozenset(labels.items())]


@pytest.fixture
def line(bundle: Bundle, tmp_path: Path) -> Iterator[tuple[Session, dict[str, Worker]]]:
    network = MemoryNetwork()
    workers = {}
    for index, tier in enumerate(TIERS[1:], start=1):
        settings = replace(WATCHED, telemetry=TelemetrySettings(":0", tmp_path / f"{tier}.jsonl", log=True))
        workers[tier] = Worker(bundle, index, MemoryChannel(network), f"mem://{tier}", settings)
    addresses = {tier: PeerAddress(f"mem://{tier}") for tier in workers}
    watched = replace(SETTINGS, trace_file=tmp_path / "phone.jsonl")
    with Session(bundle, addresses, MemoryChannel(network), watched) as session:
        yield session, workers
    for worker in workers.values():
        worker.stop()


def test_a_line_of_tiers(line: tuple[Session, dict[str, Worker]], tmp_path: Path) -> None:
    session, workers = line
    for number in range(20):
        session.run(inputs_of(number))
    edge = workers["edge"].http
    answered = {"outcome": "answered", "code": ""}
    assert value(session.http, "flagsplit_requests_total", **answered) == 20
    assert value(session.http, "flagsplit_answers_total", plan="plan0") == 20
    assert value(session.http, "flagsplit_plan_in_use", plan="plan0") == 1
    assert value(session.http, "flagsplit_request_seconds_count") == 20
    wait_for(lambda: value(edge, "flagsplit_requests_total", **answered) == 20, "the last Done")
    wait_for(lambda: states(edge) == {"phone": "up", "cloud": "up"}, "figures are taken again")
    wait_for(lambda: stats(edge)["flights"] == 0, "figures are taken again")
    data = stats(edge)
    assert (data["kind"], data["tier"], data["bundle"]) == ("worker", "edge", session.bundle.digest)
    moved = {link["tier"]: (link["bytes_in"], link["bytes_out"]) for link in data["links"]}
    assert set(moved) == {"phone", "cloud"}
    assert all(count > 0 for pair in moved.values() for count in pair)
    assert any(each["runs"] == 20 and each["resident_bytes"] for each in data["segments"])
    assert 0 < data["memory"]["resident_bytes"] < data["memory"]["budget_bytes"]
    assert data["requests"]["latency_ms"]["count"] == 20
    assert stats(session.http)["plan"] == "plan0"
    session.close()
    for worker in workers.values():
        worker.stop()
    spans = [each for tier in TIERS for each in otlp.read(tmp_path / f"{tier}.jsonl")]
    traces = {span.trace_id for _, span in spans}
    assert len(traces) == 20
    known = {span.span_id for _, span in spans}
    assert all(span.parent_id in known for _, span in spans if span.name != "request")
    tiers = {resource["flagsplit.tier"] for resource, span in spans if span.trace_id == min(traces)}
    assert tiers == set(TIERS)


def test_a_tier_that_leaves(line: tuple[Session, dict[str, Worker]]) -> None:
    session, workers = line
    edge = workers["edge"].http
    assert get(f"{edge}/readyz")[0] == get(f"{edge}/healthz")[0] == 200
    session.run(inputs_of(1))
    wait_for(lambda: states(session.http) == {"edge": "up", "cloud": "up"}, "figures are taken")
    workers["edge"].stop()
    with pytest.raises(urllib.error.URLError):
        get(f"{edge}/readyz")
    wait_for(lambda: states(session.http).get("edge") == "down", "the session notices")
    assert stats(session.http)["tiers"]["edge"]["reason"]
    assert value(session.http, "flagsplit_peers_up", tier="edge") == 0
    assert value(session.http, "flagsplit_peers_up", tier="cloud") == 1
    assert get(f"{session.http}/readyz")[0] == 200


def test_readiness_while_loading(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, real = threading.Event(), bundle.load
    urls: list[str] = []

    def load(tier: int, segment: str, options: LoadOptions) -> Executable:
        gate.wait(10)
        return real(tier, segment, options)

    monkeypatch.setattr(bundle, "load", load)

    class Server(HttpServer):
        def __init__(self, address: str, pages: Mapping[str, Callable[[], Page]]) -> None:
            super().__init__(address, pages)
            urls.append(self.url)

    monkeypatch.setattr("flagsplit.runtime.telemetry.telemetry.HttpServer", Server)
    made: list[Worker] = []
    starting = threading.Thread(
        target=lambda: made.append(Worker(bundle, 1, MemoryChannel(MemoryNetwork()), "mem://edge", WATCHED))
    )
    starting.start()
    wait_for(lambda: bool(urls), "HTTP is up before the segments are loaded")
    status, text = get(f"{urls[0]}/readyz")
    assert (status, json.loads(text)) == (503, {"ready": False, "reason": "loading the first segments"})
    assert get(f"{urls[0]}/healthz")[0] == 200
    assert value(urls[0], "flagsplit_ready") == 0
    gate.set()
    starting.join(10)
    wait_for(lambda: get(f"{urls[0]}/readyz")[0] == 200, "it becomes ready")
    made[0].stop()


def test_a_worker_that_hangs_or_breaks_is_not_healthy(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flagsplit.runtime.telemetry.telemetry.STUCK_S", 1.5)
    failures: list[Exception] = []
    channel = MemoryChannel(MemoryNetwork())
    worker = Worker(bundle, 1, channel, "mem://edge", WATCHED, failures.append)
    try:
        for _ in range(10):
            assert get(f"{worker.http}/healthz")[0] == 200
            time.sleep(0.2)  # longer in all than a hang takes to be noticed
        worker._shell.post("nonsense")  # type: ignore[arg-type]
        wait_for(lambda: bool(failures), "it breaks")
        assert json.loads(get(f"{worker.http}/readyz")[1])["reason"] == "the worker broke"
        wait_for(lambda: get(f"{worker.http}/healthz")[0] == 503, "its thread is gone")
    finally:
        worker.stop()


@pytest.mark.parametrize("http", ["nonsense", "192.0.2.1:0"])
def test_wrong_addresses_free_everything(bundle: Bundle, http: str) -> None:
    settings = WorkerSettings(telemetry=TelemetrySettings(http))
    with pytest.raises(ConfigError):
        Worker(bundle, 1, MemoryChannel(MemoryNetwork()), "mem://edge", settings)
    with pytest.raises(ConfigError):
        Session(bundle, {}, MemoryChannel(MemoryNetwork()), replace(SETTINGS, http=http))
    with pytest.raises(FlagsplitError):
        Session(bundle, {"moon": PeerAddress("mem://m")}, MemoryChannel(MemoryNetwork()), SETTINGS)


def test_nothing_is_served_unless_asked_for(bundle: Bundle) -> None:
    worker = Worker(bundle, 1, MemoryChannel(MemoryNetwork()), "mem://edge")
    assert worker.http == ""
    assert not [each for each in threading.enumerate() if each.name == "flagsplit-http"]
    worker.stop()


def test_what_a_machine_says_of_itself_is_shown(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    said = WorkerStats(42, 7, 9, epoch=3, peers=(PeerStats("cloud", "up", credit_paused=True),))
    monkeypatch.setattr(WorkerMachine, "figures", lambda self: said, raising=False)
    worker = Worker(bundle, 1, MemoryChannel(MemoryNetwork()), "mem://edge", WATCHED)
    try:
        wait_for(lambda: value(worker.http, "flagsplit_queue_length") == 42, "figures are taken")
        assert value(worker.http, "flagsplit_credit_paused_peers") == 1
        assert value(worker.http, "flagsplit_epoch") == 3
        assert get(f"{worker.http}/readyz")[0] == 200
        said = replace(said, draining=True)
        wait_for(lambda: get(f"{worker.http}/readyz")[0] == 503, "it drains")
        assert stats(worker.http)["not_ready"] == "draining"
    finally:
        worker.stop()


def test_a_machine_that_cannot_say_is_watched_all_the_same(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: WorkerMachine) -> WorkerStats:
        raise ZeroDivisionError

    monkeypatch.setattr(WorkerMachine, "figures", broken, raising=False)
    monkeypatch.setattr("flagsplit.runtime.telemetry.telemetry.STUCK_S", 1.5)
    worker = Worker(bundle, 1, MemoryChannel(MemoryNetwork()), "mem://edge", WATCHED)
    try:
        time.sleep(2.0)
        assert get(f"{worker.http}/healthz")[0] == 200
        assert get(f"{worker.http}/stats")[0] == 200
    finally:
        worker.stop()
