"""The interface between a runtime and its links: one `Channel` per process, all peers in it.

A channel moves whole messages, at most once, in order per peer and lane, and says when a peer comes and goes. It never
retries a message: what must not be lost is the session's to retain. `zeromq.py` and `memory.py` implement it and
`testing.py` has the suite that both pass.
"""

import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from flagsplit.transport.messages import Chunk, Frame, Lane, Message, Open


@dataclass(frozen=True, slots=True)
class Up:
    """Messages can be sent to `peer` from now on. An inbound peer is up with its first message, the Hello."""

    peer: str


@dataclass(frozen=True, slots=True)
class Down:
    """`peer` is gone, and with it what was queued for it. Outbound peers are tried again without a further Down, except
    that one more tells when the keys turn out to be the reason: somebody has to act on that."""

    peer: str
    reason: str


@dataclass(frozen=True, slots=True)
class Received:
    peer: str
    message: Message


@dataclass(frozen=True, slots=True)
class Violated:
    """`peer` broke the protocol. The connection is cut; a Down follows when the peer was up."""

    peer: str
    reason: str


ChannelEvent: TypeAlias = Up | Down | Received | Violated


class Channel(Protocol):
    """Only the owning thread calls these, except `wake`. The caller names peers; inbound ones are `in:<instance>`."""

    @property
    def instance(self) -> str:
        """32 hex digits that name this start of the process; what Hello must say."""

    def connect(self, peer: str, address: str, *, server_key: str | None = None) -> None:
        """Connect and reconnect with backoff until `disconnect`; Up and Down tell how it goes.

        Raises ConfigError on a bad address or key, or when the name is in use.
        """

    def disconnect(self, peer: str) -> None:
        """Forget a peer, outbound or inbound, without a Down. Unknown names are fine."""

    def listen(self, address: str) -> str:
        """Accept peers; the address really bound comes back. Raises ConfigError when it is taken or cannot be bound."""

    def send(self, peer: str, message: Message) -> bool:
        """Send or queue, without blocking. False: dropped, because the peer is not up or its queue is full.

        A payload must not change until the peer answered: it is not copied.
        """

    def poll(self, timeout_s: float | None) -> list[ChannelEvent]:
        """Wait for events up to `timeout_s` (None: for ever). Empty on time-out and on `wake`.

        Never raises for what a peer did. Queued messages move only in here and in `send`.
        """

    def backlog_bytes(self, peer: str, lane: Lane = Lane.DATA) -> int:
        """Bytes queued that no socket has taken yet: what a sender paces itself by. 0 for unknown peers."""

    def withdraw(self, peer: str, sid: str, rid: int) -> int:
        """Drop the queued Opens and Chunks of a request; returns how many. For a cancel to outrun its own data."""

    def wake(self) -> None:
        """Make `poll` return early, from any thread, at any time, also after `close`."""

    def close(self) -> None:
        """Idempotent, and bounded: a Bye or Done sent just before gets a moment to leave, anything else is dropped."""


@dataclass(frozen=True, slots=True)
class ChannelOptions:
    """Times and limits of a channel. The defaults suit a phone on LTE as well as a rack."""

    max_data_backlog_bytes: int = 512 << 20
    max_control_backlog_bytes: int = 4 << 20
    backoff_min_s: float = 0.05
    backoff_max_s: float = 1.0
    connect_timeout_s: float = 2.0
    handshake_timeout_s: float = 5.0
    heartbeat_s: float = 5.0
    farewell_s: float = 0.2
    max_events_per_poll: int = 64
    max_unfinished_bytes: int = 48 << 20

    def backlog_limit_bytes(self, lane: Lane) -> int:
        return self.max_data_backlog_bytes if lane is Lane.DATA else self.max_control_backlog_bytes


def new_instance() -> str:
    """A name for this start of the process; random, because a restarted process must not look like its predecessor."""
    return os.urandom(16).hex()


def inbound_name(instance: str) -> str:
    return f"in:{instance}"


class SendQueue:
    """What one peer's lane could not take yet, in order, bounded in bytes."""

    # A header costs memory too: an endless row of empty messages must reach the bound.
    _ITEM_COST_BYTES = 256

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.size_bytes = 0
        self._items: deque[tuple[Message, list[Frame], int]] = deque()

    def __len__(self) -> int:
        return len(self._items)

    def send(self, message: Message, frames: list[Frame], write: Callable[[list[Frame]], bool]) -> bool:
        """Write a message at once if nothing waits before it, else queue it; False if there is no room.

        An Open waits for its first Chunk, or for the next `flush`: written together they cost the threads of both ends
        one wake-up and not two.
        """
        if not self._items and not isinstance(message, Open) and write(frames):
            return True
        follows_an_open = len(self._items) == 1 and isinstance(self._items[0][0], Open)
        queued = self.push(message, frames)
        if follows_an_open:
            self.flush(write)
        return queued

    def push(self, message: Message, frames: list[Frame]) -> bool:
        cost_bytes = self._ITEM_COST_BYTES + sum(len(frame) for frame in frames)
        if self.size_bytes + cost_bytes > self.limit_bytes:
            return False
        self._items.append((message, frames, cost_bytes))
        self.size_bytes += cost_bytes
        return True

    def flush(self, write: Callable[[list[Frame]], bool]) -> None:
        """Hand messages to `write` until it says no or nothing is left."""
        while self._items and write(self._items[0][1]):
            self.size_bytes -= self._items.popleft()[2]

    def withdraw(self, sid: str, rid: int) -> int:
        kept = [
            item
            for item in self._items
            if not (isinstance(item[0], Open | Chunk) and item[0].sid == sid and item[0].rid == rid)
        ]
        dropped = len(self._items) - len(kept)
        self._items = deque(kept)
        self.size_bytes = sum(item[2] for item in kept)
        return dropped
