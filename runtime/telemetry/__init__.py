"""Watching a session or a worker: metrics, health, logs and traces. Nothing here changes what is watched.

    observer.py  what the shell calls              telemetry.py  all of it for one machine
    stats.py     figures that machines give        http.py       /metrics /healthz /readyz /stats
    metrics.py   counters, with worker_metrics.py and session_metrics.py; gauges.py reads stats
    snapshot.py  the /stats page and its schema    logs.py       text or JSON lines, log_events.py fills them
    tracing.py   W3C contexts, spans, their ids    otlp.py, chrome.py, trace_file.py  write them

`docs/operations.md` is for operators.
"""

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
