"""The workers of a session: which are there, what they are asked, and when again."""

import math
from collections.abc import Iterable, Iterator, Mapping

from flagsplit.runtime.events import Connect, Disconnect, Instruction, Send, TierChanged
from flagsplit.runtime.liveness import Liveness, LivenessOptions
from flagsplit.runtime.session_facts import SessionFacts
from flagsplit.runtime.session_peers import WorkerPeer
from flagsplit.runtime.session_requests import Request
from flagsplit.transport.messages import Bye, PeerAddress


class Workers:
    """One peer for each tier beyond the session's own.

    Args:
        addresses: of each, by tier name.
        instance: names this start of the process; workers know the session by it.
        liveness: heartbeats.

    Attributes:
        peers: by tier.
        liveness: of those that are there.
    """

    def __init__(self, addresses: Mapping[str, PeerAddress], instance: str, liveness: LivenessOptions) -> None:
        self.peers = {tier: WorkerPeer(tier, address) for tier, address in addresses.items()}
        self.liveness = Liveness(liveness)
        self._instance, self._options = instance, liveness

    def __getitem__(self, tier: str) -> WorkerPeer:
        return self.peers[tier]

    def connect(self, tier: str) -> Connect:
        """Connect to one."""
        address = self.peers[tier].address
        return Connect(tier, address.address, address.server_key)

    def reconnect(self, tier: str) -> Iterator[Instruction]:
        """Leave one, and connect to it again."""
        yield Disconnect(tier)
        yield self.connect(tier)

    def greet(self, tier: str, bundle: str) -> Send:
        """Ask one for a bundle."""
        others = {name: peer.address for name, peer in self.peers.items() if name != tier}
        return Send(tier, self.peers[tier].hello(bundle, self._instance, others, self._options))

    def farewell(self) -> Iterator[Instruction]:
        """The session ends."""
        yield from (Send(tier, Bye("the session ends")) for tier, peer in self.peers.items() if peer.serves)

    def lose(self, tier: str, reason: str, state: str) -> Iterator[Instruction]:
        """One is not there any more, or does not serve what it was asked for."""
        peer = self.peers[tier]
        self.liveness.forget(tier)
        if peer.serves or peer.reason != reason:
            yield TierChanged(tier, state, reason)
        peer.lost(reason)
        peer.refused = state == "refused"

    def had_no_room(self, tier: str, now: float) -> None:
        """One is full; it is asked again later."""
        self.peers[tier].had_no_room(now, self._instance)

    def ask_for(self, bundle: str) -> Iterator[Instruction]:
        """Ask all for another bundle, also those that refused what they were asked for before."""
        for tier, peer in self.peers.items():
            if peer.connected and bundle not in peer.serves and bundle not in peer.asked:
                yield self.greet(tier, bundle)
            elif peer.refused:
                peer.refused = False
                yield self.connect(tier)

    def ask_again(self, bundles: Iterable[str], now: float) -> Iterator[Instruction]:
        """Those that had no room may have some now."""
        for tier, peer in self.peers.items():
            if now < peer.ask_again:
                continue
            peer.ask_again = math.inf
            if not peer.connected:
                yield self.connect(tier)
                continue
            known = {*peer.serves, *peer.asked}
            yield from (self.greet(tier, bundle) for bundle in bundles if bundle not in known)

    def next_tick(self) -> float:
        """When something is due at the latest."""
        return min([self.liveness.next_tick(), *(peer.ask_again for peer in self.peers.values())])

    def line(self, facts: SessionFacts) -> tuple[bool, ...]:
        """Which tiers of a bundle take new requests now; the first always does."""
        taking = {tier for tier, peer in self.peers.items() if peer.takes(facts.bundle)}
        return tuple(i == 0 or tier in taking for i, tier in enumerate(facts.tiers))

    def usable(self, tier: str, request: Request) -> bool:
        """Whether a request may go there."""
        peer = self.peers.get(tier)
        return peer is not None and peer.takes(request.flight.bundle) and tier not in request.avoid

    def alive(self, request: Request) -> tuple[bool, ...]:
        """Which tiers a request may use."""
        return (True, *[self.usable(tier, request) for tier in request.epoch.facts.tiers[1:]])
