"""Logs for people or for programs: the formatters of `flagsplit serve`, on the standard library's logging.

A record may carry `fields`, a mapping of plain values; `event_extra` makes the argument for it. Whatever a peer said,
one record is one line.
"""

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from flagsplit.runtime.telemetry.http import finite
from flagsplit.runtime.telemetry.labels import one_line

LogFormat = Literal["text", "json"]


def configure(form: LogFormat, level: int = logging.INFO) -> None:
    """Log to standard error from now on, unless the program has set its logging up already."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level, handlers=[handler])
    logging.getLogger("onnx_ir").setLevel(logging.WARNING)  # It tells of each pass over a graph.


def event_extra(event: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The `extra` of a logging call.

    Args:
        event: what happened, in a word or two with underscores.
        fields: more about it; empty texts and None are left out.
    """
    return {"fields": {"event": event, **{key: value for key, value in fields.items() if value not in ("", None)}}}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `ts` (UTC, ISO 8601), `level`, `event`, `message`, then what the record carries."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        fields = getattr(record, "fields", {})
        data = {"ts": at, "level": record.levelname.lower(), "event": "log", **fields, "message": record.getMessage()}
        if record.exc_info:
            data["traceback"] = self.formatException(record.exc_info)
        return json.dumps(finite(data), ensure_ascii=True, default=str)


class TextFormatter(logging.Formatter):
    """Time, level, message, and what the record carries as `key=value`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end; a traceback follows indented on lines of its own."""
        at = self.formatTime(record)
        fields = {key: value for key, value in getattr(record, "fields", {}).items() if key != "event"}
        known = record.getMessage()
        more = "".join(f" {key}={_shown(value)}" for key, value in fields.items() if str(value) not in known)
        line = one_line(f"{at} {record.levelname} {known}{more}")
        if record.exc_info:
            lines = self.formatException(record.exc_info).splitlines()
            line += "".join(f"\n    {one_line(each)}" for each in lines)
        return line


def _shown(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return json.dumps(text) if " " in text else text
