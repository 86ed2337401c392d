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
        missed: heartbeats without a word after which a peer counts as gone. With 2.5 a partition is noticed, and
            answers come from elsewhere, within three heartbeats.
    """

    heartbeat_s: float = 1.0
    missed: float = 2.5


@dataclass
class _Watched:
    last_heard: float
    next_ping: float


class Liveness:
    """The peers that are watched, and when each was last heard."""

    def __init__(self, options: LivenessOptions) -> None:
        self._options = options
        self._peers: dict[str, _Watched] = {}
        self._ticked: float | None = None

    @property
    def _patience_s(self) -> float:
        return self._options.heartbeat_s * self._options.missed

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
            Peers to ping now, and peers that have been silent for too long. If nobody asked for much longer than a
            heartbeat, as when this process was frozen or its clock jumped, the peers get another chance first: what
            they said meanwhile may not have been read yet.
        """
        last = now if self._ticked is None else self._ticked
        frozen = not 0 <= now - last <= self._patience_s
        self._ticked = now
        if frozen:
            for seen in self._peers.values():
                seen.last_heard = now - self._options.heartbeat_s
                seen.next_ping = min(seen.next_ping, now)
        silent = [peer for peer, seen in self._peers.items() if now >= seen.last_heard + self._patience_s]
        due = [peer for peer, seen in self._peers.items() if peer not in silent and seen.next_ping <= now]
        for peer in due:
            self._peers[peer].next_ping = now + self._options.heartbeat_s
        return due, silent

    def next_tick(self) -> float:
        """When a ping is due or a silence is long enough; at the latest a heartbeat after the last tick."""
        times = (min(seen.next_ping, seen.last_heard + self._patience_s) for seen in self._peers.values())
        return min(times, default=(self._ticked or 0.0) + self._options.heartbeat_s)
