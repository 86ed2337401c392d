"""One engine for several users: the service that answers on the wire, and the gateway beside it."""

import threading
from collections.abc import Callable
from dataclasses import replace

from flagsplit.runtime.generation.events import Event, Generate
from flagsplit.runtime.generation.service import TokenEngine
from flagsplit.runtime.generation.stats import EngineStats


class EngineHub:
    """One engine for several users, each of whom uses it as if it were alone.

    Args:
        make_engine: makes it, given where its events go.
    """

    def __init__(self, make_engine: Callable[[Callable[[Event], None]], TokenEngine]) -> None:
        self._engine = make_engine(self._emit)
        self._users: list[Callable[[Event], None]] = []
        self._lock = threading.Lock()
        self._running = 0
        self._started = False

    def user(self, emit: Callable[[Event], None]) -> TokenEngine:
        """The engine for one more user, given where the events of its streams go."""
        self._users.append(emit)
        return _User(self, self._engine, f"{len(self._users) - 1}/")

    def begin(self) -> None:
        """One more user begins."""
        with self._lock:
            self._running += 1
            start, self._started = not self._started, True
        if start:
            self._engine.start()

    def end(self) -> None:
        """One user is done; with the last one the engine stops."""
        with self._lock:
            self._running -= 1
            last = self._running == 0
        if last:
            self._engine.stop()

    def _emit(self, event: Event) -> None:
        user, _, stream_id = event.stream_id.partition("/")
        self._users[int(user)](replace(event, stream_id=stream_id))


class _User:
    def __init__(self, hub: EngineHub, engine: TokenEngine, prefix: str) -> None:
        self._hub, self._engine, self._prefix = hub, engine, prefix
        self._runs = False

    def start(self) -> None:
        """Begin to take streams."""
        self._runs = True
        self._hub.begin()

    def submit(self, request: Generate) -> None:
        """A stream is wanted."""
        self._engine.submit(replace(request, stream_id=self._prefix + request.stream_id))

    def cancel(self, stream_id: str) -> None:
        """A stream is not wanted any more."""
        self._engine.cancel(self._prefix + stream_id)

    def expected_wait_s(self, client: str = "") -> float:
        """How long a new stream would wait."""
        return self._engine.expected_wait_s(client)

    def stats(self) -> EngineStats:
        """How the engine does, for all users together."""
        return self._engine.stats()

    def stop(self) -> None:
        """This user is done. A second call does nothing."""
        if self._runs:
            self._runs = False
            self._hub.end()
