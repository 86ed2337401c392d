"""How commands that run until they are interrupted notice it."""

import os
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SIGNAL = {bytes([number]) for number in (signal.SIGINT, signal.SIGTERM)}


@contextmanager
def ending() -> Iterator[tuple[int, Callable[[], None]]]:
    """What becomes readable when SIGINT or SIGTERM comes, and a function that makes it so too.

    An event would not do: a signal just before the wait for it would be noticed only when something else ends the wait.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def end() -> None:
        os.write(writing, b"\0")

    try:
        yield reading, end
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reading)
        os.close(writing)


def wait_for_end(ended: int, *, watch_stdin: bool) -> bool:
    """Wait for the end; whether it is a signal, and the worker may still finish what it has."""
    watched = [ended, 0] if watch_stdin else [ended]
    while True:
        ready, _, _ = select.select(watched, [], [])
        if ended in ready:
            return os.read(ended, 1) in _SIGNAL
        if not os.read(0, 4096):
            return False
