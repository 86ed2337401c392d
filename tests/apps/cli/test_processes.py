"""Real processes: what they print and where, how they end, and that none is left behind however they end."""

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from tests.apps.cli.conftest import COMMAND, Done, Process, Spawn, end_gently, processes_with, wait_until

import flagsplit

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc"),
]
LISTEN = ("--listen", "tcp://127.0.0.1:0", "--json")
ENDLESS = ("--repeat", "1000000", "--json")


def workers_of(bundle: Path) -> int:
    """How many workers of that bundle run on this host."""
    return sum("serve" in words_of(pid) for pid in processes_with(str(bundle)))


def words_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except OSError:
        return []


@pytest.fixture
def bundle(small_bundle: Path, tmp_path: Path) -> Path:
    """A bundle under a name that no other test has, so that its processes can be told apart."""
    path = tmp_path / "mine.flagsplit"
    path.write_bytes(small_bundle.read_bytes())
    return path


def ready(worker: Process) -> str:
    """The address in a worker's ready line."""
    data = json.loads(worker.first_line())
    assert data.keys() == {"tier", "address", "bundle", "bundles", "pid"}
    assert data["pid"] == worker.process.pid
    return str(data["address"])


def assert_one_line(done: Done, code: int, *said: str) -> None:
    assert done.code == code
    assert all(text in done.error for text in said), done.error


def test_run_starts_workers_and_ends_them(spawn: Spawn, bundle: Path) -> None:
    done = spawn("run", bundle, "--plan", "all-cloud", "--check", "--json").end()
    assert (done.code, done.err) == (0, "")
    assert done.data["workers"] == {"edge": "up", "cloud": "up"}
    assert done.data["check"]["max_abs"] == 0
    assert processes_with(str(bundle)) == []


def test_serve_says_when_it_is_ready_and_ends_on_signals(spawn: Spawn, bundle: Path) -> None:
    workers = [spawn("serve", bundle, "--tier", "edge", *LISTEN) for _ in range(2)]
    addresses = [ready(worker) for worker in workers]
    assert len(set(addresses)) == 2
    for worker, number in zip(workers, (signal.SIGTERM, signal.SIGINT), strict=True):
        worker.signal(number)
        done = worker.end()
        assert (done.code, done.out) == (0, "")
        assert "Traceback" not in done.err
    assert processes_with(str(bundle)) == []


def test_a_worker_of_another_bundle(spawn: Spawn, bundle: Path, other_bundle: Path) -> None:
    worker = spawn("serve", other_bundle, "--tier", "edge", *LISTEN)
    address = ready(worker)
    digests = [flagsplit.open(path).digest[:12] for path in (bundle, other_bundle)]
    taken = spawn("serve", bundle, "--tier", "edge", "--listen", f"tcp://127.0.0.1:{address.rpartition(':')[2]}")
    assert_one_line(taken.end(), 2, "the port is taken by another process")
    assert_one_line(spawn("run", bundle, "--tier", f"edge={address}").end(), 1, "refused the session", *digests)
    assert end_gently(worker).code == 0
    assert processes_with(str(bundle)) == processes_with(str(other_bundle)) == []


def test_a_port_that_is_no_worker(spawn: Spawn, bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        started = time.monotonic()
        done = spawn("run", bundle, "--tier", f"edge=tcp://127.0.0.1:{listener.getsockname()[1]}", "--json").end()
        assert time.monotonic() - started < 15
    assert done.code == 0
    assert done.data["plan"] == "all-phone"
    assert done.err.startswith("flagsplit: tier edge is not there (")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_run_is_interrupted(spawn: Spawn, bundle: Path, number: signal.Signals) -> None:
    run = spawn("run", bundle, *ENDLESS)
    wait_until(lambda: workers_of(bundle) == 2, "two workers start")
    time.sleep(0.5)
    run.signal(number)
    done = run.end()
    if number == signal.SIGINT:
        assert_one_line(done, 130, "interrupted")
    else:
        assert done.code == -number
    assert done.out == ""
    wait_until(lambda: processes_with(str(bundle)) == [], "the workers end with the one who started them")


def test_run_is_interrupted_while_it_starts(spawn: Spawn, bundle: Path) -> None:
    for moment_s in (0.3, 0.6):
        run = spawn("run", bundle, *ENDLESS)
        time.sleep(moment_s)
        run.signal(signal.SIGINT)
        assert_one_line(run.end(), 130, "interrupted")
    wait_until(lambda: processes_with(str(bundle)) == [], "nothing is left behind")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_build_is_interrupted(spawn: Spawn, tmp_path: Path, small_model: Path, number: signal.Signals) -> None:
    build = spawn("build", small_model, "--tiers", "phone,edge,cloud", "-o", tmp_path / "x.flagsplit")
    wait_until(lambda: any(tmp_path.iterdir()) or build.process.poll() is not None, "the build starts to write")
    os.kill(build.process.pid, number)
    done = build.end()
    left = {path.name for path in tmp_path.iterdir()}
    # Python ends a process by the signal itself, which shells call 130 too, if a native module met the interrupt.
    assert (done.code, left) in ((130, set()), (-number, set()), (0, {"x.flagsplit"}))
    assert number == signal.SIGINT or done.code != 130
    assert "Traceback" not in done.err


def test_standard_output_may_close_early(spawn: Spawn) -> None:
    listing = spawn("zoo", "list", "--json")
    assert listing.process.stdout is not None
    listing.process.stdout.close()
    assert listing.process.stderr is not None
    assert listing.process.wait(20) in (0, 1)
    assert "Traceback" not in listing.process.stderr.read()
    listing.process.stderr.close()
    listing.process.stdout = listing.process.stderr = None


def shell(words: str, folder: Path, **environment: str) -> Done:
    """What a shell makes of a line; the command is `$FLAGSPLIT` there."""
    done = subprocess.run(
        ["bash", "-c", words],
        cwd=folder,
        env={**os.environ, "FLAGSPLIT": " ".join(COMMAND), **environment},
        capture_output=True,
        timeout=60,
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


def test_a_full_disk_behind_standard_output_is_no_bug(tmp_path: Path) -> None:
    assert_one_line(shell("$FLAGSPLIT devices --json > /dev/full", tmp_path), 1, "No space left on device")
    assert_one_line(shell("$FLAGSPLIT keys show > /dev/full", tmp_path), 1, "No space left on device")


def test_streams_that_are_closed_are_nothing_to_fail_at(tmp_path: Path) -> None:
    done = shell("$FLAGSPLIT zoo list --json <&- >&-", tmp_path)
    assert (done.code, done.out, done.err) == (0, "", "")
    assert shell("$FLAGSPLIT inspect nothing <&- >&- 2>&-", tmp_path).code == 2


def test_characters_that_an_encoding_lacks(bundle: Path, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.flagsplit"))
    odd.write_bytes(bundle.read_bytes())
    plain = shell(f"$FLAGSPLIT run {bundle} --plan all-cloud", tmp_path, PYTHONIOENCODING="ascii")
    assert (plain.code, plain.err, "phone ? edge" in plain.out) == (0, "", True)
    named = shell("$FLAGSPLIT inspect $'\\xff.flagsplit' --json", tmp_path)
    assert (named.code, named.err, named.data["bundle"]) == (0, "", "\udcff.flagsplit")


def test_a_worker_may_open_as_many_files_as_the_operator_allows(bundle: Path, tmp_path: Path) -> None:
    """The limit of shells is for programs of before: each client takes two files."""
    words = (
        f"ulimit -S -n 64; ulimit -H -n 512; exec $FLAGSPLIT serve {bundle} --tier cloud {' '.join(LISTEN)} < /dev/null"
    )
    worker = subprocess.Popen(
        ["bash", "-c", words],
        cwd=tmp_path,
        env={**os.environ, "FLAGSPLIT": " ".join(COMMAND)},
        stdout=subprocess.PIPE,
    )
    try:
        assert worker.stdout is not None
        about = json.loads(worker.stdout.readline())
        limits = Path(f"/proc/{about['pid']}/limits").read_text().splitlines()
        (files,) = [line.split()[3:5] for line in limits if line.startswith("Max open files")]
        assert files == ["512", "512"]
    finally:
        worker.terminate()
        worker.communicate(timeout=20)


@pytest.mark.parametrize("count", [18, 22, 63])
def test_hardly_any_files_are_one_line_and_no_hang(bundle: Path, tmp_path: Path, count: int) -> None:
    """Of 22, libzmq ended the process with a line of its own."""
    done = shell(f"ulimit -n {count}; exec $FLAGSPLIT serve {bundle} --tier cloud {' '.join(LISTEN)}", tmp_path)
    assert done.code in (1, 2)
    assert f"Too many open files: expected a limit of 64 or more, came {count}; raise it" in done.error
