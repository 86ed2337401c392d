"""The engines of a worker, one for each bundle that it serves: a bundle comes and goes with all that it loaded."""

import threading
from collections.abc import Callable
from typing import Protocol

from flagsplit.runtime.events import Ran, Run


class BundleEngine(Protocol):
    """Runs the segments of one bundle."""

    def submit(self, run: Run) -> None:
        """Run a segment when its turn comes."""

    def skip(self, token: int) -> None:
        """Do not run what did not begin yet; unknown tokens are fine."""

    def stop(self) -> None:
        """Free everything."""


class Engines:
    """Engines by bundle; any thread may add and remove.

    Args:
        done: gets the result of a run whose bundle is not here any more.
    """

    def __init__(self, done: Callable[[Ran], None]) -> None:
        self._done = done
        self._lock = threading.Lock()
        self._engines: dict[str, BundleEngine] = {}
        self._stopped = False

    def add(self, bundle: str, engine: BundleEngine) -> None:
        """Let a bundle's segments run; an engine that comes too late is stopped."""
        with self._lock:
            late = self._stopped
            if not late:
                self._engines[bundle] = engine
        if late:
            engine.stop()

    def remove(self, bundle: str) -> None:
        """Free what a bundle loaded; waits for the run under way."""
        with self._lock:
            engine = self._engines.pop(bundle, None)
        if engine is not None:
            engine.stop()

    def submit(self, run: Run) -> None:
        """Run a segment of a bundle when its turn comes."""
        with self._lock:
            engine = self._engines.get(run.bundle)
        if engine is None:
            self._done(Ran(run.token, None, f"bundle {run.bundle[:12]} is not loaded any more"))
        else:
            engine.submit(run)

    def skip(self, token: int) -> None:
        """Do not run what did not begin yet."""
        with self._lock:
            engines = list(self._engines.values())
        for engine in engines:
            engine.skip(token)

    def stop(self) -> None:
        """Free everything."""
        with self._lock:
            self._stopped = True
            engines = list(self._engines.values())
            self._engines.clear()
        for engine in engines:
            engine.stop()
