"""Worker processes to be cruel to."""

import os
import signal
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from tests.chaos.listening import Listening

from flagsplit.transport.messages import PeerAddress


class Fleet:
    """One worker process per tier; each keeps its port over all its lives."""

    def __init__(self, bundle: Path, tiers: tuple[str, ...], environment: Mapping[str, str]) -> None:
        self._killed: set[str] = set()
        self._workers = {
            tier: Listening(("serve", str(bundle), "--tier", tier), environment, subprocess.DEVNULL) for tier in tiers
        }
        for worker in self._workers.values():
            worker.await_start()

    @property
    def addresses(self) -> dict[str, PeerAddress]:
        return {tier: PeerAddress(worker.address) for tier, worker in self._workers.items()}

    @property
    def processes(self) -> "dict[str, subprocess.Popen[bytes]]":
        return {tier: worker.process for tier, worker in self._workers.items()}

    def kill(self, *tiers: str) -> None:
        for tier in tiers:
            self._killed.add(tier)
            self._workers[tier].process.kill()

    def signal(self, tier: str, number: signal.Signals) -> None:
        self._workers[tier].process.send_signal(number)

    def revive(self) -> None:
        """Wake the workers up, start those again that were killed or have ended, and wait until they listen."""
        started = [worker for tier, worker in self._workers.items() if self._needs_start(tier, worker)]
        for worker in started:
            worker.restart()
        for worker in started:
            worker.await_start()

    def _needs_start(self, tier: str, worker: Listening) -> bool:
        worker.process.send_signal(signal.SIGCONT)
        is_killed = tier in self._killed
        self._killed.discard(tier)
        return is_killed or worker.process.poll() is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers.values():
            worker.end()


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
