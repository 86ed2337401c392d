"""What lies between two channels in memory: time, the policy of the links, and the messages under way.

The channels themselves are in `memory.py`.
"""

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from flagsplit.transport.channel import SendQueue
from flagsplit.transport.flow import Flow
from flagsplit.transport.messages import Frame, Lane, Message
from flagsplit.transport.peer_limits import PeerRates

if TYPE_CHECKING:
    from flagsplit.transport.memory import MemoryChannel


class LinkPolicy(Protocol):
    """Fate of messages between two channels, by their names."""

    def transit_s(self, source: str, target: str, message: Message) -> float | None:
        """Seconds on the way; None loses the message."""

    def reachable(self, source: str, target: str) -> bool:
        """Whether a connection can be made now."""


class PerfectLink:
    """No delay and no loss."""

    def transit_s(self, source: str, target: str, message: Message) -> float | None:  # noqa: ARG002
        return 0.0

    def reachable(self, source: str, target: str) -> bool:  # noqa: ARG002
        return True


class Clock(Protocol):
    """The time of a network, and how to let it pass."""

    def now_s(self) -> float:
        """Seconds since some fixed moment."""

    def sleep(self, news: threading.Condition, timeout_s: float | None) -> bool:
        """Wait for `news`, whose lock is held, up to `timeout_s`. False: time stands still, so waiting is pointless."""


class RealClock:
    """Wall time, monotonic."""

    def now_s(self) -> float:
        return time.monotonic()

    def sleep(self, news: threading.Condition, timeout_s: float | None) -> bool:
        news.wait(timeout_s)
        return True


@dataclass(slots=True)
class InFlight:
    """A message under way: its frames, when it is there, and what it counts for."""

    due_s: float
    message: Message | None
    frames: list[Frame]
    size_bytes: int


@dataclass(slots=True, eq=False)
class End:
    """One side of a connection: who it is for, what it calls the other side, and what is on its way to it.

    `rates` are those of an inbound peer.
    """

    channel: "MemoryChannel"
    peer: str
    up: bool
    flow: Flow
    rates: PeerRates | None = None
    other: "End | None" = None
    inbox: dict[Lane, deque[InFlight]] = field(default_factory=lambda: {lane: deque() for lane in Lane})
    size_bytes: dict[Lane, int] = field(default_factory=lambda: dict.fromkeys(Lane, 0))

    def put(self, lane: Lane, item: InFlight) -> None:
        queue = self.inbox[lane]
        if queue:
            item.due_s = max(item.due_s, queue[-1].due_s)  # order is kept per lane, whatever the delays
        queue.append(item)
        self.size_bytes[lane] += item.size_bytes

    def take(self, now_s: float) -> list[Frame] | None:
        for lane in (Lane.CONTROL, Lane.DATA):
            if self.inbox[lane] and self.inbox[lane][0].due_s <= now_s:
                item = self.inbox[lane].popleft()
                self.size_bytes[lane] -= item.size_bytes
                return item.frames
        return None

    @property
    def held(self) -> SendQueue:
        """Data that may not be sent yet for want of credit; control never waits."""
        return self.flow.queues[Lane.DATA]

    def next_due_s(self) -> float | None:
        times = [queue[0].due_s for queue in self.inbox.values() if queue]
        credit_due_s = self.flow.grant.due_s() if self.up else None
        return min(times if credit_due_s is None else [*times, credit_due_s], default=None)

    def backlog_bytes(self, lane: Lane) -> int:
        under_way_bytes = self.other.size_bytes[lane] if self.other else 0
        return under_way_bytes + (self.held.size_bytes if lane is Lane.DATA else 0)
