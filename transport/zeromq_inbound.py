"""The listening end: one ROUTER for all inbound peers, with a record of every connection behind it.

A ROUTER alone is silent about peers that leave. Here each accepted connection is known by its file descriptor, each
message tells the descriptor it came by, and the socket's monitor tells which descriptors ended; together that says
which peer is gone. The descriptor also lets us cut a connection, which ZeroMQ has no call for. The other end is in
`zeromq_outbound.py`.
"""

import os
import re
from collections import deque
from collections.abc import Callable, Container, Iterator
from contextlib import suppress
from functools import partial

import zmq

from flagsplit.errors import ProtocolError
from flagsplit.transport.channel import (
    ChannelEvent,
    ChannelOptions,
    Down,
    Received,
    Up,
    Violated,
    inbound_name,
)
from flagsplit.transport.floodguard import FloodGuard, cut_connection
from flagsplit.transport.flow import Flow
from flagsplit.transport.messages import Attach, Credit, Frame, Hello, Lane, Message, decode, encode
from flagsplit.transport.peer_limits import Admission, PeerRates
from flagsplit.transport.security import NoSecurity, Security
from flagsplit.transport.zeromq_bind import bind_router
from flagsplit.transport.zeromq_connections import Connection, InboundPeer, Routes
from flagsplit.transport.zeromq_sockets import (
    Context,
    Monitor,
    RouteLost,
    has_message,
    make_socket,
    receive_routed,
    secure_server,
    write,
)

UNNAMED_PEER = inbound_name("?")
# A peer that leaves closes both lanes; its Bye on the control lane may come a little after the end of the data lane.
_LAST_WORDS_S = 0.05
_ROUTE = re.compile(rb"([0-9a-f]{32}):([cd]):([0-9]{1,15})")
_LANE_OF = {lane.value[0].encode(): lane for lane in Lane}


class Listener:
    """Accepts peers on one or more addresses; events go to `emit`."""

    def __init__(
        self,
        context: Context,
        security: Security | NoSecurity,
        options: ChannelOptions,
        emit: Callable[[ChannelEvent], None],
    ) -> None:
        self._options, self._emit = options, emit
        self._has_keys = not isinstance(security, NoSecurity)
        self._router = make_socket(context, zmq.ROUTER, options)
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._router.setsockopt(zmq.BACKLOG, 1024)
        # ROUTER_HANDOVER stays off: a routing id serves one connection only, so who claims it again is a stranger.
        secure_server(self._router, security)
        try:
            self._monitor = Monitor(context, self._router, zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        except BaseException:
            self._router.close()
            raise
        self._accepted: dict[int, Connection] = {}
        self._routes = Routes()
        self._peers: dict[str, InboundPeer] = {}
        self._fading: deque[tuple[float, Connection]] = deque()
        self._guard = FloodGuard(options.max_unfinished_bytes)
        self._admission = Admission(options)
        self._owing: set[InboundPeer] = set()

    def bind(self, address: str) -> str:
        return bind_router(self._router, address)

    def polled(self) -> Iterator[tuple[zmq.Socket[bytes], int]]:
        yield self._router, zmq.POLLIN
        yield self._monitor.socket, zmq.POLLIN

    def deadline_s(self) -> float | None:
        times = [due_s for peer in self._owing if (due_s := peer.flow.grant.due_s()) is not None]
        if self._fading:
            times.append(self._fading[0][0])
        if self._fading or self._accepted:
            times.append(self._guard.next_check_s)
        return min(times, default=None)

    def has_backlog(self) -> bool:
        for peer in self._peers.values():
            if peer.flow.has_queued and peer.up and any(queue.is_sendable for queue in peer.flow.queues.values()):
                return True
        return False

    def receive(self, now_s: float, budget: int, ready: Container[object]) -> None:
        """Read at most `budget` messages and learn who left.

        The monitor is read after the messages and its endings are acted on last: the first so that a reused descriptor
        number is never taken for its last owner, the second so that last words come before a Down. Who is known by its
        routing id already needs no look at the monitor.
        """
        batch: list[tuple[bytes, list[zmq.Frame]]] = []
        has_news = self._monitor.socket in ready
        # Last words may have come after the router was looked at and before the monitor was.
        has_more = has_news or self._router in ready
        while has_more and len(batch) < budget and (message := receive_routed(self._router)) is not None:
            batch.append(message)
            has_news = has_news or message[0] not in self._routes
            has_more = has_message(self._router)
        ended = self._follow_monitor(now_s) if has_news else ()
        for route, frames in batch:
            self._take(now_s, route, frames)
        for connection in ended:
            # With a full batch there may be more to read, a Done maybe, that was said before the end.
            if self._may_still_speak(connection) or len(batch) >= budget:
                self._fading.append((now_s + _LAST_WORDS_S, connection))
            else:
                self._end(connection, "the connection was lost")

    def advance(self, now_s: float) -> None:
        """Say Credit where it is due, and cut connections that say nothing, or more than can be a message of ours."""
        while self._fading and self._fading[0][0] <= now_s:
            self._end(self._fading.popleft()[1], "the connection was lost")
        if now_s >= self._guard.next_check_s:
            for connection in self._strangers(now_s):
                self._refuse(connection, "nobody said Hello on this connection in time", now_s)
        for connection in self._guard.check(now_s, self._accepted):
            self._violate(connection, "a message without an end: more bytes came than any message has")
        for peer in tuple(self._owing):
            if peer.flow.owes(now_s):
                self._give_credit(peer, now_s)
            elif peer.flow.grant.due_s() is None:
                self._owing.discard(peer)

    def _give_credit(self, peer: InboundPeer, now_s: float) -> None:
        peer.flow.give_credit(now_s, lambda credit: self.send(peer.name, credit, encode(credit)))
        if peer.flow.grant.due_s() is None:
            self._owing.discard(peer)

    def send(self, name: str, message: Message, frames: list[Frame]) -> bool:
        peer = self._peers.get(name)
        if peer is None or not peer.up:
            return False
        try:
            sent = peer.flow.queues[message.LANE].offer(message, frames, partial(self._write, peer, message.LANE))
        except RouteLost:
            self._drop(peer, "the connection was lost")
            return False
        if sent:
            peer.flow.sent(message)
        return sent

    def flush(self) -> None:
        for peer in [peer for peer in self._peers.values() if peer.flow.has_queued]:
            self._flush_peer(peer)

    def flow(self, name: str) -> Flow | None:
        """Credit and queues of a peer. Whoever changes what it grants finds that out in `advance`."""
        peer = self._peers.get(name)
        if peer is None:
            return None
        self._owing.add(peer)
        return peer.flow

    def disconnect(self, name: str) -> None:
        peer = self._peers.get(name)
        if peer is not None:
            peer.up = False
            self._drop(peer, "")

    def close(self, farewell_s: float = 0.0) -> None:
        self._monitor.close()
        self._router.close(linger=round(farewell_s * 1000))

    def _flush_peer(self, peer: InboundPeer) -> None:
        try:
            for lane, queue in peer.flow.queues.items():
                if queue:
                    queue.flush(partial(self._write, peer, lane))
        except RouteLost:
            self._drop(peer, "the connection was lost")

    def _write(self, peer: InboundPeer, lane: Lane, frames: list[Frame]) -> bool:
        connection = peer.lines.get(lane)
        return connection is not None and write(self._router, [connection.route, *frames])

    def _follow_monitor(self, now_s: float) -> list[Connection]:
        ended = []
        for event, fd in self._monitor.read():
            gone = self._accepted.pop(fd, None)
            if gone is not None:
                ended.append(gone)
            if event == zmq.EVENT_ACCEPTED:
                with suppress(OSError):  # over already; its DISCONNECTED follows
                    self._accepted[fd] = Connection(fd, os.fstat(fd).st_ino, now_s)
                    self._refuse(self._accepted[fd], self._admission.connection(len(self._accepted)), now_s)
        return ended

    def _strangers(self, now_s: float) -> list[Connection]:
        latest_s = now_s - self._options.introduction_timeout_s
        return [
            connection
            for connection in self._accepted.values()
            if connection.since_s <= latest_s
            and not connection.ignored
            and (connection.peer is None or not connection.peer.up)
        ]

    def _may_still_speak(self, ended: Connection) -> bool:
        control = ended.peer.lines.get(Lane.CONTROL) if ended.peer is not None else None
        return control is not None and control is not ended and self._accepted.get(control.fd) is control

    def _take(self, now_s: float, route: bytes, frames: list[zmq.Frame]) -> None:
        connection = self._routes.get(route) or self._introduce(route, frames[0], now_s)
        if connection is None or connection.ignored:
            return
        self._guard.delivered(connection, frames)
        try:
            self._deliver(connection, [frame.buffer for frame in frames], now_s)
        except ProtocolError as exc:
            self._violate(connection, str(exc))

    def _introduce(self, route: bytes, frame: zmq.Frame, now_s: float) -> Connection | None:
        """Tie a routing id that was not seen before to its connection and its peer."""
        try:
            fd = int(frame.get(zmq.SRCFD))
        except zmq.ZMQError:
            return None  # ZMTP 1 and 2 tell no descriptor; the connection is cut when its time for a Hello is over
        connection = self._accepted.get(fd)
        if connection is None:
            return None  # it ended before we read its first message
        if connection.route:
            # The number was given to a new connection before a message of the last one was read: that one is gone.
            self._end(connection, "the connection was lost")
            connection = self._accepted[fd] = Connection(fd, connection.inode, now_s)
        if connection.ignored:
            return None
        connection.route = route
        self._routes.add(connection)
        match = _ROUTE.fullmatch(route)
        if match is None:
            self._violate(connection, "the routing id is not <instance>:<lane>:<serial>")
            return None
        connection.lane = _LANE_OF[match[2]]
        key = _user_id(frame)
        if self._has_keys and not key:  # "" stands for channels without keys, where everybody is taken at their word
            self._violate(connection, "no key was proved")
            return None
        return self._join(connection, match[1].decode(), int(match[3]), key, now_s)

    def _join(
        self, connection: Connection, instance: str, serial: int, user_id: str, now_s: float
    ) -> Connection | None:
        name = inbound_name(instance)
        peer = self._peers.get(name)
        if peer is not None and peer.user_id != user_id:
            self._violate(connection, f"{name} is connected with another key")
            return None
        if peer is not None and serial < peer.serial:
            self._cut(connection)
            return None
        if peer is not None and serial > peer.serial:
            self._drop(peer, "it connected anew")
            peer = None
        if peer is None:
            alike = sum(other.user_id == user_id for other in self._peers.values()) if user_id else 0
            if self._refuse(connection, self._admission.peer(1 + alike), now_s):
                return None
            rates = PeerRates(self._options, now_s)
            peer = InboundPeer(name, instance, serial, user_id, Flow(self._options), rates, {})
            self._peers[name] = peer
        connection.peer = peer
        peer.lines[connection.lane] = connection
        return connection

    def _deliver(self, connection: Connection, frames: list[Frame], now_s: float) -> None:
        peer = connection.peer
        assert peer is not None
        is_limited = peer.flow.grant.limit_bytes is not None
        peer.flow.grant.hold(peer.rates.count(frames, now_s, is_limited=is_limited))
        message = decode(frames)
        if message.LANE is not connection.lane:
            raise ProtocolError(f"{type(message).__name__} came on the {connection.lane.value} lane")
        if connection.introduced:
            if isinstance(message, Attach):
                raise ProtocolError("Attach came twice")
            if not peer.up:
                raise ProtocolError(f"{type(message).__name__} came before Hello")
            if isinstance(message, Hello) and self._refuse_hello(connection, peer, now_s):
                return
            self._hear(peer, message, frames, now_s)
            return
        if not isinstance(message, Hello | Attach):
            raise ProtocolError(f"the first message must be Hello or Attach, not {type(message).__name__}")
        if message.instance != peer.instance:
            raise ProtocolError("the instance is not the one of the routing id")
        if isinstance(message, Hello) and self._refuse_hello(connection, peer, now_s):
            return
        connection.introduced = True
        if isinstance(message, Hello):
            peer.up = True
            self._emit(Up(peer.name, peer.user_id))
            self._hear(peer, message, frames, now_s)

    def _hear(self, peer: InboundPeer, message: Message, frames: list[Frame], now_s: float) -> None:
        if isinstance(message, Credit):
            self._emit(peer.flow.acked(peer.name, message))
            self._flush_peer(peer)
            return
        peer.flow.came(message, frames, now_s)
        self._owing.add(peer)
        self._emit(Received(peer.name, message))

    def _refuse_hello(self, connection: Connection, peer: InboundPeer, now_s: float) -> bool:
        return self._refuse(connection, self._admission.hello(peer.user_id or peer.instance, now_s), now_s)

    def _refuse(self, connection: Connection, reason: str, now_s: float) -> bool:
        """Cut a connection for a reason, if there is one; of many refusals few are told."""
        if not reason:
            return False
        if told := self._admission.telling(reason, now_s):
            self._emit(Violated(connection.peer.name if connection.peer else UNNAMED_PEER, told))
        self._cut(connection)
        if connection.peer is not None:
            self._drop(connection.peer, reason)
        return True

    def _violate(self, connection: Connection, reason: str) -> None:
        if connection.ignored:
            return
        peer = connection.peer
        self._emit(Violated(peer.name if peer else UNNAMED_PEER, reason))
        self._cut(connection)
        if peer is not None:
            self._drop(peer, "the connection was cut because the peer broke the protocol")

    def _drop(self, peer: InboundPeer, reason: str) -> None:
        """Forget a peer and cut what is left of its connections."""
        if self._peers.get(peer.name) is peer:
            del self._peers[peer.name]
            self._owing.discard(peer)
        for connection in peer.lines.values():
            self._cut(connection)
        peer.lines.clear()
        if peer.up:
            peer.up = False
            self._emit(Down(peer.name, reason))

    def _cut(self, connection: Connection) -> None:
        if not connection.ignored:
            connection.ignored = True
            cut_connection(connection.fd, connection.inode)

    def _end(self, connection: Connection, reason: str) -> None:
        connection.ignored = True
        self._routes.end(connection)
        if connection.peer is not None:
            self._drop(connection.peer, reason)


def _user_id(frame: zmq.Frame) -> str:
    try:
        return str(frame.get("User-Id"))
    except zmq.ZMQError:
        return ""
