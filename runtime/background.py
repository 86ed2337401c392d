"""Work that nobody waits for, on threads that give way to those that serve."""

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final, ParamSpec, TypeVar

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

NICER: Final = 10
"""About a tenth of the time of a core that others want too; all of one that nobody wants."""


def give_way() -> None:
    """Let other threads go first from now on; threads and processes that the calling one starts do so too.

    On Linux, where threads have priorities of their own; elsewhere nothing happens. There is no way back without
    privileges. So the calling thread must be for background work alone, and must not load what is to serve later:
    threads that an engine makes for itself while it loads would keep the low priority.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            thread = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, thread, max(NICER, os.getpriority(os.PRIO_PROCESS, thread)))


def in_background(
    function: Callable[_Arguments, _Result], *args: _Arguments.args, **kwargs: _Arguments.kwargs
) -> _Result:
    """Call a function on a thread that gives way, and wait for it.

    Returns:
        What it returns.

    Raises:
        Exception: what it raises.
    """
    with ThreadPoolExecutor(1, "flagsplit-background", give_way) as thread:
        return thread.submit(function, *args, **kwargs).result()
