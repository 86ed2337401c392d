"""Watching a session or a worker: metrics, health, logs and traces. Nothing here changes what is watched.

    observer.py  what the shell calls              telemetry.py  all of it for one machine
    stats.py     figures that machines give        http.py       /metrics /healthz /readyz /stats
    metrics.py   counters, with worker_metrics.py and session_metrics.py; gauges.py reads stats
    snapshot.py  the /stats page and its schema    logs.py       text or JSON lines, log_events.py fills them
    tracing.py   W3C contexts, spans, their ids    otlp.py, chrome.py, trace_file.py  write them

`docs/operations.md` is for operators. Names are loaded when they are first used: what nobody watches need not wait for
a metrics library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flagsplit.runtime.telemetry.logs import JsonFormatter, LogFormat, TextFormatter, configure
    from flagsplit.runtime.telemetry.observer import Observer, Observers
    from flagsplit.runtime.telemetry.settings import About, TelemetrySettings
    from flagsplit.runtime.telemetry.stats import (
        DecisionLike,
        EngineStats,
        LinkStats,
        PeerStats,
        PlanStats,
        SessionStats,
        WorkerStats,
    )
    from flagsplit.runtime.telemetry.telemetry import Telemetry
    from flagsplit.runtime.telemetry.tracing import TraceContext, outgoing_traceparent, parse_traceparent

_HOMES = {
    "About": "flagsplit.runtime.telemetry.settings",
    "DecisionLike": "flagsplit.runtime.telemetry.stats",
    "EngineStats": "flagsplit.runtime.telemetry.stats",
    "JsonFormatter": "flagsplit.runtime.telemetry.logs",
    "LinkStats": "flagsplit.runtime.telemetry.stats",
    "LogFormat": "flagsplit.runtime.telemetry.logs",
    "Observer": "flagsplit.runtime.telemetry.observer",
    "Observers": "flagsplit.runtime.telemetry.observer",
    "PeerStats": "flagsplit.runtime.telemetry.stats",
    "PlanStats": "flagsplit.runtime.telemetry.stats",
    "SessionStats": "flagsplit.runtime.telemetry.stats",
    "Telemetry": "flagsplit.runtime.telemetry.telemetry",
    "TelemetrySettings": "flagsplit.runtime.telemetry.settings",
    "TextFormatter": "flagsplit.runtime.telemetry.logs",
    "TraceContext": "flagsplit.runtime.telemetry.tracing",
    "WorkerStats": "flagsplit.runtime.telemetry.stats",
    "configure": "flagsplit.runtime.telemetry.logs",
    "outgoing_traceparent": "flagsplit.runtime.telemetry.tracing",
    "parse_traceparent": "flagsplit.runtime.telemetry.tracing",
}

__all__ = [
    "About",
    "DecisionLike",
    "EngineStats",
    "JsonFormatter",
    "LinkStats",
    "LogFormat",
    "Observer",
    "Observers",
    "PeerStats",
    "PlanStats",
    "SessionStats",
    "Telemetry",
    "TelemetrySettings",
    "TextFormatter",
    "TraceContext",
    "WorkerStats",
    "configure",
    "outgoing_traceparent",
    "parse_traceparent",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
