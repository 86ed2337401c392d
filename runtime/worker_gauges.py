"""What a worker measures of its links, each in the direction away from itself, to tell the sessions that ask."""

from collections.abc import Iterable, Mapping

from flagsplit.runtime.events import Instruction, Send
from flagsplit.runtime.link_estimator import LinkEstimator
from flagsplit.transport.channel import Acked
from flagsplit.transport.messages import BundlePart, Chunk, LinkGauge, Open, Probe

_UNKNOWN_BYTES_PER_S = 12.5e6
_UNKNOWN_RTT_S = 0.01


class LinkGauges:
    """An estimate for each peer that something was sent to."""

    def __init__(self) -> None:
        self._links: dict[str, LinkEstimator] = {}

    def note(self, said: Iterable[Instruction], now: float) -> None:
        """Count what is sent."""
        for one in said:
            if isinstance(one, Send) and isinstance(one.message, Open | Chunk | Probe | BundlePart):
                size_bytes = len(getattr(one.message, "payload", b""))
                if size_bytes:
                    self._link(one.peer).sent(size_bytes, now)

    def acked(self, event: Acked, now: float) -> None:
        """A peer said what came."""
        self._link(event.peer).acked(event.acked_bytes, event.unacked_bytes, event.delay_s, now)

    def ponged(self, peer: str, rtt_s: float, now: float) -> None:
        """A peer answered a ping."""
        self._link(peer).ponged(rtt_s, now)

    def forget(self, peer: str) -> None:
        """A peer is gone."""
        self._links.pop(peer, None)

    def rate_to(self, peer: str, now: float) -> float | None:
        """Bytes per second towards a peer, if they were measured."""
        link = self._links.get(peer)
        return link.bytes_per_s(now) if link is not None and link.knows_rate else None

    def of(self, tiers: Mapping[str, str], now: float) -> tuple[LinkGauge, ...]:
        """What is known of links to peers, by peer and the tier that each is."""
        return tuple(self._links[peer].gauge(tier, now) for peer, tier in tiers.items() if peer in self._links)

    def _link(self, peer: str) -> LinkEstimator:
        if peer not in self._links:
            self._links[peer] = LinkEstimator(_UNKNOWN_BYTES_PER_S, _UNKNOWN_RTT_S)
        return self._links[peer]
