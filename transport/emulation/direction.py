"""One direction of an emulated link: whose turn it is, who waits for a lost packet, and what is done to which byte.

No sockets are touched here; `carrier.py` reads and writes them, `pacer.py` says when.
"""

import bisect
import heapq
import itertools
import math
import random
from collections import deque

from flagsplit.transport.emulation.pacer import LinkShape, Pacer
from flagsplit.transport.emulation.pipes import Connection, Pipe

Turn = tuple[Connection, Pipe]


class Marks:
    """Bytes to which something is to happen, by how many the link took before them."""

    def __init__(self) -> None:
        self._taken_bytes = 0
        self._flips: list[int] = []
        self._cuts: list[int] = []

    def flip(self, offset_bytes: int) -> None:
        """Invert the byte that comes after so many more."""
        bisect.insort(self._flips, self._taken_bytes + offset_bytes)

    def cut(self, after_bytes: int) -> None:
        """Break the connection that would carry the byte after so many more."""
        bisect.insort(self._cuts, self._taken_bytes + after_bytes)

    def apply(self, data: bytes) -> tuple[bytes, bool]:
        """What becomes of bytes that the link takes now, and whether their connection breaks after them."""
        first, after = self._taken_bytes, self._taken_bytes + len(data)
        cut = bool(self._cuts) and self._cuts[0] < after
        if cut:
            after = self._cuts.pop(0)
            data = data[: after - first]
        self._taken_bytes = after
        if not self._flips or self._flips[0] >= after:
            return data, cut
        changed = bytearray(data)
        while self._flips and self._flips[0] < after:
            changed[self._flips.pop(0) - first] ^= 0xFF
        return bytes(changed), cut


class Direction:
    """One direction of the link, and the pipes that have something for it, in the order of their turns.

    Attributes:
        pacer: its times.
        ready: the pipes that wait for their turn.
        marks: bytes to which something is to happen.
        carried_bytes: what came out so far.
        stalled: whether nothing goes in or comes out for now.
    """

    def __init__(self, shape: LinkShape, seed: str) -> None:
        self.pacer = Pacer(shape, random.Random(seed))  # noqa: S311 - jitter is no secret
        self.ready: deque[Turn] = deque()
        self.marks = Marks()
        self.carried_bytes = 0
        self.stalled = False
        self._waiting: list[tuple[float, int, Turn]] = []
        self._numbers = itertools.count()

    def hold(self, turn: Turn, until: float) -> None:
        """Give a pipe its next turn only then."""
        heapq.heappush(self._waiting, (until, next(self._numbers), turn))

    def release(self, now: float) -> None:
        """Let the pipes take turns again that have waited long enough."""
        while self._waiting and self._waiting[0][0] <= now:
            self.ready.append(heapq.heappop(self._waiting)[2])

    def takes(self, now: float) -> bool:
        """Whether it takes a piece of whoever is first in turn."""
        return bool(self.ready) and not self.stalled and self.pacer.takes_from() <= now

    def next_at(self) -> float:
        """When there is something to take next, of those known so far; infinite for never."""
        if self.stalled:
            return math.inf
        held = self._waiting[0][0] if self._waiting else math.inf
        return min(held, self.pacer.takes_from()) if self.ready else held
