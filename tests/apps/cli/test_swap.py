"""`flagsplit swap` and workers that start without a bundle, as their users meet them."""

import json
import signal
from pathlib import Path

import pytest
from tests.apps.cli.conftest import Cli, Process, Spawn

import flagsplit

pytestmark = pytest.mark.slow


def _ready(worker: Process) -> str:
    data = json.loads(worker.first_line())
    assert (data["bundle"], data["bundles"]) == ("", [])
    return str(data["address"])


def test_misuse(cli: Cli, small_bundle: Path) -> None:
    digest = flagsplit.open(small_bundle).digest
    edge = "edge=tcp://127.0.0.1:9"
    for options, said in {
        ("--tier", "phone=tcp://127.0.0.1:9"): "--tier phone is the tier that asks; name the others",
        ("--tier", "moon=tcp://127.0.0.1:9"): "expected a tier of this bundle",
        ("--tier", "edge"): "--tier expects NAME=VALUE",
        ("--tier", edge, "--retire", digest): "--retire names the new bundle",
        # As messages show it. No worker would know it, and each would say that it is retired.
        ("--tier", edge, "--retire", digest[:12]): "--retire expects old, or all 64 characters of a digest",
        ("--tier", "edge=nowhere"): "address 'nowhere': expected tcp://",
    }.items():
        done = cli("swap", small_bundle, *options)
        assert done.code == 2
        assert said in done.error


def test_a_worker_that_is_not_there(cli: Cli, small_bundle: Path) -> None:
    done = cli("swap", small_bundle, "--tier", "edge=tcp://127.0.0.1:9", "--patience-s", "1")
    assert done.code == 1
    assert "tier edge: no progress for 1 s" in done.error


def test_workers_start_empty_and_get_two_bundles(
    cli: Cli, spawn: Spawn, small_bundle: Path, split_bundle: Path
) -> None:
    workers = {
        tier: spawn("serve", "--tier", tier, "--listen", "tcp://127.0.0.1:0", "--json") for tier in ("edge", "cloud")
    }
    addresses = {tier: _ready(worker) for tier, worker in workers.items()}
    tiers = [part for tier, address in addresses.items() for part in ("--tier", f"{tier}={address}")]
    first = cli("swap", small_bundle, *tiers)
    assert first.code == 0
    assert "is served by all: edge, cloud" in first.out
    second = cli("swap", split_bundle, *tiers, "--retire", "old", "--json").data
    assert second["tiers"] == {"edge": "retired", "cloud": "retired"}
    assert second["bundle"] == flagsplit.open(split_bundle).digest
    done = cli("swap", split_bundle, *tiers, "--retire", "0" * 64)
    assert done.code == 0, "what is not there is retired already"
    for worker in workers.values():
        worker.signal(signal.SIGTERM)
        assert worker.end().code == 0


def test_a_bundle_is_built_again_and_sent(
    cli: Cli, spawn: Spawn, small_bundle: Path, split_bundle: Path, split_sla: Path, tmp_path: Path
) -> None:
    worker = spawn("serve", small_bundle, "--tier", "edge", "--listen", "tcp://127.0.0.1:0", "--json")
    tier = ("--tier", f"edge={json.loads(worker.first_line())['address']}")
    wanted = flagsplit.open(split_bundle).digest
    done = cli("swap", small_bundle, *tier, "--sla", split_sla, "-o", tmp_path / "new.flagsplit", "--json").data
    assert (done["bundle"], done["tiers"]) == (wanted, {"edge": "ready"})
    assert (tmp_path / "new.flagsplit").read_bytes() == split_bundle.read_bytes()
    again = cli("swap", small_bundle, *tier, "--sla", split_sla, "--retire", "old", "--json").data
    assert (again["bundle"], again["tiers"]) == (wanted, {"edge": "retired"})
    shown = cli("inspect", again["path"])
    assert 'built under the SLA {"keep_on": {"inputs": "phone"}, "pins": {"ArgMax": "cloud"}}' in shown.out
    assert cli("inspect", again["path"], "--json").data["sla"] == json.loads(split_sla.read_text())
    assert "built for the least latency" in cli("inspect", small_bundle).out
    impossible = tmp_path / "impossible.json"
    impossible.write_text('{"bounds": {"latency_ms": 1e-6}}')
    failed = cli("swap", small_bundle, *tier, "--sla", impossible, "-o", tmp_path / "none.flagsplit")
    assert failed.code == 2
    assert "no plan keeps the SLA" in failed.error
    assert {path.name for path in tmp_path.iterdir()} == {"new.flagsplit", "impossible.json"}
    worker.signal(signal.SIGTERM)
    worker.end()
