"""The bytes through an emulated link: connections accepted, read in turns, written when due, and broken on demand.

A carrier belongs to one thread at a time, never waits, and knows no clock but the times that it is given. `proxy.py`
owns the thread; what a direction does to bytes is in `direction.py` and `pacer.py`.
"""

import errno
import math
import random
import selectors
import socket
from contextlib import suppress
from typing import Any, Final

from flagsplit.transport.emulation.direction import Direction
from flagsplit.transport.emulation.pacer import LinkShape
from flagsplit.transport.emulation.pipes import Connection, Pipe

_CONNECTING: Final = (0, errno.EINPROGRESS, errno.EWOULDBLOCK)


class Carrier:
    """All connections through one link.

    Attributes:
        up, down: away from whoever connects, and back.
        selector: what to wait with; the listener is registered, and more may be, whose data are None.
        is_down: whether every new connection is reset at once.
        drop_share: how many of the new connections are reset at once, 0 to 1, drawn by the seed.

    Args:
        family, target: of the socket to connect to, as `socket.getaddrinfo` gives them.
        listener: takes no time to accept; the carrier closes it.
        shapes: up and down.
        seed: of jitter, losses and drops.
    """

    def __init__(
        self, family: int, target: Any, listener: socket.socket, shapes: tuple[LinkShape, LinkShape], seed: int
    ) -> None:
        self.up, self.down = Direction(shapes[0], f"{seed} up"), Direction(shapes[1], f"{seed} down")
        self.selector = selectors.DefaultSelector()
        self.is_down = False
        self.drop_share = 0.0
        self._draws = random.Random(f"{seed} connections")  # noqa: S311 - no secret
        self._family, self._target, self._listener = family, target, listener
        self._connections: set[Connection] = set()
        self.selector.register(listener, selectors.EVENT_READ)

    @property
    def count(self) -> int:
        """How many connections there are."""
        return len(self._connections)

    def take_event(self, key: selectors.SelectorKey, events: int) -> None:
        """What the selector says of a socket of this carrier."""
        if key.fileobj is self._listener:
            self._accept()
        elif key.data in self._connections:
            self._note(key.data, key.fileobj is key.data.near, events)

    def turn(self, now: float) -> float:
        """Move what can be moved now; when there is more to do, infinite for never."""
        self._deliver(now)
        times = []
        for direction in (self.up, self.down):
            self._collect(direction, now)
            times.append(direction.next_at())
        for connection in self._connections:
            times += [connection.up.due] * (not self.up.stalled) + [connection.down.due] * (not self.down.stalled)
        return min(times, default=math.inf)

    def cut(self) -> None:
        """Reset every connection."""
        for connection in list(self._connections):
            self._drop(connection, reset=True)

    def half_close(self, *, up: bool, now: float) -> None:
        """End one direction of every connection, after what is under way."""
        for connection in self._connections:
            (connection.up if up else connection.down).end(now)
            self._watch(connection)

    def free(self) -> None:
        """Reset every connection and close all that is open."""
        self.cut()
        self.selector.close()
        self._listener.close()

    def _deliver(self, now: float) -> None:
        for connection in list(self._connections):
            try:
                if not self.up.stalled:
                    self.up.carried_bytes += connection.up.write(now)
                if not self.down.stalled:
                    self.down.carried_bytes += connection.down.write(now)
            except OSError:
                self._drop(connection, reset=True)
                continue
            if connection.over:
                self._drop(connection, reset=False)
            else:
                self._watch(connection)

    def _collect(self, direction: Direction, now: float) -> None:
        """Let the pipes take turns in filling the link's buffer."""
        direction.release(now)
        while direction.takes(now):
            connection, pipe = direction.ready.popleft()
            if connection not in self._connections:
                continue
            try:
                held_until = self._read(direction, pipe, now)
            except OSError:
                self._drop(connection, reset=True)
                continue
            pipe.queued = held_until is not None and pipe.wants_more
            if not pipe.queued or held_until is None:
                self._watch(connection)
            elif held_until > now:
                direction.hold((connection, pipe), held_until)
            else:
                direction.ready.append((connection, pipe))

    def _read(self, direction: Direction, pipe: Pipe, now: float) -> float | None:
        """Take a piece; when the pipe may have its next turn, None if there is nothing more for now."""
        data = None if pipe.ended else pipe.read(direction.pacer.quantum_bytes)
        if data is None:
            return None
        data, is_cut = direction.marks.apply(data)
        due = direction.pacer.take(len(data), now)
        held_up_s = direction.pacer.held_up_s(len(data))
        if is_cut and data:
            pipe.put(data, due + held_up_s)
        if is_cut:
            pipe.break_off(due + held_up_s)
        else:
            pipe.put(data, due + held_up_s)
        return direction.pacer.free_at + held_up_s if held_up_s else now

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
            (self.up if is_near else self.down).ready.append((connection, outgoing))
        self._watch(connection)

    def _accept(self) -> None:
        with suppress(OSError):  # whoever knocked has left, or there are no descriptors left for now
            far = socket.socket(self._family, socket.SOCK_STREAM)
            try:
                near, _ = self._listener.accept()
            except OSError:
                far.close()
                return
            connection = Connection(near, far)
            self._connections.add(connection)
            if self._is_refused() or far.connect_ex(self._target) not in _CONNECTING:
                self._drop(connection, reset=True)
                return
            self._watch(connection)

    def _is_refused(self) -> bool:
        return self.is_down or (self.drop_share > 0 and self._draws.random() < self.drop_share)

    def _watch(self, connection: Connection) -> None:
        """Wait for what each socket of a connection is needed for, and nothing else."""
        for end, wanted in ((connection.near, connection.near_events), (connection.far, connection.far_events)):
            known = self.selector.get_map().get(end)
            if known is None and wanted:
                self.selector.register(end, wanted, connection)
            elif known is not None and not wanted:
                self.selector.unregister(end)
            elif known is not None and known.events != wanted:
                self.selector.modify(end, wanted, connection)

    def _drop(self, connection: Connection, *, reset: bool) -> None:
        for end in (connection.near, connection.far):
            if end in self.selector.get_map():
                self.selector.unregister(end)
        self._connections.discard(connection)
        connection.close(reset=reset)
