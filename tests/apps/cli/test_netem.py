"""`flagsplit netem` as a process: what it carries, what it says, how it ends; and what it is asked wrongly."""

import json
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.apps.cli.conftest import Cli, Process, Spawn, end_gently
from tests.transport.emulation.live import echo, server

TO = ("netem", "--to", "tcp://127.0.0.1:9")


@pytest.fixture
def target() -> Iterator[str]:
    """The address of a server that echoes what it hears."""
    with server(echo) as port:
        yield f"tcp://127.0.0.1:{port}"


def ask(address: str, size_bytes: int) -> None:
    """Send so much through the link and read it back."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connected:
        connected.sendall(bytes(size_bytes))
        left = size_bytes
        while left:
            left -= len(connected.recv(left))


def ready(process: Process) -> str:
    """The address in the line that says that it is ready."""
    data = json.loads(process.first_line())
    assert data.keys() == {"address", "to", "seed", "pid"}
    return str(data["address"])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_carries_until_a_signal(spawn: Spawn, target: str, number: int) -> None:
    process = spawn("netem", "--to", target, "--link", "100mbit/2ms", "--seed", 3, "--json")
    ask(ready(process), 50_000)
    process.signal(number)
    done = process.end()
    assert (done.code, done.err) == (0, "")
    assert done.data["over"] is True
    assert (done.data["up_bytes"], done.data["down_bytes"]) == (50_000, 50_000)
    assert done.data["up"] == {"mbit": 100, "delay_ms": 1, "jitter_ms": 0, "loss": 0}


@pytest.mark.slow
def test_for_people(spawn: Spawn, target: str) -> None:
    process = spawn("netem", "--to", target, "--profile", "5g", "--verbose", "--for", 1.5)
    said = process.first_line()
    assert said.startswith(f"emulating a link to {target} at tcp://127.0.0.1:")
    ask(said.rstrip().rpartition(" ")[2], 5000)
    done = process.end()
    assert (done.code, done.err) == (0, "")
    *seconds, last = done.out.splitlines()
    assert seconds
    for line in seconds:
        assert re.fullmatch(r"up .+, .+bit/s of 200 Mbit/s; down .+, .+bit/s of 200 Mbit/s; \d connections?", line)
    assert last == "carried 5 kB up, 5 kB down"


@pytest.mark.slow
def test_a_script_and_a_trace(spawn: Spawn, tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text("seconds,mbit\n0,8\n0.2,80\n")
    (tmp_path / "script.json").write_text('{"version": 1, "events": [{"at_s": 0.1, "do": "partition"}]}')
    options = ("--trace", "trace.csv", "--script", "script.json", "--verbose", "--json")
    process = spawn(*TO, *options)
    ready(process)
    state = json.loads(process.first_line())
    assert state["faults"] == ["partitioned"]
    assert state["up"]["mbit"] in {8, 80}
    assert end_gently(process).code == 0


@pytest.mark.slow
def test_a_script_alone_begins_with_a_free_link(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "script.json").write_text('{"version": 1, "events": []}')
    done = cli(*TO, "--script", "script.json", "--json", "--for", 0.05)
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out.splitlines()[-1])["up"]["mbit"] is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "expected how the link is: --profile, --link, --trace or --script"),
        (("--profile", "gsm"), "--profile expects one of wifi, lte, 5g, bad, came 'gsm'"),
        (("--link", "fast"), "link 'fast': expected BW/RTT"),
        (("--link", "1mbit/1ms", "--profile", "lte"), "expected one of --profile, --link and --trace, came --profile"),
        (("--trace", "none"), "cannot read the trace none: No such file"),
        (("--script", "none"), "cannot read the script none: No such file"),
        (("--script", "wrong.json"), "wrong.json: version: Field required"),
        (("--trace", "wrong.json"), "wrong.json: expected CSV with the header"),
        (("--profile", "lte", "--listen", "ipc:///tmp/x"), "--listen expects tcp://HOST:PORT, came 'ipc:///tmp/x'"),
        (("--profile", "lte", "--listen", "here"), "address 'here': expected tcp://HOST:PORT"),
        (("--profile", "lte", "--listen", "tcp://192.0.2.1:0"), "cannot listen at 192.0.2.1:0"),
        (("--profile", "lte", "--for", "inf"), "--for expects seconds, came inf"),
        (("--profile", "lte", "--for", "-1"), "'--for': Input should be greater than or equal to 0"),
        (("--profile", "lte", "--seed", "x"), "'--seed': Input should be a valid integer"),
    ],
)
def test_misuse(cli: Cli, tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    (tmp_path / "wrong.json").write_text("{}")
    done = cli(*TO, *options)
    assert done.code == 2
    assert said in done.error


def test_addresses_to_carry_to(cli: Cli) -> None:
    for address, said in {
        "here": "address 'here': expected tcp://HOST:PORT",
        "ipc:///tmp/x": "only TCP can be emulated",
        "tcp://127.0.0.1:0": "a wildcard can be listened on, not connected to",
        "tcp://no.such.host.invalid:1": "expected a host to forward to, came 'no.such.host.invalid'",
    }.items():
        done = cli("netem", "--to", address, "--profile", "lte")
        assert done.code == 2
        assert said in done.error
