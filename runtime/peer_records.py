"""What a worker knows of one peer: somebody who came, or a tier that it dialed. All together: `worker_peers.py`."""

from collections import deque
from dataclasses import dataclass, field

from flagsplit.transport.messages import Chunk, Open, PeerAddress


@dataclass
class Inbound:
    """Somebody who connected to this worker and was welcomed.

    Attributes:
        instance: names this start of its process.
        role: "session" or "worker".
        key: the public key that it proved to have, or "".
        bundle: what its last Hello asked for; "" if only to manage bundles.
        silence_s: how long it may be silent.
        last_heard: when it last said something.
        features: what it understands.
        ways: by bundle that it may ask for and tier, its name for the tiers beyond.
    """

    instance: str
    role: str
    key: str
    bundle: str
    silence_s: float
    last_heard: float
    features: frozenset[str] = frozenset()
    ways: dict[str, dict[str, str]] = field(default_factory=dict)


@dataclass
class Beyond:
    """A tier that this worker passes requests on to.

    Attributes:
        tier, address: which one, and where.
        connected: whether messages can be sent.
        asked: bundles of the Hellos that were not answered yet, in their order.
        welcomed: bundles that may be spoken of.
        features: what it understands.
        waiting: by bundle, what goes out with its Welcome.
        waiting_since: by bundle, when the first of these came.
    """

    tier: str
    address: PeerAddress
    connected: bool = False
    asked: deque[str] = field(default_factory=deque)
    welcomed: set[str] = field(default_factory=set)
    features: frozenset[str] = frozenset()
    waiting: dict[str, list[Open | Chunk]] = field(default_factory=dict)
    waiting_since: dict[str, float] = field(default_factory=dict)

    def withdraw(self, sid: str, rid: int) -> None:
        """Drop what waits on behalf of a request."""
        for bundle, messages in list(self.waiting.items()):
            self.waiting[bundle] = [message for message in messages if (message.sid, message.rid) != (sid, rid)]
            if not self.waiting[bundle]:
                self.forget(bundle)

    def forget(self, bundle: str) -> list[Open | Chunk]:
        """Drop what waits for a bundle's Welcome, and give it."""
        self.waiting_since.pop(bundle, None)
        return self.waiting.pop(bundle, [])

    def lose(self) -> None:
        """The connection is gone, and with it whatever was agreed."""
        self.connected = False
        self.asked.clear()
        self.welcomed.clear()
        self.features = frozenset()
        self.waiting.clear()
        self.waiting_since.clear()
