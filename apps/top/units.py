"""Figures as people read them, and a line of blocks for a series."""

import math
from collections.abc import Sequence

from flagsplit.runtime.telemetry.labels import one_line

UNKNOWN = "-"
_BLOCKS = "▁▂▃▄▅▆▇█"


def ms(value: float | None) -> str:
    """Milliseconds with three digits."""
    return UNKNOWN if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def size(value_bytes: float | None) -> str:
    """A size, in powers of ten."""
    if value_bytes is None:
        return UNKNOWN
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value_bytes >= factor:
            return f"{value_bytes / factor:.3g} {unit}"
    return f"{value_bytes:.0f} B"


def duration(seconds: float) -> str:
    """A span of time in its two largest units."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour}h"
    if hours:
        return f"{hours}h {minute}m"
    return f"{minute}m {second}s" if minute else f"{second}s"


def spark(values: Sequence[float | None], width: int = 60) -> str:
    """The newest values as blocks from the smallest to the largest; a space where there is none."""
    newest = list(values)[-width:]
    known = [value for value in newest if value is not None and math.isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(" " if value is None else _BLOCKS[round((value - low) * scale)] for value in newest)


def plain(text: str, most: int = 100) -> str:
    """A text from elsewhere that stays on its line, cut to a length."""
    line = one_line(text)
    return line if len(line) <= most else line[: most - 1] + "…"
