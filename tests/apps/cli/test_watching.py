"""A worker process that is watched as an operator does it: HTTP, logs, traces, and `flagsplit top`."""

import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.apps.cli.conftest import Cli, Spawn, end_gently, wait_until

import flagsplit

LISTEN = ("--listen", "tcp://127.0.0.1:0", "--json")


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return str(answer.read().decode())


def totals(url: str) -> dict[str, float]:
    """Sums by sample name, as Prometheus' own parser reads them."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(get(f"{url}/metrics")):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0) + sample.value
    return found


@pytest.mark.slow
def test_a_worker_is_watched(spawn: Spawn, cli: Cli, split_bundle: Path, tmp_path: Path) -> None:
    watching = ("--http", "127.0.0.1:0", "--log-format", "json", "--trace-file", "cloud.jsonl")
    worker = spawn("serve", split_bundle, "--tier", "cloud", *LISTEN, *watching)
    ready = json.loads(worker.first_line())
    url = ready["http"]
    assert url.startswith("http://127.0.0.1:")
    assert json.loads(get(f"{url}/readyz")) == {"ready": True, "reason": ""}
    done = cli("run", split_bundle, "--tier", f"cloud={ready['address']}", "--repeat", "5", "--json")
    assert done.code == 0
    plan = flagsplit.open(split_bundle).plan(done.data["plan"])
    assert 2 in plan.used_tiers
    wait_until(lambda: totals(url)["flagsplit_requests_total"] == 5, "the last Done")
    scraped = totals(url)
    assert scraped["flagsplit_segment_run_seconds_count"] == 5
    assert scraped["flagsplit_payload_bytes_total"] > 0
    assert scraped["process_resident_memory_bytes"] > 10e6
    shown = cli("top", url, "127.0.0.1:1", "--json")
    assert (shown.code, shown.err) == (0, "")
    here, gone = shown.data["sources"]
    assert here["stats"]["requests"]["totals"] == {"answered": 5}
    assert gone["stats"] is None
    assert "unreachable" in gone["error"]
    once = cli("top", url, "127.0.0.1:1", "--once")
    assert once.code == 0
    assert "unreachable" in once.out
    assert "cloud" in once.out
    ended = end_gently(worker)
    assert ended.code == 0
    with pytest.raises(urllib.error.URLError):
        get(f"{url}/healthz")
    lines = [json.loads(line) for line in ended.err.splitlines()]
    assert {"hello", "welcome", "peer_down", "leave"} <= {line["event"] for line in lines}
    assert all({"ts", "level", "event", "message"} <= line.keys() for line in lines)
    drawn = cli("trace", tmp_path / "cloud.jsonl", "-o", "trace.json", "--json")
    assert drawn.data["traces"] == 5
    assert len(json.loads((tmp_path / "trace.json").read_text())["traceEvents"]) > drawn.data["spans"] >= 15


def test_misuse(cli: Cli, split_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "expected the address" in cli("top", "ftp://x", "--once").error
    assert "expected HOST:PORT" in cli("serve", split_bundle, "--tier", "edge", *LISTEN, "--http", "x").error
    traces = ("--trace-file", tmp_path / "no" / "file")
    assert "cannot write traces" in cli("serve", split_bundle, "--tier", "edge", *LISTEN, *traces).error
    assert "cannot read" in cli("trace", "absent", "-o", "x.json").error
    monkeypatch.setattr("flagsplit.apps.cli.top.find_spec", lambda _: None)
    assert "flagsplit[top]" in cli("top", "127.0.0.1:1").error
