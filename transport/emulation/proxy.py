"""A TCP proxy that behaves like a network link: slow, late, lossy or broken, on demand and without privileges.

All connections through one proxy share one link, direction by direction, and take turns on it. Here is the thread that
waits, and what may be asked of it; the bytes move in `carrier.py`, the times come from `pacer.py`. What this emulates
and what it does not is in `docs/emulation.md`.
"""

import math
import os
import select
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Literal, Self

from flagsplit.errors import ConfigError
from flagsplit.transport.emulation.carrier import Carrier
from flagsplit.transport.emulation.direction import Direction
from flagsplit.transport.emulation.pacer import LinkShape

Way = Literal["up", "down", "both"]
"""Up is away from whoever connects, down is back."""

_BACKLOG: Final = 128
_LONGEST_WAIT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class LinkState:
    """How a link stands.

    Attributes:
        up, down: its shapes.
        connections: how many go through it.
        carried_bytes: what came out so far, up and down.
        faults: what is wrong for now, in words such as `partitioned` or `up stalled`.
    """

    up: LinkShape
    down: LinkShape
    connections: int
    carried_bytes: tuple[int, int]
    faults: tuple[str, ...]


class ShapingProxy:
    """Carries each connection that it accepts to the target, over one emulated link.

    Use it in a `with` statement, or call `close`. Its methods may be called from any thread and hold when they return.

    Args:
        host, port: the target.
        up: away from whoever connects to the proxy, towards the target.
        down: back; as `up` by default.
        seed: of jitter, losses and dropped connections.
        listen: host and port to listen at, as in an address; by default a free port of 127.0.0.1.

    Attributes:
        port: where it listens.
        address: the same as `tcp://HOST:PORT`.

    Raises:
        ConfigError: the target's name is unknown, or it cannot listen there.
    """

    def __init__(
        self,
        host: str,
        port: int,
        up: LinkShape,
        down: LinkShape | None = None,
        *,
        seed: int = 0,
        listen: tuple[str, int] = ("127.0.0.1", 0),
    ) -> None:
        family, target = _resolve(host, port, "to forward to")
        listener = _listener(*listen)
        self.port: int = listener.getsockname()[1]
        self.address = f"tcp://{listen[0]}:{self.port}"
        self._carrier = Carrier(family, target, listener, (up, down or up), seed)
        self._lock = threading.Lock()
        self._partitioned = self._closing = self._freed = False
        self._woken, self._waker = os.pipe()
        os.set_blocking(self._waker, False)
        self._carrier.selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._loop, name="flagsplit-emulation", daemon=True)
        self._thread.start()

    @property
    def carried_bytes(self) -> tuple[int, int]:
        """Bytes that came out of the link so far, up and down."""
        with self._lock:
            return self._carrier.up.carried_bytes, self._carrier.down.carried_bytes

    @property
    def state(self) -> LinkState:
        """How the link stands now."""
        with self._lock:
            up, down = self._carrier.up, self._carrier.down
            wrong = {
                "partitioned": self._partitioned,
                "down": self._carrier.is_down,
                "up stalled": up.stalled,
                "down stalled": down.stalled,
                f"drops {self._carrier.drop_share:.3g} of new connections": self._carrier.drop_share > 0,
            }
            faults = tuple(text for text, holds in wrong.items() if holds)
            carried = (up.carried_bytes, down.carried_bytes)
            return LinkState(up.pacer.shape, down.pacer.shape, self._carrier.count, carried, faults)

    def set_shapes(self, up: LinkShape, down: LinkShape | None = None) -> None:
        """Another link from now on; bytes under way keep their times."""
        with self._changing():
            self._carrier.up.pacer.shape, self._carrier.down.pacer.shape = up, down or up

    def stall(self, way: Way = "both") -> None:
        """Move nothing that way and tell nobody, until `resume`; new connections are accepted."""
        with self._changing():
            for direction in self._directions(way):
                direction.stalled = True

    def resume(self, way: Way = "both") -> None:
        """Go on after a `stall`; what was under way comes out at once."""
        with self._changing():
            for direction in self._directions(way):
                direction.stalled = False

    def partition(self) -> None:
        """A black hole, until `heal`: nothing moves, nobody is told, new connections hang."""
        with self._changing():
            self._partitioned = True

    def heal(self) -> None:
        """Go on after a `partition`; what was under way comes out at once."""
        with self._changing():
            self._partitioned = False

    def take_down(self) -> None:
        """Reset every connection, and each new one at once, until `bring_up`."""
        with self._changing():
            self._carrier.is_down = True
            self._carrier.cut()

    def bring_up(self) -> None:
        """Accept connections again after `take_down`."""
        with self._changing():
            self._carrier.is_down = False

    def drop_new(self, share: float) -> None:
        """Reset that share of the new connections at once, drawn by the seed; 0 drops none.

        Raises:
            ConfigError: the share is not between 0 and 1.
        """
        if not 0 <= share <= 1:
            raise ConfigError(f"share of new connections to drop: expected 0 to 1, came {share}")
        with self._changing():
            self._carrier.drop_share = share

    def cut(self) -> None:
        """Reset every connection (RST); new ones are accepted."""
        with self._changing():
            self._carrier.cut()

    def cut_after(self, size_bytes: int, way: Way = "both") -> None:
        """Reset the connection that would carry the byte after so many more that way; those before it arrive."""
        with self._changing():
            for direction in self._directions(way):
                direction.marks.cut(size_bytes)

    def corrupt(self, offset_bytes: int, way: Way = "both") -> None:
        """Invert all bits of the byte that comes after so many more that way."""
        with self._changing():
            for direction in self._directions(way):
                direction.marks.flip(offset_bytes)

    def half_close(self, way: Way = "both") -> None:
        """End that direction of every connection, as if its sender had no more to say."""
        with self._changing():
            for is_up in (True, False):
                if way in (("up" if is_up else "down"), "both"):
                    self._carrier.half_close(up=is_up, now=time.monotonic())

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

    def _directions(self, way: Way) -> tuple[Direction, ...]:
        up, down = self._carrier.up, self._carrier.down
        return {"up": (up,), "down": (down,), "both": (up, down)}[way]

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the thread still, then have it look at what changed."""
        with self._lock:
            yield
            if not self._freed:
                with suppress(BlockingIOError):  # then it is to wake up anyway
                    os.write(self._waker, b"\0")

    def _loop(self) -> None:
        selector = self._carrier.selector
        while True:
            with self._lock:
                self._take_events(selector)
                if self._closing:
                    self._free()
                    return
                due = math.inf if self._partitioned else self._carrier.turn(time.monotonic())
                waited = self._woken if self._partitioned else selector.fileno()
            _wait(waited, max(0.0, min(due - time.monotonic(), _LONGEST_WAIT_S)))

    def _take_events(self, selector: selectors.BaseSelector) -> None:
        for key, events in selector.select(0):
            if key.fileobj == self._woken:
                os.read(self._woken, 4096)
            elif not self._partitioned:
                self._carrier.take_event(key, events)

    def _free(self) -> None:
        self._freed = True
        self._carrier.free()
        os.close(self._woken)
        os.close(self._waker)


def _resolve(host: str, port: int, why: str) -> tuple[int, Any]:
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(f"expected a host {why}, came {host!r}: {error.strerror}") from None
    return found[0], found[4]


def _listener(host: str, port: int) -> socket.socket:
    family, address = _resolve(host, port, "to listen at")
    try:
        listener = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(f"cannot listen at {host}:{port}: {os.strerror(error.errno or 0)}; choose another") from None
    listener.setblocking(False)
    return listener


def _wait(waited: int, wait_s: float) -> None:
    """Until there is something to read, or so long.

    By `select`, which counts in microseconds: what else there is rounds up to milliseconds, longer than many a delay to
    emulate. Only it cannot look at descriptors from 1024 on.
    """
    try:
        select.select([waited], [], [], wait_s)
    except ValueError:
        polled = select.poll()
        polled.register(waited, select.POLLIN)
        polled.poll(wait_s * 1e3)
