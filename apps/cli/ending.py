"""How commands that run until they are interrupted notice it, and what becomes of one that breaks."""

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from flagsplit.errors import PeerError

_SIGNAL = {bytes([number]) for number in (signal.SIGINT, signal.SIGTERM)}


class Ending:
    """The end of a command, to be waited for.

    An event would not do: a signal just before the wait for it would be noticed only when something else ends the wait.

    Args:
        reading: what becomes readable at SIGINT and SIGTERM.
        writing: its other end.
        watch_stdin: whether the command also ends when standard input closes.

    Attributes:
        error: what broke, if something did.
    """

    def __init__(self, reading: int, writing: int, *, watch_stdin: bool) -> None:
        self._reading, self._writing = reading, writing
        self._watched = [reading, 0] if watch_stdin else [reading]
        self.error: Exception | None = None

    def end(self) -> None:
        """End the wait; from any thread."""
        os.write(self._writing, b"\0")

    def fail(self, error: Exception) -> None:
        """End the wait, because something broke."""
        self.error = self.error or error
        self.end()

    def wait(self) -> bool:
        """Wait for the end; whether it is a signal, and what serves may still finish what it has."""
        while True:
            ready, _, _ = select.select(self._watched, [], [])
            if self._reading in ready:
                return os.read(self._reading, 1) in _SIGNAL
            if not os.read(0, 4096):
                return False

    def came(self, wait_s: float) -> bool:
        """Wait so long at most; whether there is an end to wait for no longer."""
        return bool(select.select([self._reading], [], [], wait_s)[0])


@contextmanager
def ending(what: str, *, watch_stdin: bool = False) -> Iterator[Ending]:
    """Hear SIGINT and SIGTERM meanwhile.

    Args:
        what: runs until then, for messages.
        watch_stdin: see `Ending`.

    Raises:
        PeerError: it broke.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    found = Ending(reading, writing, watch_stdin=watch_stdin)
    try:
        yield found
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reading)
        os.close(writing)
    if found.error is not None:
        raise PeerError(f"{what} broke: {found.error}")
