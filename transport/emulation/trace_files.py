"""Traces of bandwidth in files, two forms: CSV with a header, and that of the mahimahi tools.

CSV has a column `seconds` and either `mbit` or `up_mbit` and `down_mbit`, and may have `rtt_ms`; a row holds until the
next, the last as long as the one before it. A mahimahi trace has a line for each packet of 1,500 bytes that could be
sent: when, in whole milliseconds. What a trace is, is in `trace.py`.
"""

import itertools
import re
from collections import Counter
from pathlib import Path
from typing import Final

from flagsplit.errors import ConfigError
from flagsplit.transport.emulation.trace import MOST_POINTS, Trace, TracePoint

_MOST_BYTES: Final = 32 << 20
_PACKET_BYTES: Final = 1500
_BIN_MS: Final = 100
_MOST_MBIT: Final = 1e6
_COLUMNS: Final = (("seconds", "mbit"), ("seconds", "up_mbit", "down_mbit"))
_NUMBER: Final = re.compile(r"[0-9]{1,15}(\.[0-9]{0,15})?", re.ASCII)
_FORMS: Final = (
    "expected CSV with the header seconds,mbit or seconds,up_mbit,down_mbit (and rtt_ms), or a mahimahi trace: "
    "whole milliseconds, one on a line"
)


def load_trace(path: Path) -> Trace:
    """Read a trace from a file.

    Raises:
        ConfigError: it cannot be read, is over 32 MiB, or is no trace; one line that names file and line.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the trace {path}: {error.strerror}") from None
    return parse_trace(data, str(path))


def parse_trace(data: bytes, origin: str = "trace") -> Trace:
    """Read a trace from the bytes of a file.

    Args:
        data: either form.
        origin: name for error messages, such as the file's path.

    Raises:
        ConfigError: as `load_trace`.
    """
    if len(data) > _MOST_BYTES:
        raise ConfigError(f"{origin}: expected a trace of at most {_MOST_BYTES} bytes, came more; shorten it")
    if (count := data.count(b"\n")) > 4 * MOST_POINTS:
        raise ConfigError(f"{origin}: expected at most {4 * MOST_POINTS} lines, came {count}; shorten it")
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError:
        raise ConfigError(f"{origin}: {_FORMS}; came bytes that are no ASCII text") from None
    lines = [line.strip() for line in text.rstrip().split("\n")]
    try:
        return _mahimahi(lines) if lines[0].isdigit() else _csv(lines)
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None


def _csv(lines: list[str]) -> Trace:
    header = [name.strip().lower() for name in lines[0].split(",")]
    rest = [name for name in header if name != "rtt_ms"]
    if len(set(header)) != len(header) or sorted(rest) not in [sorted(columns) for columns in _COLUMNS]:
        raise ConfigError(f"{_FORMS}; came {lines[0][:60]!r}")
    if not 1 <= len(lines) - 1 <= MOST_POINTS:
        raise ConfigError(f"expected 1 to {MOST_POINTS} rows below the header, came {len(lines) - 1}")
    rows = [_row(header, line, number) for number, line in enumerate(lines[1:], 2)]
    for number, (one, other) in enumerate(itertools.pairwise(rows), 3):
        if not one.at_s < other.at_s:
            raise ConfigError(f"line {number}: expected seconds above {one.at_s:g}, came {other.at_s:g}")
    first_s = rows[0].at_s
    points = tuple(TracePoint(row.at_s - first_s, row.up_bytes_per_s, row.down_bytes_per_s, row.rtt_s) for row in rows)
    last_s = points[-1].at_s - points[-2].at_s if len(points) > 1 else 1.0
    return Trace(points, points[-1].at_s + last_s)


def _row(header: list[str], line: str, number: int) -> TracePoint:
    cells = [cell.strip() for cell in line.split(",", len(header))]
    if len(cells) != len(header):
        raise ConfigError(f"line {number}: expected {len(header)} figures, came {line[:60]!r}")
    found = {name: _figure(name, cell, number) for name, cell in zip(header, cells, strict=True)}
    up, down = (found.get(name, found.get("mbit", 0.0)) * 1e6 / 8 for name in ("up_mbit", "down_mbit"))
    return TracePoint(found["seconds"], up, down, found["rtt_ms"] / 1e3 if "rtt_ms" in found else None)


def _figure(name: str, cell: str, number: int) -> float:
    if not _NUMBER.fullmatch(cell):
        raise ConfigError(f"line {number}: expected {name} as a number such as 12.5, came {cell[:60]!r}")
    value = float(cell)
    if name.endswith("mbit") and value > _MOST_MBIT:
        raise ConfigError(f"line {number}: expected {name} up to {_MOST_MBIT:g}, came {cell}")
    return value


def _mahimahi(lines: list[str]) -> Trace:
    """Packets in bins of 100 ms: a packet at `t` counts for the bin that ends at `t` or later."""
    times_ms = [_millisecond(line, number) for number, line in enumerate(lines, 1)]
    for number, (one, other) in enumerate(itertools.pairwise(times_ms), 2):
        if other < one:
            raise ConfigError(f"line {number}: expected milliseconds from {one} on, came {other}")
    length_ms = times_ms[-1]
    if length_ms == 0:
        raise ConfigError("expected a last line above 0, which says how long the trace is")
    counts = Counter(max(time_ms - 1, 0) // _BIN_MS for time_ms in times_ms)
    rates = {0: 0.0}
    for index, count in counts.items():
        end_ms = min((index + 1) * _BIN_MS, length_ms)
        rates[index] = count * _PACKET_BYTES * 1e3 / (end_ms - index * _BIN_MS)
        if end_ms < length_ms and index + 1 not in counts:
            rates[index + 1] = 0.0  # one point for as many bins as are empty
    points = [TracePoint(index * _BIN_MS / 1e3, rate, rate) for index, rate in sorted(rates.items())]
    return Trace(tuple(points), length_ms / 1e3)


def _millisecond(line: str, number: int) -> int:
    if not (line.isdigit() and len(line) <= 12 and int(line) <= MOST_POINTS * _BIN_MS):
        raise ConfigError(
            f"line {number}: expected whole milliseconds up to {MOST_POINTS * _BIN_MS}, came {line[:60]!r}"
        )
    return int(line)
