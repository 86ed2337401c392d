"""How long a gateway waits for a stream's first token before it tells the client to come again."""

import heapq
import itertools
import threading
import time
from collections.abc import Callable

from flagsplit.apps.decoder_service.gateway_backend import BusyError
from flagsplit.errors import FlagsplitError, UnavailableError
from flagsplit.runtime.generation.token_stream import TokenStream

_COME_AGAIN_S = 5.0


class Patience:
    """Ends streams that have not begun in time, on a thread of its own.

    Args:
        longest_s: from asking to the first token.
        not_ready: why nobody takes streams, "" if somebody does.
    """

    def __init__(self, longest_s: float, not_ready: Callable[[], str]) -> None:
        self._longest_s = longest_s
        self._not_ready = not_ready
        self._waiting: list[tuple[float, int, TokenStream]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="flagsplit-patience", daemon=True)
        self._thread.start()

    def watch(self, stream: TokenStream) -> None:
        """End a stream if it does not begin in time. From any thread."""
        with self._changed:
            heapq.heappush(self._waiting, (time.monotonic() + self._longest_s, next(self._numbers), stream))
            self._changed.notify_all()

    def close(self) -> None:
        """Watch no more. A second call does nothing."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while (stream := self._next()) is not None:
            if not stream.made and not stream.is_over:
                stream.end("", self._reason())
                stream.cancel()

    def _reason(self) -> FlagsplitError:
        if self._not_ready():  # it names hosts and keys, which are not for clients
            return UnavailableError(f"no decoder service was there within {self._longest_s:g} s; the log says why")
        reason = f"no decoder service had room for the stream within {self._longest_s:g} s"
        return BusyError(reason, _COME_AGAIN_S)

    def _next(self) -> TokenStream | None:
        """The next stream whose time has come; None at the end."""
        with self._changed:
            while not self._closed:
                left_s = self._waiting[0][0] - time.monotonic() if self._waiting else None
                if left_s is not None and left_s <= 0:
                    return heapq.heappop(self._waiting)[2]
                self._changed.wait(left_s)
        return None
