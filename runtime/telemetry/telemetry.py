"""Everything that watches one worker or one session, put together: observers, registry, HTTP pages, trace file.

The shell shows it events (`observer`); figures of the machine and the engine are taken at most every fifth of a second,
on the shell's thread, so the machines need no locks. Pages are made on the threads of the HTTP server from what was
taken last.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from prometheus_client.exposition import generate_latest

from flagsplit._version import VERSION
from flagsplit.runtime.engine import Engine
from flagsplit.runtime.events import Event, Instruction
from flagsplit.runtime.relay import Relay
from flagsplit.runtime.telemetry.gauges import Gauges, Reading
from flagsplit.runtime.telemetry.http import HttpServer, Page, json_page
from flagsplit.runtime.telemetry.log_events import LogEvents
from flagsplit.runtime.telemetry.metrics import MachineMetrics
from flagsplit.runtime.telemetry.observer import Observer, Observers
from flagsplit.runtime.telemetry.reading import machine_stats
from flagsplit.runtime.telemetry.recent import Recent
from flagsplit.runtime.telemetry.seen import Seen
from flagsplit.runtime.telemetry.session_metrics import SessionMetrics
from flagsplit.runtime.telemetry.session_spans import SessionSpans
from flagsplit.runtime.telemetry.settings import About, TelemetrySettings
from flagsplit.runtime.telemetry.snapshot import Source, snapshot
from flagsplit.runtime.telemetry.stats import EngineStats, SessionStats, Stats, WorkerStats
from flagsplit.runtime.telemetry.trace_file import TraceFile
from flagsplit.runtime.telemetry.worker_metrics import WorkerMetrics
from flagsplit.runtime.telemetry.worker_spans import WorkerSpans

REFRESH_S: Final = 0.2
STUCK_S: Final = 10.0
_TEXT = "text/plain; version=0.0.4; charset=utf-8"


class _Turns:
    """Calls a function at every turn of the shell."""

    def __init__(self, call: Callable[[float], None]) -> None:
        self._call = call

    def event(self, event: Event, now: float) -> None:
        """Nothing: others watch events."""

    def instruction(self, instruction: Instruction, now: float) -> None:
        """Nothing: others watch instructions."""

    def turn(self, now: float) -> None:
        """The shell went round."""
        self._call(now)


class Telemetry:
    """Watches one machine. Serves HTTP from the constructor on, so that a worker can be seen loading.

    Args:
        about: who is watched.
        settings: what is wanted.

    Attributes:
        http: URL of the HTTP server, "" if there is none.
        observer: what the shell shows events to.
        state: why requests are not welcome, "" if they are as far as the owner knows.
        metrics: the counters; its registry has all metrics.
        extras: by key, what else `/stats` says.
        trouble: asked for another reason why requests are not welcome, "" if there is none.

    Raises:
        ConfigError: the HTTP address is malformed or taken, or the trace file cannot be written.
    """

    def __init__(self, about: About, settings: TelemetrySettings) -> None:
        self._about = about
        self._started = self._turned = time.monotonic()
        self._wall_offset_s = time.time() - time.monotonic()
        self.state = "loading the first segments"
        self.extras: dict[str, Callable[[], Mapping[str, Any]]] = {}
        self.trouble: Callable[[], str] = str
        self._stats: Stats = WorkerStats() if about.role == "worker" else SessionStats()
        self._engine = EngineStats()
        self._taken = 0.0
        self._watched: tuple[Relay, Engine, float] | None = None
        make = WorkerMetrics if about.role == "worker" else SessionMetrics
        self.metrics: MachineMetrics = make(about.tier, about.tiers, about.segments, Recent())
        self._seen = Seen(about.tiers, self.metrics.peers)
        self._trace = TraceFile(settings.trace_file, about) if settings.trace_file is not None else None
        self.observer: Observer = Observers(self._observers(settings))
        info = {"version": VERSION, "role": about.role, "tier": about.tier, "bundle": about.bundle}
        self.metrics.registry.register(Gauges(self.reading, info))
        try:
            self._server = HttpServer(settings.http, self._pages()) if settings.http else None
        except BaseException:
            self._close_trace()
            raise
        self.http = self._server.url if self._server is not None else ""

    def _observers(self, settings: TelemetrySettings) -> list[Observer]:
        found: list[Observer] = [self.metrics, self._seen]
        if settings.log:
            found.append(LogEvents(self._about, self.metrics.peers))
        if self._trace is not None:
            make = WorkerSpans if self._about.role == "worker" else SessionSpans
            found.append(make(self._about, self._trace.write))
        return [*found, _Turns(self._pulse), _Turns(self._refresh)]

    def watch(self, machine: Relay, engine: Engine, budget_bytes: float) -> None:
        """The first segments are loaded: requests are welcome.

        Args:
            machine: the machine, looked at on the shell's thread only.
            engine: its engine.
            budget_bytes: what the engine's segments may hold.
        """
        self._watched = (machine, engine, budget_bytes)
        self.state = ""

    def close(self) -> None:
        """End the HTTP server and the trace file. A second call does nothing."""
        self.state = "closed"
        if self._server is not None:
            self._server.close()
        self._close_trace()

    def _close_trace(self) -> None:
        if self._trace is not None:
            self._trace.close()

    def _pulse(self, now: float) -> None:
        self._turned = now

    def _refresh(self, now: float) -> None:
        if self._watched is not None and now - self._taken >= REFRESH_S:
            self._taken = now
            machine, engine, budget_bytes = self._watched
            stats = machine_stats(machine, self._about.role)
            self._stats = replace(stats, peers=stats.peers or self._seen.peers())
            self._engine = EngineStats(engine.resident(), budget_bytes)

    def reading(self) -> Reading:
        """What gauges show now."""
        stats = self._stats
        if isinstance(stats, WorkerStats):
            stats = replace(stats, draining=self._is_draining())
        uptime_s = time.monotonic() - self._started
        return Reading(uptime_s, not self.not_ready(), stats, self._engine, self._plan(stats))

    def not_ready(self) -> str:
        """Why requests are not welcome, "" if they are."""
        if not self.is_alive():
            return "the shell's thread does not turn"
        return self.state or ("draining" if self._is_draining() else self.trouble())

    def is_alive(self) -> bool:
        """Whether the shell went round lately, or is still to start."""
        return self._watched is None or time.monotonic() - self._turned < STUCK_S

    def _is_draining(self) -> bool:
        return self._seen.draining or (isinstance(self._stats, WorkerStats) and self._stats.draining)

    def _plan(self, stats: Stats) -> str:
        used = self.metrics.plan if isinstance(self.metrics, SessionMetrics) else ""
        if not used and isinstance(stats, SessionStats) and stats.plans:
            return stats.plans[0].plan
        return used

    def _pages(self) -> dict[str, Callable[[], Page]]:
        return {
            "/metrics": lambda: Page(200, _TEXT, generate_latest(self.metrics.registry)),
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/stats": self._stats_page,
        }

    def _stats_page(self) -> Page:
        return json_page(200, snapshot(self._source()) | {key: read() for key, read in self.extras.items()})

    def _source(self) -> Source:
        now = time.monotonic()
        return Source(self._about, self.metrics, self.reading(), self.not_ready(), now, self._wall_offset_s)

    def _healthz(self) -> Page:
        alive = self.is_alive()
        ago_s = round(time.monotonic() - self._turned, 3)
        return json_page(200 if alive else 503, {"alive": alive, "turned_s_ago": ago_s})

    def _readyz(self) -> Page:
        reason = self.not_ready()
        return json_page(503 if reason else 200, {"ready": not reason, "reason": reason})
