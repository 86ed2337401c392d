"""The connections of a shaping proxy: two sockets, and a pipe for the bytes of each direction.

A pipe reads what its link takes and writes it when it is due. How fast that goes is in `pacer.py`, the loop that calls
these in `carrier.py`.
"""

import contextlib
import math
import selectors
import socket
import struct
from collections import deque
from typing import Final

_MAX_HELD_BYTES: Final = 16 << 20
_RESET: Final = struct.pack("ii", 1, 0)
# What a socket takes in while the link is busy is not the link's buffer, and must stay small beside it.
_RECEIVE_BUFFER_BYTES: Final = 128 << 10


class Pipe:
    """One direction of one connection.

    Attributes:
        source, target: the sockets that it reads and writes.
        queued: whether it waits for its turn to read.
        ended: whether the source will send no more.
        flushed: whether the target was told so, after all bytes.
        clogged: whether the target takes no more for now.
    """

    def __init__(self, source: socket.socket, target: socket.socket) -> None:
        self.source = source
        self.target = target
        self.queued = self.ended = self.flushed = self.clogged = False
        self._queue: deque[tuple[float, memoryview | None]] = deque()
        self._held_bytes = 0
        self._last_due = -math.inf

    @property
    def due(self) -> float:
        """When the next bytes are to be written; infinite if there are none or the target takes none."""
        return self._queue[0][0] if self._queue and not self.clogged else math.inf

    @property
    def wants_more(self) -> bool:
        """Whether more may come, and it may hold more."""
        return not self.ended and self._held_bytes < _MAX_HELD_BYTES

    def read(self, size_bytes: int) -> bytes | None:
        """What the source has; None if nothing is there yet. Nothing at all is the end.

        Raises OSError if the connection broke.
        """
        try:
            data = self.source.recv(size_bytes)
        except BlockingIOError:
            return None
        self.ended = not data
        return data

    def put(self, data: bytes, due: float) -> None:
        """Keep bytes until they are due, never before those that were read earlier; none stand for the end."""
        self._append(memoryview(data), due)

    def end(self, now: float) -> None:
        """Tell the target, after all that is under way, that no more comes, and read no more."""
        if not self.ended:
            self.ended = True
            self.put(b"", now)

    def break_off(self, due: float) -> None:
        """Read no more; break the connection after all that is under way."""
        self.ended = True
        self._append(None, due)

    def _append(self, data: memoryview | None, due: float) -> None:
        self._last_due = max(due, self._last_due)
        self._queue.append((self._last_due, data))
        self._held_bytes += len(data or b"")

    def write(self, now: float) -> int:
        """Write what is due; how many bytes it was. Raises OSError if the connection broke or is to break."""
        written = 0
        while self.due <= now:
            due, data = self._queue.popleft()
            if data is None and written:  # to be told first; the break is next
                self._queue.appendleft((due, data))
                break
            if data is None:
                raise ConnectionResetError
            if not data:
                self.target.shutdown(socket.SHUT_WR)
                self.flushed = True
                break
            try:
                count = self.target.send(data)
            except BlockingIOError:
                count = 0
            written += count
            if count < len(data):
                self._queue.appendleft((due, data[count:]))
                self.clogged = True
        self._held_bytes -= written
        return written


class Connection:
    """A client, the target, and the pipes between them.

    Attributes:
        near: the client's socket.
        far: the socket to the target.
        up, down: the pipes away from the client and towards it.
        connected: whether the target accepted.
    """

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self.near = near
        self.far = far
        self.connected = False
        for end in (self.near, self.far):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        self.up = Pipe(self.near, self.far)
        self.down = Pipe(self.far, self.near)

    @property
    def pipes(self) -> tuple[Pipe, Pipe]:
        """Both of them."""
        return self.up, self.down

    @property
    def near_events(self) -> int:
        """What to wait for at the client's socket."""
        return _events(self.up, self.down) if self.connected else 0

    @property
    def far_events(self) -> int:
        """What to wait for at the target's socket."""
        return _events(self.down, self.up) if self.connected else selectors.EVENT_WRITE

    @property
    def over(self) -> bool:
        """Whether both sides said all and were told all."""
        return self.up.flushed and self.down.flushed

    def close(self, *, reset: bool) -> None:
        """Close both sockets; with `reset`, the peers see a broken connection."""
        for end in (self.near, self.far):
            if reset:
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            end.close()


def _events(outgoing: Pipe, incoming: Pipe) -> int:
    reads = selectors.EVENT_READ if outgoing.wants_more and not outgoing.queued else 0
    return reads | (selectors.EVENT_WRITE if incoming.clogged else 0)
