"""The channel inside one process: for tests, simulations and tiers that share a process.

Messages still go through `encode` and `decode`, so what works here works on a wire. A `MemoryNetwork` has the named
addresses `mem://NAME`; its `LinkPolicy` decides for each message whether it is lost and how long it takes, its `Clock`
says what time it is. `faults.py` has a policy with scripted faults and a clock that only moves when told.
"""

import itertools
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Final, Protocol

from flagsplit.errors import ConfigError, InternalError, ProtocolError
from flagsplit.transport.channel import (
    ChannelEvent,
    ChannelOptions,
    Down,
    Received,
    Up,
    Violated,
    inbound_name,
    new_instance,
)
from flagsplit.transport.messages import Attach, Chunk, Frame, Hello, Lane, Message, Open, decode, encode

SCHEME: Final = "mem://"


class LinkPolicy(Protocol):
    """Fate of messages between two channels, by their names."""

    def transit_s(self, source: str, target: str, message: Message) -> float | None:
        """Seconds on the way; None loses the message."""

    def reachable(self, source: str, target: str) -> bool:
        """Whether a connection can be made now."""


class PerfectLink:
    """No delay and no loss."""

    def transit_s(self, source: str, target: str, message: Message) -> float | None:  # noqa: ARG002
        return 0.0

    def reachable(self, source: str, target: str) -> bool:  # noqa: ARG002
        return True


class Clock(Protocol):
    """The time of a network, and how to let it pass."""

    def now_s(self) -> float:
        """Seconds since some fixed moment."""

    def sleep(self, news: threading.Condition, timeout_s: float | None) -> bool:
        """Wait for `news`, whose lock is held, up to `timeout_s`. False: time stands still, so waiting is pointless."""


class RealClock:
    """Wall time, monotonic."""

    def now_s(self) -> float:
        return time.monotonic()

    def sleep(self, news: threading.Condition, timeout_s: float | None) -> bool:
        news.wait(timeout_s)
        return True


@dataclass(slots=True)
class _InFlight:
    due_s: float
    message: Message | None
    frames: list[Frame]
    size_bytes: int


@dataclass(slots=True, eq=False)
class _End:
    """One side of a connection: who it is for, what it calls the other side, and what is on its way to it."""

    channel: "MemoryChannel"
    peer: str
    up: bool
    other: "_End | None" = None
    inbox: dict[Lane, deque[_InFlight]] = field(default_factory=lambda: {lane: deque() for lane in Lane})
    size_bytes: dict[Lane, int] = field(default_factory=lambda: dict.fromkeys(Lane, 0))

    def put(self, lane: Lane, item: _InFlight) -> None:
        queue = self.inbox[lane]
        if queue:
            item.due_s = max(item.due_s, queue[-1].due_s)  # order is kept per lane, whatever the delays
        queue.append(item)
        self.size_bytes[lane] += item.size_bytes

    def take(self, now_s: float) -> list[Frame] | None:
        for lane in (Lane.CONTROL, Lane.DATA):
            if self.inbox[lane] and self.inbox[lane][0].due_s <= now_s:
                item = self.inbox[lane].popleft()
                self.size_bytes[lane] -= item.size_bytes
                return item.frames
        return None

    def next_due_s(self) -> float | None:
        return min((queue[0].due_s for queue in self.inbox.values() if queue), default=None)


@dataclass(slots=True)
class _Dial:
    address: str
    told_down: bool = False


class MemoryNetwork:
    """The addresses of a group of channels, and the one lock that guards all of them."""

    def __init__(self, *, policy: LinkPolicy | None = None, clock: Clock | None = None) -> None:
        self.policy: LinkPolicy = policy or PerfectLink()
        self.clock: Clock = clock or RealClock()
        self.news = threading.Condition(threading.RLock())
        self._listeners: dict[str, MemoryChannel] = {}
        self._numbers = itertools.count(1)

    def bind(self, channel: "MemoryChannel", address: str) -> str:
        name = address.removeprefix(SCHEME)
        if not address.startswith(SCHEME) or not name:
            raise ConfigError(f"address {address!r}: expected {SCHEME}NAME, or {SCHEME}* for a free one")
        bound = f"{SCHEME}auto-{next(self._numbers)}" if name == "*" else address
        if bound in self._listeners:
            raise ConfigError(f"cannot listen on {address}: the address is taken; choose another")
        self._listeners[bound] = channel
        return bound

    def listener(self, address: str) -> "MemoryChannel | None":
        return self._listeners.get(address)

    def unbind(self, channel: "MemoryChannel") -> None:
        self._listeners = {address: owner for address, owner in self._listeners.items() if owner is not channel}


class MemoryChannel:
    """A `Channel` inside a `MemoryNetwork`. `name` is what the network's policy knows it by."""

    def __init__(
        self,
        network: MemoryNetwork,
        *,
        name: str = "",
        instance: str | None = None,
        options: ChannelOptions | None = None,
    ) -> None:
        self._network = network
        self._instance = instance or new_instance()
        self.name = name or self._instance
        self._options = options or ChannelOptions()
        self._dials: dict[str, _Dial] = {}
        self._ends: dict[str, _End] = {}
        self._events: list[ChannelEvent] = []
        self._woken = self._closed = False

    @property
    def instance(self) -> str:
        return self._instance

    def connect(self, peer: str, address: str, *, server_key: str | None = None) -> None:  # noqa: ARG002 - no strangers here
        with self._network.news:
            self._check_open()
            if peer in self._dials or peer.startswith("in:"):
                raise ConfigError(f"peer {peer!r}: expected a name that is free and does not start with 'in:'")
            if not address.startswith(SCHEME) or address == f"{SCHEME}*":
                raise ConfigError(f"address {address!r}: expected {SCHEME}NAME")
            self._dials[peer] = _Dial(address)
            self._network.news.notify_all()

    def disconnect(self, peer: str) -> None:
        with self._network.news:
            self._check_open()
            self._dials.pop(peer, None)
            end = self._ends.get(peer)
            if end is not None:
                end.up = False
                self._sever(end, "the peer disconnected")

    def listen(self, address: str) -> str:
        with self._network.news:
            self._check_open()
            bound = self._network.bind(self, address)
            self._network.news.notify_all()
            return bound

    def send(self, peer: str, message: Message) -> bool:
        frames = encode(message)
        return self.send_frames(peer, message.LANE, frames, message)

    def send_frames(self, peer: str, lane: Lane, frames: list[Frame], message: Message | None = None) -> bool:
        """What `send` does with an encoded message; on its own for tests that send what no encoder makes."""
        with self._network.news:
            self._check_open()
            end = self._ends.get(peer)
            if end is None or end.other is None or not end.up:
                return False
            size_bytes = sum(len(frame) for frame in frames)
            if end.other.size_bytes[lane] + size_bytes > self._options.backlog_limit_bytes(lane):
                return False
            network, transit_s = self._network, 0.0
            if message is not None:
                fate = network.policy.transit_s(self.name, end.other.channel.name, message)
                if fate is None:
                    return True  # lost on the way; a wire does not tell either
                transit_s = fate
            end.other.put(lane, _InFlight(network.clock.now_s() + transit_s, message, frames, size_bytes))
            network.news.notify_all()
            return True

    def poll(self, timeout_s: float | None) -> list[ChannelEvent]:
        network = self._network
        with network.news:
            self._check_open()
            deadline_s = None if timeout_s is None else network.clock.now_s() + timeout_s
            while True:
                self._dial()
                self._collect()
                now_s = network.clock.now_s()
                if self._events or self._woken or (deadline_s is not None and now_s >= deadline_s):
                    break
                due = [deadline_s, *(end.next_due_s() for end in self._ends.values())]
                wait_s = min((d - now_s for d in due if d is not None), default=None)
                if not network.clock.sleep(network.news, wait_s):
                    break
                self._check_open()
            self._woken = False
            events, self._events = self._events, []
            return events

    def backlog_bytes(self, peer: str, lane: Lane = Lane.DATA) -> int:
        with self._network.news:
            end = self._ends.get(peer)
            return end.other.size_bytes[lane] if end and end.other else 0

    def withdraw(self, peer: str, sid: str, rid: int) -> int:
        with self._network.news:
            end = self._ends.get(peer)
            if end is None or end.other is None:
                return 0
            queue = end.other.inbox[Lane.DATA]
            kept = deque(item for item in queue if not _is_about(item.message, sid, rid))
            end.other.inbox[Lane.DATA] = kept
            end.other.size_bytes[Lane.DATA] = sum(item.size_bytes for item in kept)
            return len(queue) - len(kept)

    def wake(self) -> None:
        with self._network.news:
            self._woken = True
            self._network.news.notify_all()

    def close(self) -> None:
        """What arrived at others already they still get; then their Down."""
        with self._network.news:
            if self._closed:
                return
            self._network.unbind(self)
            for end in list(self._ends.values()):
                end.up = False
                self._sever(end, "the peer closed")
            self._dials.clear()
            self._events.clear()
            self._closed = True
            self._network.news.notify_all()

    def drop_in_flight(self) -> None:
        """Lose everything sent and not received yet, as when a process is killed."""
        with self._network.news:
            for end in self._ends.values():
                if end.other is not None:
                    for queue in end.other.inbox.values():
                        queue.clear()

    def sever(self, peer: str, reason: str) -> None:
        """Break the connection to a peer; both sides get a Down and the dialing one dials again."""
        with self._network.news:
            end = self._ends.get(peer)
            if end is not None:
                self._sever(end, reason)

    def _check_open(self) -> None:
        if self._closed:
            raise InternalError("the channel is closed; make a new one")

    def _dial(self) -> None:
        network = self._network
        for peer, dial in self._dials.items():
            if peer in self._ends:
                continue
            listener = network.listener(dial.address)
            if listener is None or not network.policy.reachable(self.name, listener.name):
                if not dial.told_down:
                    self._events.append(Down(peer, f"nothing listens at {dial.address}"))
                    dial.told_down = True
                continue
            here = _End(self, peer, up=True)
            there = _End(listener, inbound_name(self._instance), up=False, other=here)
            here.other = there
            self._ends[peer], listener._ends[there.peer] = here, there
            dial.told_down = False
            self._events.append(Up(peer))

    def _collect(self) -> None:
        now_s = self._network.clock.now_s()
        for end in list(self._ends.values()):
            budget = self._options.max_events_per_poll
            while budget > 0 and self._ends.get(end.peer) is end and (frames := end.take(now_s)) is not None:
                self._deliver(end, frames)
                budget -= 1

    def _deliver(self, end: _End, frames: list[Frame]) -> None:
        try:
            message = decode(frames)
            if isinstance(message, Attach):
                raise ProtocolError("Attach has no meaning in memory")
            if not end.up:
                self._introduce(end, message)
            self._events.append(Received(end.peer, message))
        except ProtocolError as exc:
            self._events.append(Violated(end.peer, str(exc)))
            self._sever(end, "the connection was cut because the peer broke the protocol")

    def _introduce(self, end: _End, message: Message) -> None:
        if not isinstance(message, Hello):
            raise ProtocolError(f"{type(message).__name__} came before Hello")
        if inbound_name(message.instance) != end.peer:
            raise ProtocolError("the instance is not the one that connected")
        end.up = True
        self._events.append(Up(end.peer))

    def _sever(self, end: _End, reason: str) -> None:
        for side in (end, end.other):
            if side is None or side.channel._ends.get(side.peer) is not side:
                continue
            if side is not end:
                side.channel._collect()
            side.channel._ends.pop(side.peer, None)
            if side.up:
                side.up = False
                side.channel._events.append(Down(side.peer, reason))
            dial = side.channel._dials.get(side.peer)
            if dial is not None:
                dial.told_down = True
        self._network.news.notify_all()


def _is_about(message: Message | None, sid: str, rid: int) -> bool:
    return isinstance(message, Open | Chunk) and message.sid == sid and message.rid == rid
