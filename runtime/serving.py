"""A worker's machine behind a listening channel: what whatever serves a tier can be told and asked."""

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from flagsplit.runtime.events import BeginDrain, Ended, Instruction, Note, Pause
from flagsplit.runtime.shell import Shell
from flagsplit.runtime.worker_machine import WorkerMachine, WorkerStats
from flagsplit.transport.channel import Channel

if TYPE_CHECKING:
    from flagsplit.runtime.telemetry.telemetry import Telemetry


class Serving:
    """Who inherits from it makes the machine, the shell and, if it is to be watched, the telemetry.

    Args:
        kind: what it calls itself, such as "worker".
        channel: how it listens.
        failed: called if it breaks.
        ended: called when it ended by itself, because it was drained.

    Attributes:
        address: where it really listens.
        drained: whether it ended by itself.
    """

    address: str
    _machine: WorkerMachine
    _shell: Shell

    def __init__(
        self, kind: str, channel: Channel, failed: Callable[[Exception], None], ended: Callable[[], None]
    ) -> None:
        self.drained = threading.Event()
        self._kind, self._channel, self._failed, self._ended = kind, channel, failed, ended
        self._telemetry: Telemetry | None = None
        self._log = logging.getLogger(type(self).__module__)

    @property
    def http(self) -> str:
        """URL of its metrics, health and stats, "" if it has none."""
        return "" if self._telemetry is None else self._telemetry.http

    def stop(self) -> None:
        """Say goodbye to all peers and free everything. A second call does nothing."""
        self._shell.stop()
        self._unwatch()

    def drain(self, reason: str = "") -> None:
        """Finish what is here, take nothing new, then end; `wait` tells when. From any thread."""
        self._shell.post(BeginDrain(reason or f"the {self._kind} of tier {self._machine.tier} is being shut down"))

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until it ended; whether it has."""
        return self._shell.join(timeout_s)

    def readiness(self) -> tuple[bool, str]:
        """Whether new sessions and streams are welcome, and if not, why."""
        if not self._shell.is_running:
            return False, f"the {self._kind} ended"
        return self._shell.ask(self._machine.readiness)

    def stats(self) -> WorkerStats:
        """What there is now, and what was so far; a moment's view, taken without stopping anything."""
        return self._shell.ask(self._machine.stats)

    def _unwatch(self) -> None:
        if self._telemetry is not None:
            self._telemetry.close()

    def _tell(self, instruction: Instruction) -> None:
        match instruction:
            case Note(text):
                self._log.info("%s", text)
            case Pause(peer, paused):
                self._channel.pause(peer, paused)
            case Ended(reason):
                self._log.info("ends: %s", reason)
                self.drained.set()
                self._shell.stop()
                self._ended()

    def _broke(self, error: Exception) -> None:
        self._log.error("the %s broke: %s: %s", self._kind, type(error).__name__, error)
        if self._telemetry is not None:
            self._telemetry.state = f"the {self._kind} broke"
        self._failed(error)
