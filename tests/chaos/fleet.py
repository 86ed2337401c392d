"""Worker processes to be cruel to."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from flagsplit.transport.messages import PeerAddress


class Fleet:
    """One worker process per tier; each keeps its port over all its lives."""

    def __init__(self, bundle: Path, tiers: tuple[str, ...], environment: Mapping[str, str]) -> None:
        self._bundle = bundle
        self._environment = {**os.environ, **environment}
        self._ports = dict.fromkeys(tiers, 0)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._killed: set[str] = set()
        self.revive()

    @property
    def addresses(self) -> dict[str, PeerAddress]:
        return {tier: PeerAddress(f"tcp://127.0.0.1:{port}") for tier, port in self._ports.items()}

    def kill(self, *tiers: str) -> None:
        for tier in tiers:
            self._killed.add(tier)
            self.processes[tier].kill()

    def signal(self, tier: str, number: signal.Signals) -> None:
        self.processes[tier].send_signal(number)

    def revive(self) -> None:
        """Start every worker that is not running, and wait until they listen."""
        started = [tier for tier in self._ports if self._needs_start(tier)]
        for tier in started:
            self.processes[tier] = self._start(tier)
        for tier in started:
            stdout = self.processes[tier].stdout
            assert stdout is not None
            self._ports[tier] = int(json.loads(stdout.readline())["address"].rpartition(":")[2])

    def _needs_start(self, tier: str) -> bool:
        process = self.processes.get(tier)
        if process is None:
            return True
        process.send_signal(signal.SIGCONT)
        if tier not in self._killed and process.poll() is None:
            return False
        self._killed.discard(tier)
        self._bury(process)
        return True

    def _start(self, tier: str) -> "subprocess.Popen[bytes]":
        command = [
            *(sys.executable, "-m", "flagsplit.apps.cli", "serve", str(self._bundle), "--tier", tier, "--json"),
            *("--listen", f"tcp://127.0.0.1:{self._ports[tier]}", "--threads", "1", "--until-stdin-closes"),
        ]
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
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
        for process in self.processes.values():
            process.kill()
            self._bury(process)


def left_over() -> tuple[set[str], int, set[int]]:
    """Names of threads, number of file descriptors, and ids of child processes of this process."""
    threads = {thread.name for thread in threading.enumerate()}
    children = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            children.add(int(stat.parent.name))
    return threads, len(list(Path("/proc/self/fd").iterdir())), children
