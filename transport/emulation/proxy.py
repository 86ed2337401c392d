"""A TCP proxy that behaves like a slow network link: rate, delay, jitter, stalls and resets, without privileges.

All connections through one proxy share one link, direction by direction, and take turns on it. The times come from
`pacer.py`, the bytes move through `pipes.py`; here is the thread that does it. What this emulates and
what it does not is in `docs/emulation.md`.
"""

import errno
import math
import os
import random
import select
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Final, Self

from flagsplit.errors import ConfigError
from flagsplit.transport.emulation.pacer import LinkShape, Pacer
from flagsplit.transport.emulation.pipes import Connection, Pipe

_CONNECTING: Final = (0, errno.EINPROGRESS, errno.EWOULDBLOCK)
_BACKLOG: Final = 128


class _Direction:
    """One direction of the link, and the pipes that have something for it, in the order of their turns."""

    def __init__(self, shape: LinkShape, seed: str) -> None:
        self.pacer = Pacer(shape, random.Random(seed))  # noqa: S311 - jitter is no secret
        self.ready: deque[tuple[Connection, Pipe]] = deque()
        self.carried_bytes = 0


class ShapingProxy:
    """Listens on a free port of 127.0.0.1 and carries each connection to the target over one emulated link.

    Use it in a `with` statement, or call `close`. Its methods may be called from any thread and hold when they return.

    Args:
        host, port: the target.
        up: away from whoever connects to the proxy, towards the target.
        down: back; as `up` by default.
        seed: of the jitter.

    Attributes:
        port: where it listens on 127.0.0.1.
        address: the same as `tcp://127.0.0.1:PORT`.

    Raises:
        ConfigError: the target's name is unknown.
    """

    def __init__(self, host: str, port: int, up: LinkShape, down: LinkShape | None = None, *, seed: int = 0) -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        except OSError as error:
            raise ConfigError(f"expected a host to forward to, came {host!r}: {error.strerror}") from None
        self._family, self._target = found[0], found[4]
        self._up, self._down = _Direction(up, f"{seed} up"), _Direction(down or up, f"{seed} down")
        self._connections: set[Connection] = set()
        self._lock = threading.Lock()
        self._stalled = self._closing = self._freed = False
        self._selector = selectors.DefaultSelector()
        self._woken, self._waker = os.pipe()
        os.set_blocking(self._waker, False)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)
        self._listener.setblocking(False)
        for waited in (self._woken, self._listener):
            self._selector.register(waited, selectors.EVENT_READ)
        self.port: int = self._listener.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._loop, name="flagsplit-shaping", daemon=True)
        self._thread.start()

    @property
    def carried_bytes(self) -> tuple[int, int]:
        """Bytes that came out of the link so far, up and down."""
        with self._lock:
            return self._up.carried_bytes, self._down.carried_bytes

    def set_shapes(self, up: LinkShape, down: LinkShape | None = None) -> None:
        """Another link from now on; bytes under way keep their times."""
        with self._changing():
            self._up.pacer.shape, self._down.pacer.shape = up, down or up

    def stall(self) -> None:
        """Move nothing, accept nobody, tell nobody: a black hole, until `resume`."""
        with self._changing():
            self._stalled = True

    def resume(self) -> None:
        """Go on after a `stall`; what was under way comes out at once."""
        with self._changing():
            self._stalled = False

    def cut(self) -> None:
        """Reset every connection (RST); new ones are accepted."""
        with self._changing():
            self._cut()

    def close(self) -> None:
        """Reset every connection and stop listening. A second call does nothing."""
        with self._changing():
            self._closing = True
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the thread still, then have it look at what changed."""
        with self._lock:
            yield
            if not self._freed:
                with suppress(BlockingIOError):  # then it is to wake up anyway
                    os.write(self._waker, b"\0")

    def _loop(self) -> None:
        while True:
            with self._lock:
                self._take_events()
                if self._closing:
                    self._free()
                    return
                wait_s = None if self._stalled else self._turn()
                waited = self._woken if self._stalled else self._selector.fileno()
            _wait(waited, wait_s)

    def _turn(self) -> float | None:
        """Move what can be moved now; seconds until there is more to do, None for never."""
        now = time.monotonic()
        self._deliver(now)
        for direction in (self._up, self._down):
            self._collect(direction, now)
        times = [pipe.due for connection in self._connections for pipe in connection.pipes]
        times += [each.pacer.takes_from() for each in (self._up, self._down) if each.ready]
        first = min(times, default=math.inf)
        return None if first == math.inf else max(0.0, first - time.monotonic())

    def _deliver(self, now: float) -> None:
        for connection in list(self._connections):
            try:
                self._up.carried_bytes += connection.up.write(now)
                self._down.carried_bytes += connection.down.write(now)
            except OSError:
                self._drop(connection, reset=True)
                continue
            if connection.over:
                self._drop(connection, reset=False)
            else:
                self._watch(connection)

    def _collect(self, direction: _Direction, now: float) -> None:
        """Let the pipes take turns in filling the link's buffer."""
        while direction.ready and direction.pacer.takes_from() <= now:
            connection, pipe = direction.ready.popleft()
            if connection not in self._connections:
                continue
            try:
                data = pipe.read(direction.pacer.quantum_bytes)
            except OSError:
                self._drop(connection, reset=True)
                continue
            if data is not None:
                pipe.put(data, direction.pacer.take(len(data), now))
            pipe.queued = data is not None and pipe.wants_more
            if pipe.queued:
                direction.ready.append((connection, pipe))
            else:
                self._watch(connection)

    def _take_events(self) -> None:
        for key, events in self._selector.select(0):
            if key.fileobj == self._woken:
                os.read(self._woken, 4096)
            elif key.fileobj is self._listener:
                self._accept()
            elif key.data in self._connections:
                self._note(key.data, key.fileobj is key.data.near, events)

    def _note(self, connection: Connection, is_near: bool, events: int) -> None:
        """What a socket can do now."""
        outgoing, incoming = (connection.up, connection.down) if is_near else (connection.down, connection.up)
        if events & selectors.EVENT_WRITE:
            incoming.clogged = False
            if not connection.connected:
                connection.connected = connection.far.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
                if not connection.connected:
                    self._drop(connection, reset=True)
                    return
        if events & selectors.EVENT_READ and not outgoing.queued and outgoing.wants_more:
            outgoing.queued = True
            (self._up if is_near else self._down).ready.append((connection, outgoing))
        self._watch(connection)

    def _accept(self) -> None:
        if self._stalled:
            return
        with suppress(OSError):  # whoever knocked has left, or there are no descriptors left for now
            far = socket.socket(self._family, socket.SOCK_STREAM)
            try:
                near, _ = self._listener.accept()
            except OSError:
                far.close()
                return
            connection = Connection(near, far)
            self._connections.add(connection)
            if far.connect_ex(self._target) not in _CONNECTING:
                self._drop(connection, reset=True)
                return
            self._watch(connection)

    def _watch(self, connection: Connection) -> None:
        """Wait for what each socket of a connection is needed for, and nothing else."""
        for end, wanted in ((connection.near, connection.near_events), (connection.far, connection.far_events)):
            known = self._selector.get_map().get(end)
            if known is None and wanted:
                self._selector.register(end, wanted, connection)
            elif known is not None and not wanted:
                self._selector.unregister(end)
            elif known is not None and known.events != wanted:
                self._selector.modify(end, wanted, connection)

    def _drop(self, connection: Connection, *, reset: bool) -> None:
        for end in (connection.near, connection.far):
            if end in self._selector.get_map():
                self._selector.unregister(end)
        self._connections.discard(connection)
        connection.close(reset=reset)

    def _cut(self) -> None:
        for connection in list(self._connections):
            self._drop(connection, reset=True)

    def _free(self) -> None:
        self._freed = True
        self._cut()
        self._selector.close()
        self._listener.close()
        os.close(self._woken)
        os.close(self._waker)


def _wait(waited: int, wait_s: float | None) -> None:
    """Until there is something to read.

    By `select`, which counts in microseconds: what else there is rounds up to milliseconds, longer than many a delay to
    emulate. Only it cannot look at descriptors from 1024 on.
    """
    try:
        select.select([waited], [], [], wait_s)
    except ValueError:
        polled = select.poll()
        polled.register(waited, select.POLLIN)
        polled.poll(None if wait_s is None else wait_s * 1e3)
