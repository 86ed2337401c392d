"""Background work has a lower priority than the threads that serve, and so has what it starts."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from flagsplit.runtime.background import NICER, in_background


def _own() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def _of_a_thread() -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(_own()))
    thread.start()
    thread.join()
    return found[0]


def _of_a_process() -> int:
    program = "import os; print(os.getpriority(os.PRIO_PROCESS, 0))"
    return int(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priorities of their own there")
@pytest.mark.parametrize("priority", [_own, _of_a_thread, _of_a_process])
def test_background_work_and_what_it_starts_give_way(priority: Callable[[], int]) -> None:
    before = _own()
    assert in_background(priority) == max(before, NICER)
    assert _own() == before


def test_results_and_errors_come_back() -> None:
    assert in_background(int, "12", base=3) == 5
    with pytest.raises(ValueError, match="invalid literal"):
        in_background(int, "x")
