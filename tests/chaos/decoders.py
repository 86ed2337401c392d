"""Processes of `flagsplit decode-serve` for one program, to be killed and started again on their ports."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self


class Decoders:
    """Some replicas of a program's service.

    Args:
        program: its folder.
        count: how many.
        environment: their homes.
        options: more words for the command line.
    """

    def __init__(self, program: Path, count: int, environment: Mapping[str, str], *options: str) -> None:
        self._program, self._options = program, options
        self._environment = {**os.environ, **environment}
        self._ports = [0] * count
        self.about: list[dict[str, Any]] = [{}] * count
        self.processes: list[subprocess.Popen[bytes]] = []
        self.processes = [self._start(index) for index in range(count)]
        for index in range(count):
            self._await(index)

    @property
    def addresses(self) -> list[str]:
        return [f"tcp://127.0.0.1:{port}" for port in self._ports]

    @property
    def digest(self) -> str:
        return str(self.about[0]["bundle"])

    def kill(self, index: int) -> None:
        """End a process without a last word."""
        self.processes[index].kill()
        self._bury(self.processes[index])

    def drain(self, index: int) -> int:
        """Tell a process to end, and wait until it has; its exit code."""
        self.processes[index].terminate()
        self._bury(self.processes[index])
        return self.processes[index].returncode

    def revive(self) -> None:
        """Start the processes that were killed, and wait until they listen."""
        dead = [index for index, process in enumerate(self.processes) if process.poll() is not None]
        for index in dead:
            self.processes[index] = self._start(index)
        for index in dead:
            self._await(index)

    def _await(self, index: int) -> None:
        out = self.processes[index].stdout
        assert out is not None
        line = out.readline()
        assert line, "the decoder did not start; see standard error"
        self.about[index] = json.loads(line)
        self._ports[index] = int(self.about[index]["address"].rpartition(":")[2])

    def _start(self, index: int) -> "subprocess.Popen[bytes]":
        command = [
            *(sys.executable, "-m", "flagsplit.apps.cli", "decode-serve", str(self._program), "--json"),
            *("--listen", f"tcp://127.0.0.1:{self._ports[index]}", "--threads", "1", "--until-stdin-closes"),
            *("--log-level", "warning", *self._options),
        ]
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env=self._environment,
        )

    @staticmethod
    def _bury(process: "subprocess.Popen[bytes]") -> None:
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            self._bury(process)
