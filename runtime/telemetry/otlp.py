"""Spans in OTLP's JSON encoding, one `TracesData` object a line, as OpenTelemetry's collectors read them from a file.

Ids are hex digits, kinds and status codes are numbers, 64-bit integers are strings
(https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding). Reading back is for `flagsplit trace` and tests: it
knows what is written here, not all of OTLP.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from flagsplit._version import VERSION
from flagsplit.errors import InputError
from flagsplit.runtime.telemetry.settings import About
from flagsplit.runtime.telemetry.tracing import Span, Value

_log = logging.getLogger(__name__)
_ERROR: Final = 2
_MAX_LINE_BYTES = 16 << 20


def resource_of(about: About) -> dict[str, Value]:
    """What a tier says of itself in every line."""
    return {
        "service.name": f"flagsplit-{about.role}",
        "service.version": VERSION,
        "service.instance.id": about.instance,
        "flagsplit.tier": about.tier,
        "flagsplit.bundle": about.bundle,
    }


def encode(resource: Mapping[str, Value], spans: Sequence[Span]) -> bytes:
    """One line, with its end."""
    scope = {"scope": {"name": "flagsplit", "version": VERSION}, "spans": [_span(span) for span in spans]}
    data = {"resourceSpans": [{"resource": {"attributes": _attributes(resource)}, "scopeSpans": [scope]}]}
    return json.dumps(data, separators=(",", ":")).encode() + b"\n"


def read(path: Path) -> Iterator[tuple[dict[str, Value], Span]]:
    """Spans of a file, each with its resource; lines that a full disk or a sudden end has torn are left out.

    Raises:
        InputError: the file cannot be read, or no line is what `encode` writes.
    """
    torn: list[InputError] = []
    good = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE_BYTES), b""), start=1):
                if not line.strip():
                    continue
                try:
                    spans = _read_line(line, f"{path}, line {number}")
                except InputError as error:
                    torn.append(error)
                else:
                    good += 1
                    yield from spans
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    if torn and not good:
        raise torn[0]
    if torn:
        _log.warning("%s: %d of %d lines are left out: %s", path, len(torn), good + len(torn), torn[0])


def _read_line(line: bytes, where: str) -> list[tuple[dict[str, Value], Span]]:
    try:
        found = []
        for each in json.loads(line)["resourceSpans"]:
            resource = _values(each["resource"]["attributes"])
            found += [(resource, _read_span(span)) for scope in each["scopeSpans"] for span in scope["spans"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"expected spans in OTLP JSON, {where} has none ({type(error).__name__})") from None
    return found


def _span(span: Span) -> dict[str, Any]:
    data: dict[str, Any] = {
        "traceId": span.trace_id,
        "spanId": span.span_id,
        "parentSpanId": span.parent_id,
        "name": span.name,
        "kind": span.kind,
        "startTimeUnixNano": str(span.start_ns),
        "endTimeUnixNano": str(span.end_ns),
        "attributes": _attributes(span.attributes),
        "status": {"code": _ERROR, "message": span.error} if span.error else {},
    }
    if not span.parent_id:
        del data["parentSpanId"]
    return data


def _read_span(data: Mapping[str, Any]) -> Span:
    kind = data["kind"]
    return Span(
        str(data["name"]),
        str(data["traceId"]),
        str(data["spanId"]),
        str(data.get("parentSpanId", "")),
        int(data["startTimeUnixNano"]),
        int(data["endTimeUnixNano"]),
        kind if kind in (2, 3) else 1,
        _values(data["attributes"]),
        str(data["status"].get("message", "")),
    )


def _attributes(values: Mapping[str, Value]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _any_value(value)} for key, value in values.items()]


def _any_value(value: Value) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    return {"stringValue": value}


def _values(attributes: Sequence[Mapping[str, Any]]) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for each in attributes:
        ((kind, value),) = each["value"].items()
        found[str(each["key"])] = int(value) if kind == "intValue" else value
    return found
