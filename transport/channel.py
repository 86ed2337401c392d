"""The interface between a runtime and its links: one `Channel` per process, all peers in it.

A channel moves whole messages, at most once, in order per peer and lane, and says when a peer comes and goes. It never
retries a message: what must not be lost is the session's to retain. `zeromq.py` and `memory.py` implement it and
`testing.py` has the suite that both pass.
"""

import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from flagsplit.errors import ConfigError
from flagsplit.transport.credit import Allowance
from flagsplit.transport.messages import Chunk, Frame, Lane, Message, Open


@dataclass(frozen=True, slots=True)
class Up:
    """Messages can be sent to `peer` from now on. An inbound peer is up with its first message, the Hello.

    `key` is the CURVE public key that an inbound peer proved to have, "" where there is no such proof.
    """

    peer: str
    key: str = ""


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


@dataclass(frozen=True, slots=True)
class Acked:
    """`peer` said how many payload bytes came in all since it is up; for whoever measures the link.

    `unacked_bytes` were handed to `send` and are not acknowledged, those still queued here included. The peer held this
    word back for `delay_s` seconds since the last of those bytes came.
    """

    peer: str
    acked_bytes: int
    unacked_bytes: int
    delay_s: float


ChannelEvent: TypeAlias = Up | Down | Received | Violated | Acked


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
        """Bytes queued that no socket has taken yet, for want of room or of credit: what a sender paces itself by.

        0 for unknown peers.
        """

    def withdraw(self, peer: str, sid: str, rid: int) -> int:
        """Drop the queued Opens and Chunks of a request; returns how many. For a cancel to outrun its own data."""

    def pause(self, peer: str, paused: bool) -> None:
        """Give a peer no more credit, or give it again; what it was given it may still use, what comes is acknowledged.

        Lasts until its Down. Nothing happens for unknown peers and those without the feature "credit".
        """

    def window(self, peer: str, window_bytes: int) -> None:
        """How much payload a peer may have on the way to us, from its next Credit on, until its Down.

        A smaller window takes back nothing that was given. Raises ConfigError for less than a byte.
        """

    def wake(self) -> None:
        """Make `poll` return early, from any thread, at any time, also after `close`."""

    def close(self) -> None:
        """Idempotent, and bounded: a Bye or Done sent just before gets a moment to leave, anything else is dropped."""


@dataclass(frozen=True, slots=True)
class ChannelOptions:
    """Times and limits of a channel. The defaults suit a phone on LTE as well as a rack.

    Attributes:
        introduction_timeout_s: after which an inbound connection is cut whose peer did not say Hello.
        window_bytes: payload that a peer may have on the way to us; about twice the bandwidth-delay product of
            500 Mbit/s and 60 ms. 0 turns the feature "credit" off.
        ack_delay_s: how long less than a quarter of the window stays unacknowledged.
        max_inbound_connections: beyond that the newest is refused; a ZeroMQ peer has two, a peer in memory one.
        max_peers_per_key: inbound peers at a time that use the same client key.
        max_hellos_per_s: of one client key, or of one instance where there are no keys; four seconds' worth may come at
            once. 0: no limit.
        max_messages_per_s: of one inbound peer, on both lanes; who sends more is cut. Two seconds' worth may come at
            once, after a poll that came late too. 0: no limit.
        max_data_bytes_per_s: of payload of one inbound peer. Who has the feature "credit" gets it that slowly, who has
            not is cut. 0: no limit.
    """

    max_data_backlog_bytes: int = 512 << 20
    max_control_backlog_bytes: int = 4 << 20
    backoff_min_s: float = 0.05
    backoff_max_s: float = 1.0
    connect_timeout_s: float = 2.0
    handshake_timeout_s: float = 5.0
    introduction_timeout_s: float = 10.0
    heartbeat_s: float = 5.0
    farewell_s: float = 0.2
    max_events_per_poll: int = 64
    max_unfinished_bytes: int = 48 << 20
    window_bytes: int = 8 << 20
    ack_delay_s: float = 0.010
    max_inbound_connections: int = 1024
    max_peers_per_key: int = 64
    max_hellos_per_s: float = 32.0
    max_messages_per_s: float = 0.0
    max_data_bytes_per_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("window_bytes", "ack_delay_s", "max_hellos_per_s", "max_messages_per_s", "max_data_bytes_per_s"):
            if getattr(self, name) < 0:
                raise ConfigError(f"ChannelOptions.{name}: expected 0 or more, got {getattr(self, name)}")

    def backlog_limit_bytes(self, lane: Lane) -> int:
        return self.max_data_backlog_bytes if lane is Lane.DATA else self.max_control_backlog_bytes


def new_instance() -> str:
    """A name for this start of the process; random, because a restarted process must not look like its predecessor."""
    return os.urandom(16).hex()


def inbound_name(instance: str) -> str:
    return f"in:{instance}"


def payload_bytes_of(frames: Sequence[Frame]) -> int:
    """What a message counts for in credit: its second frame, if it has one."""
    return len(frames[1]) if len(frames) > 1 else 0


class SendQueue:
    """What one peer's lane could not take yet, in order, bounded in bytes.

    A message leaves when the socket takes it and the peer's allowance admits it.
    """

    # A header costs memory too: an endless row of empty messages must reach the bound.
    _ITEM_COST_BYTES = 256

    def __init__(self, limit_bytes: int, allowance: Allowance | None = None) -> None:
        self.limit_bytes = limit_bytes
        self.size_bytes = self.payload_bytes = 0
        self._allowance = allowance or Allowance()
        self._items: deque[tuple[Message, list[Frame], int]] = deque()

    def __len__(self) -> int:
        return len(self._items)

    @property
    def is_sendable(self) -> bool:
        """Whether only the socket is in the way of the next message."""
        return bool(self._items) and self._allowance.admits(payload_bytes_of(self._items[0][1]))

    def offer(self, message: Message, frames: list[Frame], write: Callable[[list[Frame]], bool]) -> bool:
        """Hand a message to `write`, or keep it for later; False: there is no room for it.

        An Open without its bytes waits for its first Chunk, or for the next `flush`: written together they cost the
        threads of both ends one wake-up and not two.
        """
        payload_bytes = payload_bytes_of(frames)
        waits = bool(self._items) or (isinstance(message, Open) and not payload_bytes)
        if not waits and self._allowance.admits(payload_bytes) and write(frames):
            self._allowance.spend(payload_bytes)
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
        self.payload_bytes += payload_bytes_of(frames)
        return True

    def pop(self) -> tuple[Message, list[Frame]]:
        """The next message, which counts as sent from now on."""
        message, frames, cost_bytes = self._items.popleft()
        payload_bytes = payload_bytes_of(frames)
        self._allowance.spend(payload_bytes)
        self.size_bytes -= cost_bytes
        self.payload_bytes -= payload_bytes
        return message, frames

    def flush(self, write: Callable[[list[Frame]], bool]) -> None:
        """Hand messages to `write` until it says no, credit is used up or nothing is left."""
        while self.is_sendable and write(self._items[0][1]):
            self.pop()

    def withdraw(self, sid: str, rid: int) -> int:
        kept = [
            item
            for item in self._items
            if not (isinstance(item[0], Open | Chunk) and item[0].sid == sid and item[0].rid == rid)
        ]
        dropped = len(self._items) - len(kept)
        self._items = deque(kept)
        self.size_bytes = sum(item[2] for item in kept)
        self.payload_bytes = sum(payload_bytes_of(item[1]) for item in kept)
        return dropped
