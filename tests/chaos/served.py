"""One worker process with everything that can be seen of it from outside: memory, open files, log, answers.

`Fleet` is for killing many; this one is for watching. How to be cruel to its socket is in `zmtp.py`, and what messages
to send it in `fuzz.py`.
"""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

import numpy as np
from tests.chaos.listening import Listening
from tests.runtime.bundles import inputs_of

import flagsplit
from flagsplit.runtime.bundle import Bundle
from flagsplit.runtime.liveness import LivenessOptions
from flagsplit.runtime.session import Answer, Session, SessionSettings
from flagsplit.runtime.session_machine import SessionOptions
from flagsplit.targets.interface import Executable, LoadOptions

PATIENCE_S = 40.0
SETTINGS = SessionSettings(
    deadline_s=PATIENCE_S,
    host=LoadOptions(threads=1),
    machine=SessionOptions(attempt_s=4.0, liveness=LivenessOptions(heartbeat_s=0.25, missed=6)),
)
# Boundary tensors of two megabytes, eight chunks.
LARGE = 20_000
BY_CLOUD, ALONE = "plan1", "plan3"
_PLAN_OF = {"cloud": BY_CLOUD, "edge": "plan2"}
PLAIN = """
from flagsplit.transport.security import NO_SECURITY, KeyStore
KeyStore.security = lambda self: NO_SECURITY
KeyStore.is_worker = lambda self, key: True
"""
# What breaks a worker is logged in one line; who reads the log here wants to know where.
_MAIN = """
import logging
from flagsplit.apps.cli.main import main
logging.Logger.error = lambda self, text, *values, **_: self.log(logging.ERROR, text, *values, exc_info=True)
main()
"""


class Served(Listening):
    """`flagsplit serve` for one tier; it keeps its port over all its lives.

    Args:
        bundle: what it serves.
        environment: its homes.
        options: more words for the command line.
        tier: the tier.
        patch: Python that runs before the command, to break something inside.
    """

    def __init__(
        self, bundle: Bundle, environment: Mapping[str, str], *options: str, tier: str = "cloud", patch: str = ""
    ) -> None:
        self.tier = tier
        self._written = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        words = ("serve", str(bundle.path), "--tier", tier, *options)
        super().__init__(words, environment, self._written, ("-c", patch + _MAIN))
        self.await_start()

    @property
    def log(self) -> str:
        """What it wrote to standard error in all its lives."""
        size_bytes = os.fstat(self._written.fileno()).st_size
        return os.pread(self._written.fileno(), size_bytes, 0).decode(errors="replace")

    @property
    def tail(self) -> str:
        """The end of its log."""
        size_bytes = os.fstat(self._written.fileno()).st_size
        return os.pread(self._written.fileno(), 4000, max(0, size_bytes - 4000)).decode(errors="replace")

    @property
    def rss_mb(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1e3

    @property
    def open_files(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    @property
    def cpu_s(self) -> float:
        """Processor time that it used so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def check_alive(self, process_id: int) -> None:
        """It is still the same process, and nothing in it broke on the way, as far back as its log is short."""
        story = self.tail
        assert (self.process.pid, self.process.poll()) == (process_id, None), story
        assert "Traceback" not in story, story

    def kill(self) -> None:
        self.process.kill()

    def revive(self) -> None:
        """Wake it up or start it again, whichever it needs, and wait until it listens."""
        self.process.send_signal(signal.SIGCONT)
        try:
            self.process.wait(0.05)
        except subprocess.TimeoutExpired:
            return
        self.restart()
        self.await_start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self._written.close()


class Oracle:
    """The unsplit model, and the question whether a worker still gives its answers."""

    def __init__(self, bundle: Bundle, whole: Executable) -> None:
        self.bundle, self._whole = bundle, whole

    def check(self, answer: Answer, number: int, batch: int = 2) -> None:
        """The answer to `inputs_of(number, batch)` is the unsplit model's, bit for bit."""
        wanted = self._whole.run(inputs_of(number, batch))
        assert answer.keys() == wanted.keys()
        assert all(np.array_equal(answer[name], array) for name, array in wanted.items()), f"request {number}"

    def check_serves(self, served: Served, *, keys: Path | None = None, batch: int = 64) -> float:
        """A fresh client gets the right answer from a worker; the seconds that took, all in all."""
        started, tier = time.monotonic(), served.tier
        with flagsplit.connect(self.bundle, {tier: served.address}, keys=keys, settings=SETTINGS) as session:
            until(lambda: session.tiers[tier] == "up", "the worker to be up")
            answer = session.run(inputs_of(7, batch))
            self.check(answer, 7, batch)
            assert answer.report.plan == _PLAN_OF[tier]
        return time.monotonic() - started

    def check_recovers(self, session: Session) -> None:
        """A session that was done wrong by finds the way to the worker again."""
        until(lambda: session.tiers["cloud"] == "up", "the worker to be up again")
        answer = session.run(inputs_of(8))
        self.check(answer, 8)
        assert answer.report.plan == BY_CLOUD


def until(done: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait for something that must come."""
    give_up = time.monotonic() + patience_s
    while not done():
        assert time.monotonic() < give_up, f"waited {patience_s:g} s for {what}"
        time.sleep(0.01)
