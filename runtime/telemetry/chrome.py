"""Spans in Chrome's trace format, for https://ui.perfetto.dev: a process per tier, a row per request.

Links have a process of their own. Times are microseconds since the earliest span.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from flagsplit.runtime.telemetry.tracing import Span, Value

_LINKS = "links"


def chrome_trace(spans: Iterable[tuple[Mapping[str, Value], Span]]) -> bytes:
    """The bytes of a trace file.

    Args:
        spans: each with the resource it is of, as `otlp.read` gives them.
    """
    every = sorted(spans, key=lambda each: (each[1].start_ns, -each[1].end_ns))
    first_ns = every[0][1].start_ns if every else 0
    processes: dict[str, int] = {}
    rows: dict[tuple[int, str], int] = {}
    events: list[dict[str, Any]] = []
    for resource, span in every:
        name = _LINKS if "flagsplit.link" in span.attributes else str(span.attributes.get("flagsplit.tier", ""))
        process = processes.setdefault(name, len(processes) + 1)
        # The session's estimate and the worker's own measurement of a hop overlap without nesting: a row each.
        which = f"{span.trace_id[:8]} by {resource.get('flagsplit.tier', 'unknown')}"
        row = rows.setdefault((process, which), len(rows) + 1)
        error = {"error": span.error} if span.error else {}
        events.append(
            {
                "name": span.name,
                "ph": "X",
                "ts": (span.start_ns - first_ns) / 1000,
                "dur": (span.end_ns - span.start_ns) / 1000,
                "pid": process,
                "tid": row,
                "args": {**span.attributes, **error, "trace": span.trace_id, "span": span.span_id},
            }
        )
    for name, process in processes.items():
        events.append({"name": "process_name", "ph": "M", "pid": process, "args": {"name": name}})
    for (process, which), row in rows.items():
        events.append({"name": "thread_name", "ph": "M", "pid": process, "tid": row, "args": {"name": which}})
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}, indent=1).encode() + b"\n"
