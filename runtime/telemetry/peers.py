"""Which tier stands behind a peer's name, as far as messages tell: to its channel a worker's callers are numbers."""

from collections.abc import Collection

from flagsplit.runtime.events import Event
from flagsplit.transport.channel import Down, Received, Violated
from flagsplit.transport.messages import Hello, Open

UNKNOWN = "unknown"


class PeerTiers:
    """Tiers of the peers that are connected.

    Args:
        tiers: names of all tiers, the session's first. Others are unknown, whatever a message says.
    """

    def __init__(self, tiers: Collection[str]) -> None:
        self._tiers = tuple(tiers)
        self._inbound: dict[str, str] = {}

    def learn(self, event: Event) -> None:
        """Take from an event what it says about its peer."""
        match event:
            case Received(peer, Hello(role="session")):
                self._inbound[peer] = self._tiers[0]
            case Received(peer, Open() as opened) if opened.hop > 0 and peer not in self._inbound:
                self._inbound[peer] = self._known(opened.route[opened.hop - 1].tier)
            case Down(peer) | Violated(peer):
                self.forget(peer)

    def forget(self, peer: str) -> None:
        """A peer was disconnected from here, which the channel does not tell."""
        self._inbound.pop(peer, None)

    def tier_of(self, peer: str) -> str:
        """The tier of a peer: what it said, or what an outbound peer is called after."""
        return self._inbound.get(peer) or self._known(peer.partition("@")[0])

    def _known(self, tier: str) -> str:
        return tier if tier in self._tiers else UNKNOWN
