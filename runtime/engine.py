"""The thread on which one tier computes: it loads segments and runs them one after the other.

Segments of the best plan are loaded before the first request, the others while there is nothing to do, as long as the
memory budget lasts; beyond it the one that was not used for longest makes room.
"""

import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from flagsplit.errors import ConfigError, FlagsplitError
from flagsplit.runtime.events import Ran, Run
from flagsplit.targets.interface import Executable


class SegmentLoader(Protocol):
    """Loads a segment by id; raises a FlagsplitError if it cannot."""

    def __call__(self, segment: str) -> Executable: ...


def check_slowdown(slowdown: float) -> None:
    """Raises ConfigError unless it is a factor by which a tier can be slowed down."""
    if not 1 <= slowdown < math.inf:
        raise ConfigError(f"slowdown: expected a factor of 1 or more, came {slowdown}; a tier cannot be made faster")


class Engine:
    """A compute thread with its loaded segments.

    Args:
        load: loads a segment.
        order: ids of all segments, the most likely first.
        size_bytes: for each segment, an estimate of what it holds when loaded.
        budget_bytes: how much the loaded segments may hold together; one is always allowed.
        done: called with the result of each run, on the compute thread or the one that skips.
        slowdown: emulates a slower device: a run that took t seconds keeps the engine busy for `slowdown * t` in all.
    """

    def __init__(
        self,
        load: SegmentLoader,
        order: Sequence[str],
        size_bytes: Mapping[str, float],
        budget_bytes: float,
        done: Callable[[Ran], None],
        slowdown: float = 1.0,
    ) -> None:
        self._load = load
        self._size_bytes = size_bytes
        self._budget_bytes = budget_bytes
        self._done = done
        self._slowdown = slowdown
        self._loaded: OrderedDict[str, Executable] = OrderedDict()
        self._spare = deque(order)
        self._jobs: deque[tuple[Run, float]] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="flagsplit-engine", daemon=True)

    def start(self, preload: Sequence[str]) -> None:
        """Load what the first requests will need, then take jobs.

        Raises:
            FlagsplitError: a segment cannot be loaded.
        """
        for segment in preload:
            self._get(segment)
        self._thread.start()

    def submit(self, run: Run) -> None:
        """Run a segment when its turn comes; `done` gets the result."""
        with self._changed:
            self._jobs.append((run, time.monotonic()))
            self._changed.notify()

    def resident(self) -> dict[str, float]:
        """By segment that is loaded, an estimate of the bytes that it holds; from any thread."""
        return {segment: self._size_bytes.get(segment, 0.0) for segment in tuple(self._loaded)}

    def skip(self, token: int) -> None:
        """Do not run what did not begin yet; `done` is told all the same."""
        with self._changed:
            left = [job for job in self._jobs if job[0].token == token]
            self._jobs = deque(job for job in self._jobs if job[0].token != token)
        for run, _ in left:
            self._done(Ran(run.token, None, "skipped"))

    def stop(self) -> None:
        """Finish the run under way, drop the others, close the segments."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()
        while self._loaded:
            self._loaded.popitem()[1].close()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._jobs and not self._stopping and not self._wants_spare():
                    self._changed.wait()
                if self._stopping:
                    return
                job = self._jobs.popleft() if self._jobs else None
            if job is None:
                self._load_spare()
            else:
                self._done(self._run(*job))

    def _run(self, run: Run, asked: float) -> Ran:
        try:
            executable = self._get(run.segment)
            started = time.monotonic()
            outputs = executable.run(run.inputs)
        except FlagsplitError as error:
            return Ran(run.token, None, str(error))
        except MemoryError:
            return Ran(run.token, None, f"out of memory while running segment {run.segment}")
        except Exception as error:  # noqa: BLE001 - an engine that breaks its word must not leave its callers waiting
            return Ran(run.token, None, f"segment {run.segment} broke: {type(error).__name__}: {error}")
        self._dawdle((self._slowdown - 1) * (time.monotonic() - started))
        ended = time.monotonic()
        return Ran(run.token, outputs, "", int((started - asked) * 1e6), int((ended - started) * 1e6))

    def _dawdle(self, seconds: float) -> None:
        """Be busy for longer, unless the engine is to stop."""
        with self._changed:
            if seconds > 0:
                self._changed.wait_for(lambda: self._stopping, seconds)

    def _get(self, segment: str) -> Executable:
        executable = self._loaded.get(segment)
        if executable is None:
            self._make_room(self._size_bytes.get(segment, 0))
            executable = self._loaded[segment] = self._load(segment)
        self._loaded.move_to_end(segment)
        return executable

    def _held_bytes(self) -> float:
        return sum(self._size_bytes.get(segment, 0) for segment in self._loaded)

    def _make_room(self, needed_bytes: float) -> None:
        while self._loaded and self._held_bytes() + needed_bytes > self._budget_bytes:
            self._loaded.popitem(last=False)[1].close()

    def _wants_spare(self) -> bool:
        """Whether there is a segment left that fits beside those that are loaded."""
        while self._spare:
            segment = self._spare[0]
            fits = self._held_bytes() + self._size_bytes.get(segment, 0) <= self._budget_bytes
            if fits and segment not in self._loaded:
                return True
            self._spare.popleft()
        return False

    def _load_spare(self) -> None:
        segment = self._spare.popleft()
        try:
            self._get(segment)
        except Exception:  # noqa: BLE001 - nobody asked for it yet; who does gets the error
            return
        self._loaded.move_to_end(segment, last=False)
