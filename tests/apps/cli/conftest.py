"""The command line as its users meet it: called in this process, or as a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest

from flagsplit.apps.cli.main import main

COMMAND = (sys.executable, "-m", "flagsplit.apps.cli")
START_S = 30.0


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> dict[str, Any]:
        """The one JSON object on standard output."""
        found = json.loads(self.out)
        assert isinstance(found, dict)
        assert self.out.count("\n") == 1
        return found

    @property
    def error(self) -> str:
        """The one line on standard error."""
        (line,) = self.err.splitlines()
        assert line.startswith("flagsplit: ")
        assert "Traceback" not in line
        assert "flagsplit broke" not in line
        assert self.out == ""
        return line.removeprefix("flagsplit: ")


Cli = Callable[..., Done]


class Process:
    """A command in a process of its own, in a session of its own, that ends with the test."""

    def __init__(self, arguments: tuple[str, ...], folder: Path) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            text=True,
            start_new_session=True,
        )

    def first_line(self) -> str:
        """The line in which it says that it is ready; an empty one if it ended instead."""
        return _pipe(self.process.stdout).readline()

    def signal(self, number: int) -> None:
        """Send a signal to the process and its group, as a terminal does."""
        os.killpg(self.process.pid, number)

    def end(self, timeout_s: float = 20.0) -> Done:
        """Wait until it ended by itself."""
        out, err = self.process.communicate(timeout=timeout_s)
        return Done(self.process.returncode, out, err)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


Spawn = Callable[..., Process]


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


@pytest.fixture(autouse=True)
def _own_folders(own_folders: None) -> None:
    """Keys and cache of the tests, not the user's."""


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    """Calls the entry point in this process, in the test's own folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["flagsplit", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        captured = capfd.readouterr()
        assert isinstance(left.value.code, int)
        return Done(left.value.code, captured.out, captured.err)

    return call


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Spawn]:
    """Starts the command as a process."""
    started: list[Process] = []

    def start(*arguments: object) -> Process:
        started.append(Process(tuple(map(str, arguments)), tmp_path))
        return started[-1]

    yield start
    for process in started:
        process.stop()


def processes_with(text: str) -> list[int]:
    """Processes of this host that have the text in their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if text.encode() in words:
            found.append(int(folder.name))
    return found


def wait_until(holds: Callable[[], bool], what: str, timeout_s: float = START_S) -> None:
    """Wait until something holds; fail the test with `what` if it does not come true."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"waited {timeout_s} s: {what}"
        time.sleep(0.02)


def end_gently(process: Process) -> Done:
    """SIGTERM, and what came of it."""
    process.signal(signal.SIGTERM)
    return process.end()
