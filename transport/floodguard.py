"""Bounds what a peer can make us hold, and cuts connections.

libzmq collects a multi-part message without limit until its last frame: a peer that never sends that frame grows our
memory, and neither the high-water mark nor MAXMSGSIZE stops it. The kernel knows how many bytes came in on a connection
and we know how many of them were handed to us as messages; the difference is what is held. Linux over TCP only, where
the kernel tells; elsewhere it takes an authorized key to get that far.
"""

import os
import socket
import struct
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import zmq

_CHECK_EVERY_S: Final = 0.25
_CHECKED_AT_ONCE: Final = 128
# Heartbeats are never handed to us: what comes in at less than this is forgiven.
_FORGIVEN_PER_CHECK_BYTES: Final = 256
# More than any overhead of a frame on the wire: to overestimate what was delivered errs on the peer's side.
_FRAME_OVERHEAD_BYTES: Final = 128
# `tcpi_bytes_received` of struct tcp_info, since Linux 4.1.
_BYTES_RECEIVED: Final = struct.Struct("=128xQ")


@dataclass(slots=True, eq=False)
class Meter:
    """Bytes of one connection: handed to us since the last check, come in by then, and held by then."""

    delivered_bytes: int = 0
    received_bytes: int = 0
    held_bytes: int = 0


class Accepted(Protocol):
    fd: int
    inode: int
    meter: Meter


ConnectionT = TypeVar("ConnectionT", bound=Accepted)


class FloodGuard:
    """Compares bytes that came in with bytes that were delivered, per connection."""

    def __init__(self, limit_bytes: int) -> None:
        self.next_check_s = 0.0
        self._limit_bytes = limit_bytes
        self._checked_last_fd = -1

    def delivered(self, connection: Accepted, frames: Iterable[zmq.Frame]) -> None:
        delivered_bytes = 0
        for frame in frames:
            delivered_bytes += len(frame) + _FRAME_OVERHEAD_BYTES
        connection.meter.delivered_bytes += delivered_bytes

    def check(self, now_s: float, connections: Mapping[int, ConnectionT]) -> list[ConnectionT]:
        """The connections that hold too much; a slice of them at a time, so that a thousand idle ones cost little."""
        if now_s < self.next_check_s:
            return []
        self.next_check_s = now_s + _CHECK_EVERY_S
        if not sys.platform.startswith("linux"):
            return []
        later = sorted(fd for fd in connections if fd > self._checked_last_fd) or sorted(connections)
        batch = later[:_CHECKED_AT_ONCE]
        self._checked_last_fd = batch[-1] if len(later) > len(batch) else -1
        return [connections[fd] for fd in batch if _held_bytes(connections[fd]) > self._limit_bytes]


def _held_bytes(connection: Accepted) -> int:
    meter, received_bytes = connection.meter, _received_bytes(connection)
    grown_bytes = received_bytes - meter.received_bytes - meter.delivered_bytes
    meter.held_bytes = max(0, meter.held_bytes + grown_bytes - _FORGIVEN_PER_CHECK_BYTES)
    meter.received_bytes, meter.delivered_bytes = received_bytes, 0
    return meter.held_bytes


def _received_bytes(connection: Accepted) -> int:
    with suppress(OSError, struct.error), socket.socket(fileno=os.dup(connection.fd)) as same:
        if os.fstat(same.fileno()).st_ino == connection.inode and same.family != socket.AF_UNIX:
            info = same.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            return int(_BYTES_RECEIVED.unpack_from(info)[0])
    return 0


def cut_connection(fd: int, inode: int) -> None:
    """Shut a connection down, so that libzmq sees it end and frees what it holds.

    The descriptor is libzmq's: a duplicate is used, and only if it still is the connection that was accepted.
    """
    with suppress(OSError), socket.socket(fileno=os.dup(fd)) as same:
        if os.fstat(same.fileno()).st_ino == inode:
            same.shutdown(socket.SHUT_RDWR)
