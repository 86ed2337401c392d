"""Who is alive: pings at a steady beat, silence noticed after a few missed ones.

A closed connection tells at once through the channel; this is for peers that stop without closing, such as a stopped
process or a silent network. Whatever a peer says counts, so a link that is busy with data needs no answered ping.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class LivenessOptions:
    """How often to ask and how long to wait.

    Attributes:
        heartbeat_s: seconds between pings.
        missed: heartbeats without a word after which a peer counts as gone.
    """

    heartbeat_s: float = 1.0
    missed: int = 4


@dataclass
class _Watched:
    last_heard: float
    next_ping: float


class Liveness:
    """The peers that are watched, and when each was last heard."""

    def __init__(self, options: LivenessOptions) -> None:
        self._options = options
        self._peers: dict[str, _Watched] = {}
        self._ticked = 0.0

    def watch(self, peer: str, now: float) -> None:
        """Start to ping a peer."""
        self._peers[peer] = _Watched(now, now + self._options.heartbeat_s)

    def forget(self, peer: str) -> None:
        """Stop to ping a peer; unknown ones are fine."""
        self._peers.pop(peer, None)

    def heard(self, peer: str, now: float) -> None:
        """A peer said something."""
        if peer in self._peers:
            self._peers[peer].last_heard = now

    def tick(self, now: float) -> tuple[list[str], list[str]]:
        """What is due.

        Returns:
            Peers to ping now, and peers that have been silent for too long.
        """
        self._ticked = now
        patience_s = self._options.heartbeat_s * self._options.missed
        silent = [peer for peer, seen in self._peers.items() if now - seen.last_heard > patience_s]
        due = [peer for peer, seen in self._peers.items() if peer not in silent and seen.next_ping <= now]
        for peer in due:
            self._peers[peer].next_ping = now + self._options.heartbeat_s
        return due, silent

    def next_tick(self) -> float:
        """When the next ping is due; at the latest a heartbeat after the last tick, however much happens meanwhile."""
        return min((seen.next_ping for seen in self._peers.values()), default=self._ticked + self._options.heartbeat_s)
