"""Faults on demand for memory networks: a clock that moves only when told, and links that lose, delay or swallow.

Everything is decided by the script, nothing by chance. Import it from `testing.py`, with the conformance suite.
"""

import threading
from collections.abc import Callable

from flagsplit.errors import InternalError
from flagsplit.transport.memory import MemoryChannel
from flagsplit.transport.messages import Message


class VirtualClock:
    """Time that stands still until `advance`; `poll` then never waits."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def now_s(self) -> float:
        return self._now_s

    def sleep(self, news: threading.Condition, timeout_s: float | None) -> bool:  # noqa: ARG002
        return False

    def advance(self, seconds: float) -> None:
        if seconds < 0:
            raise InternalError(f"time cannot go back by {-seconds} s")
        self._now_s += seconds


class Faults:
    """A `LinkPolicy` that tests script, by the names of the channels."""

    def __init__(self) -> None:
        self._delays_s: dict[tuple[str, str], float] = {}
        self._cut: set[frozenset[str]] = set()
        self._drops: list[tuple[Callable[[Message], bool], int]] = []
        self.dropped: list[Message] = []

    def drop(self, matches: Callable[[Message], bool], count: int = 1) -> None:
        """Lose the next `count` messages that match, on any link."""
        self._drops.append((matches, count))

    def delay(self, source: str, target: str, seconds: float) -> None:
        """Every message from now on takes this long from `source` to `target`."""
        self._delays_s[source, target] = seconds

    def partition(self, one: str, other: str) -> None:
        """A black hole between two channels: messages vanish, nobody is told, new connections fail."""
        self._cut.add(frozenset((one, other)))

    def heal(self, one: str, other: str) -> None:
        self._cut.discard(frozenset((one, other)))

    def reachable(self, source: str, target: str) -> bool:
        return frozenset((source, target)) not in self._cut

    def transit_s(self, source: str, target: str, message: Message) -> float | None:
        if not self.reachable(source, target) or self._is_dropped(message):
            self.dropped.append(message)
            return None
        return self._delays_s.get((source, target), 0.0)

    def _is_dropped(self, message: Message) -> bool:
        for index, (matches, count) in enumerate(self._drops):
            if matches(message):
                self._drops[index : index + 1] = [(matches, count - 1)] if count > 1 else []
                return True
        return False


def kill(channel: MemoryChannel) -> None:
    """End a channel as `kill -9` ends a process: what it sent and nobody received yet is lost."""
    channel.drop_in_flight()
    channel.close()
