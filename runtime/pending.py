"""The requests of a session that have no answer yet: their futures, and who waits for room to ask more."""

import threading
import time
from concurrent.futures import Future
from typing import Generic, TypeVar

from flagsplit.errors import FlagsplitError, PeerError, UnavailableError

T = TypeVar("T")


class Pending(Generic[T]):
    """Futures by request number, at most so many at once. Any thread may call.

    Args:
        most: how many.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._futures: dict[int, Future[T]] = {}
        self._changed = threading.Condition()
        self._over: FlagsplitError | None = None

    def __len__(self) -> int:
        return len(self._futures)

    @property
    def is_full(self) -> bool:
        """Whether `add` would wait."""
        return len(self._futures) >= self._most

    def add(self, rid: int, future: Future[T], patience_s: float) -> None:
        """Keep a future; waits for room.

        Raises:
            UnavailableError: there was no room in time.
            FlagsplitError: what `end` was called with.
        """
        give_up = time.monotonic() + max(0.0, patience_s)
        with self._changed:
            while self._over is None and self.is_full:
                left_s = give_up - time.monotonic()
                if left_s <= 0:
                    raise UnavailableError(
                        f"{self._most} requests wait for answers already, and none came within the deadline; "
                        "ask less often, or raise max_pending"
                    )
                self._changed.wait(min(left_s, threading.TIMEOUT_MAX))
            if self._over is not None:
                raise self._over
            self._futures[rid] = future

    def pop(self, rid: int) -> Future[T] | None:
        """Let go of a future, if it is still here."""
        with self._changed:
            self._changed.notify()
            return self._futures.pop(rid, None)

    def end(self, error: FlagsplitError | None = None) -> None:
        """No more requests; those that wait fail with the error. The first call decides."""
        with self._changed:
            self._over = self._over or error or PeerError("the session is closed; open another")
            futures = list(self._futures.values())
            self._futures.clear()
            self._changed.notify_all()
        for future in futures:
            if future.set_running_or_notify_cancel():
                future.set_exception(error or PeerError("the session was closed before the answer came"))
