"""Worker processes that can be killed, frozen and started again, each behind an emulated link that can be cut."""

import json
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from flagsplit.transport.emulation import LinkShape, ShapingProxy


class Victim:
    """One worker and its link. It keeps its port over all its lives.

    Args:
        bundle: path of the bundle.
        tier: the tier that it serves.
        options: more words for `flagsplit serve`.
    """

    def __init__(self, bundle: Path, tier: str, options: tuple[str, ...] = ()) -> None:
        self.tier = tier
        self._bundle, self._options = bundle, options
        self._port = 0
        self._process = self._start()
        self.link = ShapingProxy("127.0.0.1", self._port, LinkShape(float("inf")))

    @property
    def address(self) -> str:
        """Where sessions reach it, through the link."""
        return self.link.address

    @property
    def process_id(self) -> int:
        """Of the process that runs now."""
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """SIGSTOP."""
        self._process.send_signal(signal.SIGSTOP)

    def heal(self) -> None:
        """Undo whatever was done to it."""
        self.link.heal()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
        else:
            self._bury()
            self._process = self._start()

    def close(self) -> None:
        """End it for good."""
        self.link.close()
        self._process.kill()
        self._process.wait()
        self._bury()

    def _start(self) -> "subprocess.Popen[bytes]":
        command = [
            *(sys.executable, "-m", "flagsplit.apps.cli", "serve", str(self._bundle), "--tier", self.tier, "--json"),
            *("--listen", f"tcp://127.0.0.1:{self._port}", "--threads", "1", "--until-stdin-closes", *self._options),
        ]
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
        if process.stdout is None or not (line := process.stdout.readline()):
            raise RuntimeError(f"the worker for tier {self.tier} did not start")
        self._port = int(json.loads(line)["address"].rpartition(":")[2])
        return process

    def _bury(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


class Victims:
    """One for each tier. Use it in a `with` statement."""

    def __init__(self, bundle: Path, tiers: tuple[str, ...], options: tuple[str, ...] = ()) -> None:
        self._stack = ExitStack()
        self.of: dict[str, Victim] = {}
        try:
            for tier in tiers:
                self.of[tier] = Victim(bundle, tier, options)
                self._stack.callback(self.of[tier].close)
        except BaseException:
            self._stack.close()
            raise

    @property
    def addresses(self) -> dict[str, str]:
        """Where sessions reach each tier."""
        return {tier: victim.address for tier, victim in self.of.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
