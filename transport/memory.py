"""The channel inside one process: for tests, simulations and tiers that share a process.

Messages still go through `encode` and `decode`, so what works here works on a wire. A `MemoryNetwork` has the named
addresses `mem://NAME`; its `LinkPolicy` decides for each message whether it is lost and how long it takes, its `Clock`
says what time it is: both are in `memory_links.py`. `faults.py` has a policy with scripted faults and a clock that only
moves when told.
"""

import itertools
import threading
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import Final

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
    payload_bytes_of,
)
from flagsplit.transport.flow import Flow
from flagsplit.transport.memory_links import Clock, End, InFlight, LinkPolicy, PerfectLink, RealClock
from flagsplit.transport.messages import Attach, Chunk, Credit, Frame, Hello, Lane, Message, Open, decode, encode
from flagsplit.transport.peer_limits import Admission, PeerRates

SCHEME: Final = "mem://"


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
        self._ends: dict[str, End] = {}
        self._events: list[ChannelEvent] = []
        self._admission = Admission(self._options)
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
        with self._network.news:
            self._check_open()
            end = self._ends.get(peer)
            message = message if end is None else end.flow.stamped(message)
            frames = encode(message)
            if end is None or not self._has_room(end, message.LANE, frames):
                return False
            if message.LANE is Lane.DATA:
                return end.held.push(message, frames) and self._release(end)
            self._put(end, message.LANE, frames, message)
            end.flow.sent(message)
            return True

    def send_frames(self, peer: str, lane: Lane, frames: list[Frame]) -> bool:
        """Send frames as they are, past encoder and credit: for tests of what no sender does."""
        with self._network.news:
            self._check_open()
            end = self._ends.get(peer)
            return end is not None and self._has_room(end, lane, frames) and self._put(end, lane, frames)

    def poll(self, timeout_s: float | None) -> list[ChannelEvent]:
        network = self._network
        with network.news:
            self._check_open()
            deadline_s = None if timeout_s is None else network.clock.now_s() + timeout_s
            while True:
                self._dial()
                self._give_credit()
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
            return end.backlog_bytes(lane) if end else 0

    def withdraw(self, peer: str, sid: str, rid: int) -> int:
        with self._network.news:
            end = self._ends.get(peer)
            if end is None or end.other is None:
                return 0
            queue = end.other.inbox[Lane.DATA]
            kept = deque(item for item in queue if not _is_about(item.message, sid, rid))
            end.other.inbox[Lane.DATA] = kept
            end.other.size_bytes[Lane.DATA] = sum(item.size_bytes for item in kept)
            gone = [item for item in queue if _is_about(item.message, sid, rid)]
            end.flow.allowance.refund(sum(payload_bytes_of(item.frames) for item in gone))
            withdrawn = len(gone) + end.held.withdraw(sid, rid)
            self._release(end)
            return withdrawn

    def pause(self, peer: str, paused: bool) -> None:
        with self._network.news:
            end = self._ends.get(peer)
            if end is not None:
                end.flow.pause(paused)

    def window(self, peer: str, window_bytes: int) -> None:
        with self._network.news:
            end = self._ends.get(peer)
            if end is not None:
                end.flow.resize(window_bytes)

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

    def _has_room(self, end: End, lane: Lane, frames: list[Frame]) -> bool:
        size_bytes = sum(len(frame) for frame in frames)
        limit_bytes = self._options.backlog_limit_bytes(lane)
        return end.up and end.other is not None and end.backlog_bytes(lane) + size_bytes <= limit_bytes

    def _put(self, end: End, lane: Lane, frames: list[Frame], message: Message | None = None) -> bool:
        """Send what there is credit for; False: it was lost on the way, which a wire would not tell."""
        assert end.other is not None
        network, transit_s = self._network, 0.0
        if message is not None:
            fate = network.policy.transit_s(self.name, end.other.channel.name, message)
            if fate is None:
                return False
            transit_s = fate
        size_bytes = sum(len(frame) for frame in frames)
        end.other.put(lane, InFlight(network.clock.now_s() + transit_s, message, frames, size_bytes))
        network.news.notify_all()
        return True

    def _release(self, end: End) -> bool:
        """Send what credit admits. What the policy loses costs none: nobody will ever acknowledge it."""
        while end.held.is_sendable:
            message, frames = end.held.pop()
            if not self._put(end, Lane.DATA, frames, message):
                end.flow.allowance.refund(payload_bytes_of(frames))
        return True

    def _give_credit(self) -> None:
        now_s = self._network.clock.now_s()
        for end in self._ends.values():
            if end.up:
                end.flow.give_credit(now_s, partial(self._put_credit, end))

    def _put_credit(self, end: End, credit: Credit) -> bool:
        return self._put(end, Lane.CONTROL, encode(credit), credit)

    def _check_open(self) -> None:
        if self._closed:
            raise InternalError("the channel is closed; make a new one")

    def _dial(self) -> None:
        network = self._network
        for peer, dial in self._dials.items():
            if peer in self._ends:
                continue
            listener = network.listener(dial.address)
            refusal = f"nothing listens at {dial.address}"
            if listener is not None and network.policy.reachable(self.name, listener.name):
                refusal = listener._refusal()
            if refusal or listener is None:
                if not dial.told_down:
                    self._events.append(Down(peer, refusal))
                    dial.told_down = True
                continue
            here = self._make_end(peer)
            there = listener._make_end(inbound_name(self._instance), inbound=True)
            here.other, there.other = there, here
            self._ends[peer], listener._ends[there.peer] = here, there
            dial.told_down = False
            self._events.append(Up(peer))

    def _make_end(self, peer: str, *, inbound: bool = False) -> End:
        rates = PeerRates(self._options, self._network.clock.now_s()) if inbound else None
        return End(self, peer, not inbound, Flow(self._options), rates)

    def _refusal(self) -> str:
        """Why nobody may connect to us now, or ""."""
        return self._admission.connection(1 + sum(end.rates is not None for end in self._ends.values()))

    def _collect(self) -> None:
        now_s = self._network.clock.now_s()
        for end in list(self._ends.values()):
            budget = self._options.max_events_per_poll
            while budget > 0 and self._ends.get(end.peer) is end and (frames := end.take(now_s)) is not None:
                self._deliver(end, frames)
                budget -= 1

    def _deliver(self, end: End, frames: list[Frame]) -> None:
        now_s = self._network.clock.now_s()
        try:
            if end.rates is not None:
                is_limited = end.flow.grant.limit_bytes is not None
                end.flow.grant.hold(end.rates.count(frames, now_s, is_limited=is_limited))
            message = decode(frames)
            if isinstance(message, Attach):
                raise ProtocolError("Attach has no meaning in memory")
            if isinstance(message, Hello) and end.rates is not None:
                self._admit(end, now_s)
            if not end.up:
                self._introduce(end, message)
            if isinstance(message, Credit):
                self._events.append(end.flow.acked(end.peer, message))
                self._release(end)
                return
            end.flow.came(message, frames, now_s)
            self._events.append(Received(end.peer, message))
        except ProtocolError as exc:
            self._events.append(Violated(end.peer, str(exc)))
            self._sever(end, "the connection was cut because the peer broke the protocol")

    def _admit(self, end: End, now_s: float) -> None:
        refusal = self._admission.hello(end.peer, now_s)
        if refusal:
            raise ProtocolError(refusal)

    def _introduce(self, end: End, message: Message) -> None:
        if not isinstance(message, Hello):
            raise ProtocolError(f"{type(message).__name__} came before Hello")
        if inbound_name(message.instance) != end.peer:
            raise ProtocolError("the instance is not the one that connected")
        end.up = True
        self._events.append(Up(end.peer))

    def _sever(self, end: End, reason: str) -> None:
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
