"""SIGTERM for commands that do not wait for signals themselves: what they began to write goes, as with Ctrl-C."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class TerminatedError(BaseException):
    """Raised where the main thread is when SIGTERM comes; nothing but the end of the command may catch it."""


@contextmanager
def tidy_when_terminated() -> Iterator[None]:
    """Let `finally` clauses run on SIGTERM, and end by the signal afterwards, as whoever sent it expects.

    Python would end at once and leave what lies beside the output half written, which are gigabytes.
    """
    default = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not default or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    except TerminatedError:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _raise(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # whoever sends it twice does not want to wait
    raise TerminatedError
