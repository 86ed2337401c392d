"""What a session knows of one worker: whether it is there, what it serves, what it can.

Only bookkeeping; what follows from a change is decided in `flagsplit.runtime.session_machine`.
"""

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

    def welcomed(self, message: Welcome) -> None:
        """It serves what it was asked for."""
        if message.bundle in self.asked:
            self.asked.remove(message.bundle)
        self.serves.add(message.bundle)
        self.features = frozenset(message.features)
        self.slowdown = message.slowdown_permille / 1000

    def lost(self, reason: str) -> None:
        """The connection is gone, and with it all that was said on it."""
        self.connected, self.reason = False, reason
        self.features = frozenset()
        for known in (self.asked, self.serves, self.draining):
            known.clear()
