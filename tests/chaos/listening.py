"""A process of `flagsplit` that listens: to be killed, and started again on its port."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import IO, Any

MODULE = ("-m", "flagsplit.apps.cli")


class Listening:
    """One process after another, with the same words. The first is started, but not awaited.

    Args:
        words: the command and its options; how it listens and ends is added.
        environment: its homes.
        log: where standard error goes, if not where this process's goes.
        program: what Python runs.
    """

    def __init__(
        self,
        words: tuple[str, ...],
        environment: Mapping[str, str],
        log: IO[bytes] | int | None = None,
        program: tuple[str, ...] = MODULE,
    ) -> None:
        self._words, self._environment, self._log, self._program = words, {**os.environ, **environment}, log, program
        self.port = 0
        self.about: dict[str, Any] = {}
        self.process = self._start()

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    @property
    def tail(self) -> str:
        """What there is to say when it does not start."""
        return "the process did not start; see standard error"

    def await_start(self) -> None:
        """Wait until it listens."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.tail
        self.about = json.loads(line)
        self.port = int(self.about["address"].rpartition(":")[2])

    def restart(self) -> None:
        """Start it again when it has ended; wait for it yourself."""
        self.bury()
        self.process = self._start()

    def bury(self) -> None:
        """Wait until it has ended."""
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()

    def end(self) -> None:
        """Kill it for good."""
        self.process.kill()
        self.bury()

    def _start(self) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [
                *(sys.executable, *self._program, *self._words, "--json", "--threads", "1", "--until-stdin-closes"),
                *("--listen", self.address),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
            env=self._environment,
        )
