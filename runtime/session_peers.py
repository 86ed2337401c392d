"""What a session knows of one worker: whether it is there, what it serves, what it can.

Only bookkeeping; what follows from a change is decided in `flagsplit.runtime.session_machine`.
"""

import math
from collections import deque
from dataclasses import dataclass, field

from flagsplit.runtime.liveness import LivenessOptions
from flagsplit.transport.messages import (
    INLINE,
    LZ4,
    OLDEST_VERSION,
    PROBE,
    RESUME,
    VERSION,
    ZSTD,
    Hello,
    PeerAddress,
    Welcome,
)

SPOKEN = (RESUME, PROBE, INLINE, ZSTD, LZ4)
"""The features that the machines of the runtime see to; the channel names those that it sees to itself."""

_EVERYTHING = ""
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0


@dataclass
class WorkerPeer:
    """One worker.

    Attributes:
        tier: the tier that it should be.
        address: where it listens.
        connected: whether the channel has it.
        asked: bundles that it was asked for and has not answered for, in order.
        serves: bundles that it said it serves.
        draining: bundles that it takes no new requests of; "" stands for all.
        features: what it said it understands.
        slowdown: factor by which it is slowed down on purpose.
        reason: why it is not there.
        refused: whether it was left because it does not serve what it was asked for.
        busy: how often in a row it had no room for this session.
        ask_again: when to try again after that; infinite if it is not to be tried.
        queue, held_bytes: what it said last of the requests that wait there and of its tensors; None before.
    """

    tier: str
    address: PeerAddress
    connected: bool = False
    asked: deque[str] = field(default_factory=deque)
    serves: set[str] = field(default_factory=set)
    draining: set[str] = field(default_factory=set)
    features: frozenset[str] = frozenset()
    slowdown: float = 1.0
    reason: str = "not connected yet"
    refused: bool = False
    busy: int = 0
    ask_again: float = math.inf
    queue: int | None = None
    held_bytes: int | None = None

    def takes(self, bundle: str) -> bool:
        """Whether it takes new requests of a bundle."""
        return self.connected and bundle in self.serves and self.draining.isdisjoint((bundle, _EVERYTHING))

    def hello(self, bundle: str, instance: str, others: dict[str, PeerAddress], liveness: LivenessOptions) -> Hello:
        """The words with which to ask for a bundle."""
        self.asked.append(bundle)
        heartbeat_ms = int(liveness.heartbeat_s * 1000)
        return Hello(OLDEST_VERSION, VERSION, instance, "session", bundle, heartbeat_ms, others, SPOKEN)

    def had_no_room(self, now: float, instance: str) -> None:
        """It is full: ask again later, twice as late each time up to a limit.

        Args:
            now: the time.
            instance: the session's, 32 hex digits; by it those differ who were refused at the same moment.
        """
        spread = 0.75 + int(instance[:4], 16) / 0x20000
        self.ask_again = now + spread * min(_FIRST_WAIT_S * 2.0 ** min(self.busy, 30), _LONGEST_WAIT_S)
        self.busy += 1

    def welcomed(self, message: Welcome) -> None:
        """It serves what it was asked for."""
        self.busy, self.ask_again = 0, math.inf
        if message.bundle in self.asked:
            self.asked.remove(message.bundle)
        self.serves.add(message.bundle)
        self.features = frozenset(message.features)
        self.slowdown = message.slowdown_permille / 1000

    def lost(self, reason: str) -> None:
        """The connection is gone, and with it all that was said on it."""
        if self.connected:  # else it was left already, and when to come back is settled
            self.ask_again = math.inf
        self.connected, self.reason = False, reason
        self.features = frozenset()
        for known in (self.asked, self.serves, self.draining):
            known.clear()
