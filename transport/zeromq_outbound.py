"""One peer that we connect to: two DEALERs, one per lane, dialed again and again until told to stop.

libzmq's own reconnecting is off. It would keep what is queued and hand it to a server that restarted in between; here
each attempt gets fresh sockets with fresh routing ids, and what was queued for the old ones is gone with them.
The peer is up when both handshakes are through. `zeromq_inbound.py` is the other end.
"""

import random
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Final

import zmq

from flagsplit.errors import ProtocolError
from flagsplit.transport.address import Address
from flagsplit.transport.channel import ChannelEvent, ChannelOptions, Down, Received, Up, Violated
from flagsplit.transport.flow import Flow
from flagsplit.transport.messages import Attach, Credit, Frame, Lane, Message, decode, encode
from flagsplit.transport.resolver import Resolution
from flagsplit.transport.security import NoSecurity, Security
from flagsplit.transport.zeromq_sockets import (
    READABLE,
    READABLE_WRITABLE,
    Context,
    Monitor,
    has_message,
    make_socket,
    receive,
    secure_client,
    write,
)

_LOST: Final = zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED
_REFUSED: Final = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
_WATCHED: Final = _LOST | _REFUSED | zmq.EVENT_CONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED
# Of ZAP (RFC 27): the key was looked up and is not allowed. 300 and 500 say that it could not be looked up.
_KEY_NOT_AUTHORIZED: Final = 400
# Clocks of ours and of libzmq differ by a little.
_MOST_OF: Final = 0.9
# A connection this old was a success: the next loss starts again with the shortest wait.
_STABLE_AFTER_S: Final = 1.0


class LaneSocket:
    """One DEALER and what its monitor told about it."""

    def __init__(self, context: Context, options: ChannelOptions, lane: Lane, instance: str, serial: int) -> None:
        self.socket = make_socket(context, zmq.DEALER, options)
        self.socket.routing_id = f"{instance}:{lane.value[0]}:{serial}".encode()
        self.socket.immediate = True
        self.socket.reconnect_ivl = -1
        self.socket.connect_timeout = round(options.connect_timeout_s * 1000)
        if lane is Lane.CONTROL:
            # Only here: on the data lane a heartbeat would wait behind a chunk and give up a slow but healthy link.
            self.socket.heartbeat_ivl = round(options.heartbeat_s * 1000)
            self.socket.heartbeat_timeout = self.socket.heartbeat_ttl = round(options.heartbeat_s * 3000)
        try:
            self.monitor = Monitor(context, self.socket, _WATCHED)
        except BaseException:
            self.socket.close()
            raise
        self.connected_s: float | None = None
        self.ready = False

    def close(self, linger_s: float = 0.0) -> None:
        self.monitor.close()
        self.socket.close(linger=round(linger_s * 1000))


class OutboundPeer:
    """Dials, redials and carries the messages of one outbound peer; events go to `emit`."""

    def __init__(
        self,
        name: str,
        address: Address,
        *,
        context: Context,
        security: Security | NoSecurity,
        server_key: str,
        instance: str,
        options: ChannelOptions,
        next_serial: Callable[[], int],
        wake: Callable[[], None],
        emit: Callable[[ChannelEvent], None],
        rng: random.Random,
    ) -> None:
        self.name = name
        self.address = address
        self.up = False
        self._context, self._security, self._server_key = context, security, server_key
        self._instance, self._options = instance, options
        self._next_serial, self._wake, self._emit, self._rng = next_serial, wake, emit, rng
        self._lanes: dict[Lane, LaneSocket] = {}
        self.flow = Flow(self._options)
        self._resolution: Resolution | None = None
        self._endpoints: list[str] = []
        self._next_step_s = 0.0
        self._up_since_s = 0.0
        self._failures = 0
        self._told_down = self._told_keys = False
        self._changes = 0

    @property
    def wanted(self) -> int:
        """Another number when `polled` says something else."""
        queues = self.flow.queues
        return 4 * self._changes + 2 * queues[Lane.CONTROL].is_sendable + queues[Lane.DATA].is_sendable

    def deadline_s(self) -> float | None:
        """When `advance` has something to do; None while only sockets can bring news."""
        if self.up:
            return self.flow.grant.due_s()
        return None if self._is_resolving else self._next_step_s

    def advance(self, now_s: float) -> None:
        """Start an attempt that is due, or give up one that takes too long; while up, say Credit when it is due."""
        if self.up:
            if self.flow.owes(now_s):
                self.flow.give_credit(now_s, lambda credit: self.send(credit, encode(credit)))
            return
        if self._is_resolving or now_s < self._next_step_s:
            return
        if self._lanes:
            self._fail(now_s, self._unfinished())
        elif self._endpoints:
            self._dial(now_s, self._endpoints.pop(0))
        elif self._resolution is None:
            self._resolution = Resolution(self.address, self._wake)
            self.advance(now_s)
        else:
            self._endpoints = list(self._resolution.endpoints or ())
            error, self._resolution = self._resolution.error, None
            if self._endpoints:
                self._dial(now_s, self._endpoints.pop(0))
            else:
                self._fail(now_s, error)

    def polled(self) -> Iterator[tuple[zmq.Socket[bytes], int]]:
        for lane, line in self._lanes.items():
            yield line.monitor.socket, READABLE
            if self.up:
                yield line.socket, READABLE_WRITABLE if self.flow.queues[lane].is_sendable else READABLE

    def receive(self, now_s: float, budget: int, ready: Collection[object]) -> None:
        """Read at most `budget` messages of `ready` sockets, control before data, and then what their monitors say.

        In this order, so that the last words of a peer come before its Down.
        """
        seen = {lane: line.monitor.read() for lane, line in self._lanes.items() if line.monitor.socket in ready}
        for lane, line in tuple(self._lanes.items()):
            has_more = line.socket in ready or bool(seen)
            while has_more and budget > 0 and self.up and (frames := receive(line.socket)) is not None:
                budget -= 1
                self._take(now_s, lane, [frame.buffer for frame in frames])
                has_more = self.up and has_message(line.socket)
        for lane, events in seen.items():
            for event, value in events:
                if lane in self._lanes:
                    self._follow(now_s, self._lanes[lane], event, value)

    def send(self, message: Message, frames: list[Frame]) -> bool:
        if not self.up:
            return False
        line = self._lanes[message.LANE]
        sent = self.flow.queues[message.LANE].offer(message, frames, partial(write, line.socket))
        if sent:
            self.flow.sent(message)
        return sent

    def flush(self) -> None:
        if self.up and self.flow.has_queued:
            for lane, line in self._lanes.items():
                self.flow.queues[lane].flush(partial(write, line.socket))

    def close(self, farewell_s: float = 0.0) -> None:
        self.up = False
        self._changes += 1
        for lane, line in self._lanes.items():
            line.close(farewell_s if lane is Lane.CONTROL else 0.0)
        self._lanes = {}
        self.flow = Flow(self._options)

    @property
    def _is_resolving(self) -> bool:
        return self._resolution is not None and self._resolution.endpoints is None

    def _dial(self, now_s: float, endpoint: str) -> None:
        serial = self._next_serial()
        self._changes += 1
        self._next_step_s = now_s + self._options.connect_timeout_s + self._options.handshake_timeout_s
        try:
            for lane in Lane:
                self._lanes[lane] = LaneSocket(self._context, self._options, lane, self._instance, serial)
                secure_client(self._lanes[lane].socket, self._security, self._server_key)
                self._lanes[lane].socket.connect(endpoint)
        except zmq.ZMQError as exc:  # no file descriptors left, or an address form that this host does not have
            self._fail(now_s, f"cannot dial {endpoint}: {exc.strerror}")

    def _take(self, now_s: float, lane: Lane, frames: list[Frame]) -> None:
        try:
            message = decode(frames)
            if message.LANE is not lane or isinstance(message, Attach):
                raise ProtocolError(f"{type(message).__name__} cannot come from a listener on the {lane.value} lane")
            event = self._hear(now_s, message, frames)
        except ProtocolError as exc:
            self._emit(Violated(self.name, str(exc)))
            self._failures = max(self._failures, 10)
            self._fail(now_s, "the connection was cut because the peer broke the protocol")
        else:
            self._emit(event)

    def _hear(self, now_s: float, message: Message, frames: list[Frame]) -> ChannelEvent:
        if isinstance(message, Credit):
            event = self.flow.acked(self.name, message)
            self.flow.queues[Lane.DATA].flush(partial(write, self._lanes[Lane.DATA].socket))
            return event
        self.flow.came(message, frames, now_s)
        return Received(self.name, message)

    def _follow(self, now_s: float, line: LaneSocket, event: int, value: int) -> None:
        if event == zmq.EVENT_CONNECTED:
            line.connected_s = now_s
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            line.ready = True
            if not self.up and all(other.ready for other in self._lanes.values()):
                self._come_up(now_s)
        elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            self._fail(now_s, self._key_refused(value), keys=True)
        elif event & _REFUSED and self._waited_in_vain(line, now_s):
            self._fail(now_s, self._unfinished())
        elif event & _REFUSED and not isinstance(self._security, NoSecurity):
            self._fail(now_s, self._key_mismatch(), keys=True)
        elif self.up:
            self._fail(now_s, f"the connection to {self.address} was lost")
        elif line.connected_s is not None:
            self._fail(now_s, f"{self.address} closed the connection during the handshake")
        else:
            self._fail(now_s, f"nothing listens at {self.address}, or a firewall is in between")

    def _waited_in_vain(self, line: LaneSocket, now_s: float) -> bool:
        """Whether libzmq gave up a handshake because of the time; it says of that what it says of a wrong key."""
        patience_s = _MOST_OF * self._options.handshake_timeout_s
        return line.connected_s is not None and now_s - line.connected_s >= patience_s

    def _unfinished(self) -> str:
        return f"{self.address} did not finish the handshake in time; is it stopped, overloaded, or not flagsplit?"

    def _key_refused(self, status: int) -> str:
        if status != _KEY_NOT_AUTHORIZED:
            return (
                f"the authenticator of {self.address} is not working (status {status}) and lets nobody in: "
                "the log there says why; our key is not the reason"
            )
        ours = "" if isinstance(self._security, NoSecurity) else f" {self._security.public_key}"
        return (
            f"{self.address} refused our key (status {status}): add our public key{ours} to the authorized keys there"
        )

    def _key_mismatch(self) -> str:
        return (
            f"{self.address} closed the CURVE handshake: we expect the server key {self._server_key}; "
            "check that it is the one of that host, that the host has security on, and that its log has no complaint "
            "of its authenticator"
        )

    def _come_up(self, now_s: float) -> None:
        self.up = True
        self._changes += 1
        self._up_since_s = now_s
        self._told_down = self._told_keys = False
        self._endpoints = []
        attach = Attach(self._instance)
        self.send(attach, encode(attach))
        self._emit(Up(self.name))

    def _fail(self, now_s: float, reason: str, *, keys: bool = False) -> None:
        was_up = self.up
        self.close()
        if was_up and now_s - self._up_since_s >= _STABLE_AFTER_S:
            self._failures = 0
        if not was_up and self._endpoints and not keys:
            self._next_step_s = now_s  # a host with several addresses failed only when all of them did
            return
        self._endpoints = []
        longest_s = min(self._options.backoff_max_s, self._options.backoff_min_s * 2.0 ** min(self._failures, 30))
        self._next_step_s = now_s + longest_s * (0.5 + 0.5 * self._rng.random())
        self._failures += 1
        if was_up or not self._told_down or (keys and not self._told_keys):
            self._emit(Down(self.name, reason))
        self._told_down = True
        self._told_keys = self._told_keys or keys
