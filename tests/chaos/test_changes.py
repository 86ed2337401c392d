"""Workers that are drained, and bundles that are swapped, while requests are on their way: none of them fails."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from tests.chaos.fleet import Fleet
from tests.runtime.bundles import PLANS, TIERS, build_bundle, inputs_of

import flagsplit
from flagsplit.runtime.bundle import Bundle
from flagsplit.runtime.liveness import LivenessOptions
from flagsplit.runtime.session import Answer, Session, SessionSettings
from flagsplit.runtime.session_machine import SessionOptions
from flagsplit.targets.interface import Executable, LoadOptions

pytestmark = pytest.mark.slow

_PATIENCE_S = 40.0
_SETTINGS = SessionSettings(
    deadline_s=_PATIENCE_S,
    host=LoadOptions(threads=1),
    machine=SessionOptions(attempt_s=5.0, liveness=LivenessOptions(heartbeat_s=0.25, missed=8)),
)


@pytest.fixture(scope="module")
def successor(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same model with its plans in another order: another bundle."""
    return flagsplit.open(build_bundle(tmp_path_factory.mktemp("successor"), PLANS[1:]))


@pytest.fixture
def own_fleet(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Workers that this test may change for good."""
    with Fleet(bundle.path, TIERS[1:], _environment(tmp_path_factory)) as fleet:
        yield fleet


def _environment(factory: pytest.TempPathFactory) -> dict[str, str]:
    base = factory.getbasetemp()
    return {"FLAGSPLIT_HOME": str(base / "home"), "FLAGSPLIT_CACHE": str(base / "cache")}


def _is_right(whole: Executable, number: int, answer: Answer) -> bool:
    wanted = whole.run(inputs_of(number))
    return answer.keys() == wanted.keys() and all(np.array_equal(answer[name], wanted[name]) for name in wanted)


def _swap(fleet: Fleet, bundle: Path, *more: str) -> "subprocess.Popen[bytes]":
    tiers = [part for tier, at in fleet.addresses.items() for part in ("--tier", f"{tier}={at.address}")]
    command = [sys.executable, "-m", "flagsplit.apps.cli", "swap", str(bundle), *tiers, "--json", *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ.copy())


def _result(process: "subprocess.Popen[bytes]") -> Mapping[str, object]:
    out, err = process.communicate(timeout=_PATIENCE_S)
    assert process.returncode == 0, err.decode()
    found: Mapping[str, object] = json.loads(out)
    return found


def _parts() -> list[Path]:
    return list(Path(os.environ["FLAGSPLIT_CACHE"]).rglob("*.part"))


def test_a_drain_under_load_loses_nothing(bundle: Bundle, own_fleet: Fleet, whole: Executable) -> None:
    with flagsplit.connect(bundle, own_fleet.addresses, settings=_SETTINGS) as session:
        futures = [session.submit(inputs_of(number)) for number in range(120)]
        futures[20].result(_PATIENCE_S)
        own_fleet.signal("cloud", signal.SIGTERM)
        answers = [future.result(_PATIENCE_S) for future in futures]
        assert all(_is_right(whole, number, answer) for number, answer in enumerate(answers))
        assert own_fleet.processes["cloud"].wait(_PATIENCE_S) == 0
        assert session.tiers["cloud"] != "up"
        assert len({answer.report.plan for answer in answers}) > 1


def test_a_worker_ends_at_once_at_the_second_signal(own_fleet: Fleet) -> None:
    worker = own_fleet.processes["edge"]
    worker.send_signal(signal.SIGTERM)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(10.0) in (0, -signal.SIGTERM)  # the second may come when nobody listens to it any more


def _load(session: Session, whole: Executable, first: int, until: float) -> int:
    """Keep eight requests on their way until a time; gives how many were answered."""
    count = first
    while time.monotonic() < until:
        futures = [(number, session.submit(inputs_of(number))) for number in range(count, count + 8)]
        assert all(_is_right(whole, number, future.result(_PATIENCE_S)) for number, future in futures)
        count += 8
    return count - first


def test_a_swap_under_load_fails_no_request(
    bundle: Bundle, successor: Bundle, own_fleet: Fleet, whole: Executable
) -> None:
    with flagsplit.connect(bundle, own_fleet.addresses, settings=_SETTINGS) as session:
        swap = _swap(own_fleet, successor.path, "--retire", "old")
        answered = 0
        give_up = time.monotonic() + _PATIENCE_S
        while swap.poll() is None:
            assert time.monotonic() < give_up
            answered += _load(session, whole, answered, time.monotonic() + 0.1)
        assert _result(swap)["tiers"] == {"edge": "retired", "cloud": "retired"}
        assert answered > 8
        assert _load(session, whole, answered, time.monotonic() + 0.1)
    with flagsplit.connect(successor, own_fleet.addresses, settings=_SETTINGS) as session:
        assert session.run(inputs_of(1)).report.plan == "plan0"
        assert set(session.tiers.values()) == {"up"}
    assert not _parts()


# Sends 500 bytes at a time, says so, and takes its time over it.
_SLOW_UPLOADER = """
import sys, time
from dataclasses import replace
from pathlib import Path
from flagsplit.runtime.bundle_swap import SwapMachine, SwapOptions
from flagsplit.runtime.bundle_upload import UploadFile, UploadOptions
from flagsplit.runtime.shell import NoEngine, Shell
from flagsplit.transport.messages import PeerAddress
from flagsplit.transport.security import KeyStore
from flagsplit.transport.zeromq import ZmqChannel

file = UploadFile.of(Path(sys.argv[1]), sys.argv[2])
def read(offset, size):
    print(offset, flush=True)
    time.sleep(0.05)
    return file.read(offset, size)
channel = ZmqChannel(security=KeyStore().security())
options = SwapOptions(upload=UploadOptions(part_bytes=500, window_bytes=500))
machine = SwapMachine(replace(file, read=read), {"edge": PeerAddress(sys.argv[3])}, channel.instance, options)
shell = Shell(machine, channel, NoEngine(), lambda _: None, print, "slow")
shell.start(machine.start())
shell.join()
"""


def test_an_upload_goes_on_where_a_killed_uploader_was(successor: Bundle, own_fleet: Fleet) -> None:
    address = own_fleet.addresses["edge"].address
    command = [sys.executable, "-c", _SLOW_UPLOADER, str(successor.path), successor.digest, address]
    offsets = []
    for lines in (8, 5):
        uploader = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ.copy())
        assert uploader.stdout is not None
        offsets.append([int(uploader.stdout.readline()) for _ in range(lines)])
        uploader.kill()
        uploader.communicate()
    first, second = offsets
    assert first[0] == 0
    assert second[0] >= first[-1] > 0
    assert _result(_swap(own_fleet, successor.path))["tiers"] == {"edge": "ready", "cloud": "ready"}
    assert _result(_swap(own_fleet, successor.path))["tiers"] == {"edge": "ready", "cloud": "ready"}
    assert not _parts()


def test_where_one_refuses_nothing_is_retired(
    bundle: Bundle, own_fleet: Fleet, whole: Executable, tmp_path: Path
) -> None:
    other = flagsplit.open(build_bundle(tmp_path, PLANS[2:]))
    swap = _swap(own_fleet, other.path, "--keys", str(tmp_path / "strange"), "--patience-s", "2")
    _, err = swap.communicate(timeout=_PATIENCE_S)
    assert swap.returncode == 1
    assert b"no progress" in err
    with flagsplit.connect(bundle, own_fleet.addresses, settings=_SETTINGS) as session:
        assert _is_right(whole, 1, session.run(inputs_of(1)))
        assert set(session.tiers.values()) == {"up"}
