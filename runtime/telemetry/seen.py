"""What events alone tell of a machine: who is connected, and whether it says that it takes nothing new.

Fills in for what a machine's own stats leave out; estimates and decisions only the machine knows.
"""

from collections.abc import Collection

from flagsplit.runtime.events import Disconnect, Event, Instruction, Leave, Send, TierChanged
from flagsplit.runtime.telemetry.peers import PeerTiers
from flagsplit.runtime.telemetry.stats import PeerStats
from flagsplit.transport.channel import Down, Received, Violated
from flagsplit.transport.messages import Drain, Pong, Welcome


class Seen:
    """Peers and their states, as an observer.

    Args:
        tiers: names of all tiers, the session's first.
        peers: which tier a peer is of; learns from the same events before this.

    Attributes:
        draining: whether the machine said that nothing new is taken.
    """

    def __init__(self, tiers: Collection[str], peers: PeerTiers) -> None:
        self.draining = False
        self._tiers = tuple(tiers)
        self._peers = peers
        self._callers: set[str] = set()
        self._states: dict[str, tuple[str, str]] = {}
        self._pongs: dict[str, Pong] = {}

    def event(self, event: Event, now: float) -> None:  # noqa: ARG002 - an observer is told the time
        """See who came and went."""
        match event:
            case Received(peer, Welcome()):
                self._states[self._peers.tier_of(peer)] = ("up", "")
            case Received(peer, Pong() as pong):
                self._pongs[self._peers.tier_of(peer)] = pong
            case Down(peer, reason) | Violated(peer, reason):
                self._gone(peer, reason)
            case Leave():
                self.draining = True

    def instruction(self, instruction: Instruction, now: float) -> None:  # noqa: ARG002 - an observer is told the time
        """See who was welcomed and sent away."""
        match instruction:
            case TierChanged(tier, state, reason):
                self._states[tier] = (state, reason)
            case Send(peer, Welcome()):
                self._callers.add(peer)
            case Send(_, Drain(bundle="")):
                self.draining = True
            case Disconnect(peer):
                self._gone(peer, "disconnected")

    def turn(self, now: float) -> None:
        """Nothing to see."""

    def peers(self) -> tuple[PeerStats, ...]:
        """Those that are connected or were."""
        counts: dict[str, int] = {}
        for peer in self._callers:
            counts[self._peers.tier_of(peer)] = counts.get(self._peers.tier_of(peer), 0) + 1
        found = [PeerStats(tier, "up", count=count) for tier, count in counts.items()]
        for tier, (state, reason) in self._states.items():
            pong = self._pongs.get(tier)
            said = () if pong is None else (pong.queue, pong.wait_us / 1e6, pong.held_bytes)
            found.append(PeerStats(tier, state, reason, 1, *said))
        return tuple(found)

    def _gone(self, peer: str, reason: str) -> None:
        if peer in self._callers:
            self._callers.discard(peer)
        elif not peer.startswith("in:"):
            tier = self._peers.tier_of(peer)
            if tier in self._tiers and self._states.get(tier, ("up", ""))[0] == "up":
                self._states[tier] = ("down", reason)
