"""ZeroMQ sockets the way this project needs them: options, keys, monitors and non-blocking writes.

What was measured and why each option is set is in `docs/wire.md`, "Sockets". Used by `zeromq_outbound.py` and
`zeromq_inbound.py`; nothing here knows peers.
"""

import errno
import itertools
import struct
from collections.abc import Sequence
from typing import Final, TypeAlias

import zmq

from flagsplit.transport.channel import ChannelOptions
from flagsplit.transport.messages import MAX_PAYLOAD_BYTES, Frame
from flagsplit.transport.security import NoSecurity, Security
from flagsplit.transport.zap import ZAP_DOMAIN

Context: TypeAlias = "zmq.Context[zmq.Socket[bytes]]"
Socket: TypeAlias = "zmq.Socket[bytes]"

# Below this size copying beats the bookkeeping of a shared buffer.
COPY_BELOW_BYTES: Final = 64 << 10
# Counted in messages: two MiB of default chunks. More would only hide from `withdraw` what a slow link has not taken.
_SEND_HWM: Final = 8
_RECEIVE_HWM: Final = 16
# CURVE and ZMTP add a few dozen bytes to a frame.
_MAX_FRAME_BYTES: Final = MAX_PAYLOAD_BYTES + 1024
# As plain numbers: to combine members of an enumeration takes longer than a small send.
_NOBLOCK: Final = int(zmq.NOBLOCK)
_NOBLOCK_MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)
READABLE: Final = int(zmq.POLLIN)
READABLE_WRITABLE: Final = int(zmq.POLLIN | zmq.POLLOUT)
_EVENT = struct.Struct("=HI")
_serial = itertools.count()


def make_socket(context: Context, kind: int, options: ChannelOptions) -> Socket:
    """A ROUTER or DEALER with everything that both ends share."""
    socket = context.socket(kind)
    socket.copy_threshold = COPY_BELOW_BYTES
    values = {
        zmq.LINGER: 0,
        zmq.SNDHWM: _SEND_HWM,
        zmq.RCVHWM: _RECEIVE_HWM,
        zmq.IPV6: 1,
        zmq.MAXMSGSIZE: _MAX_FRAME_BYTES,
        zmq.HANDSHAKE_IVL: round(options.handshake_timeout_s * 1000),
        zmq.TCP_KEEPALIVE: 1,
        zmq.TCP_KEEPALIVE_IDLE: 30,
        zmq.TCP_KEEPALIVE_INTVL: 5,
        zmq.TCP_KEEPALIVE_CNT: 3,
    }
    for option, value in values.items():
        socket.setsockopt(option, value)
    return socket


def secure_server(socket: Socket, security: Security | NoSecurity) -> None:
    if isinstance(security, NoSecurity):
        return
    socket.curve_server = True
    socket.curve_publickey = security.public_key.encode()
    socket.curve_secretkey = security.secret_key.encode()
    # Without a domain that is enforced libzmq accepts every key when no handler answers.
    socket.zap_domain = ZAP_DOMAIN
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


def secure_client(socket: Socket, security: Security | NoSecurity, server_key: str) -> None:
    if isinstance(security, NoSecurity):
        return
    socket.curve_publickey = security.public_key.encode()
    socket.curve_secretkey = security.secret_key.encode()
    socket.curve_serverkey = server_key.encode()


class Monitor:
    """The events of one socket. Its queue is unbounded on purpose: libzmq would block its I/O thread on a full one."""

    def __init__(self, context: Context, socket: Socket, events: int) -> None:
        self._watched = socket
        endpoint = f"inproc://flagsplit-monitor-{next(_serial)}"
        socket.monitor(endpoint, events)
        self.socket = context.socket(zmq.PAIR)
        self.socket.linger = 0
        self.socket.rcvhwm = 0
        self.socket.connect(endpoint)

    def read(self) -> list[tuple[int, int]]:
        """All (event, value) so far."""
        events = []
        while has_message(self.socket):
            (first, *_) = self.socket.recv_multipart(_NOBLOCK)
            events.append(_EVENT.unpack_from(first))
        return events

    def close(self) -> None:
        if not self._watched.closed:
            self._watched.disable_monitor()
        self.socket.close()


def has_message(socket: Socket) -> bool:
    """Whether there is something to receive."""
    # To ask first takes half of what `zmq.Again` takes, and every turn of a channel ends with a no.
    return bool(socket.getsockopt(zmq.EVENTS) & READABLE)  # type: ignore[operator]  # this option is a number


def receive(socket: Socket) -> list[zmq.Frame] | None:
    """One message without copying it, or None when there is none."""
    try:
        frames = [socket.recv(_NOBLOCK, copy=False)]
    except zmq.Again:
        return None
    while frames[-1].more:
        frames.append(socket.recv(_NOBLOCK, copy=False))
    return frames


def receive_routed(socket: Socket) -> tuple[bytes, list[zmq.Frame]] | None:
    """One message of a ROUTER: where it comes from, and the rest without copying it."""
    try:
        route = socket.recv(_NOBLOCK)
    except zmq.Again:
        return None
    frames = receive(socket)
    return None if frames is None else (route, frames)


def write(socket: Socket, frames: Sequence[Frame]) -> bool:
    """Send without blocking or copying; False when the socket is full. Raises RouteLost when a ROUTER lost the peer."""
    *first, last = frames
    try:
        for frame in first:  # a socket that takes the first takes the others
            socket.send(frame, _NOBLOCK_MORE, copy=False)
        socket.send(last, _NOBLOCK, copy=False)
    except zmq.Again:
        return False
    except zmq.ZMQError as exc:
        if exc.errno == errno.EHOSTUNREACH:
            raise RouteLost from None
        raise
    return True


class RouteLost(Exception):  # noqa: N818 - control flow inside the package, never seen outside
    """A ROUTER has no connection with the routing id any more."""
