"""What a link's bandwidth was, second by second, to be replayed or asked: from a file, or drawn by a seed.

The files are read in `trace_files.py`; `script.py` turns a trace into steps for a proxy.
"""

import bisect
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from flagsplit.errors import ConfigError
from flagsplit.transport.emulation.pacer import LinkShape

LEAST_BYTES_PER_S: Final = 1500.0
"""Below a packet a second a link counts as gone."""

MOST_POINTS: Final = 1_000_000

_FADE_RTT_S: Final = 0.12
_USUAL_RTT_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class TracePoint:
    """What a link was from some time on.

    Attributes:
        at_s: since the trace began.
        up_bytes_per_s, down_bytes_per_s: its rates; 0 while it was gone.
        rtt_s: round trip of a small message; None if the trace does not tell.
    """

    at_s: float
    up_bytes_per_s: float
    down_bytes_per_s: float
    rtt_s: float | None = None


class Trace:
    """Points in time, each of which holds until the next; after `length_s` it begins again.

    Args:
        points: in the order of their times, the first at 0.
        length_s: how long one round is.

    Raises:
        ConfigError: no points or too many, times that do not increase, or figures out of range.
    """

    def __init__(self, points: tuple[TracePoint, ...], length_s: float) -> None:
        if not 1 <= len(points) <= MOST_POINTS:
            raise ConfigError(f"expected 1 to {MOST_POINTS} points of a trace, came {len(points)}")
        self.points = points
        self.length_s = length_s
        self._starts_s = [point.at_s for point in points]
        ends = [*self._starts_s[1:], length_s]
        if self._starts_s[0] != 0 or any(not a < b for a, b in zip(self._starts_s, ends, strict=True)):
            raise ConfigError("expected times of a trace that begin at 0 and increase up to its length")
        for point in points:
            for figure in (point.up_bytes_per_s, point.down_bytes_per_s, point.rtt_s or 0.0):
                if not (math.isfinite(figure) and figure >= 0):
                    raise ConfigError(f"expected figures of a trace that are 0 or more, came {figure}")
        if not math.isfinite(length_s):
            raise ConfigError(f"expected a length of a trace in seconds, came {length_s}")

    def at(self, seconds: float) -> TracePoint:
        """What the link is at a time since the start, in whatever round that is."""
        return self.points[bisect.bisect_right(self._starts_s, seconds % self.length_s) - 1]

    def mean_bytes_per_s(self, start_s: float, end_s: float, *, up: bool = True) -> float:
        """The mean rate between two times, what it carries if it always has something to carry."""
        return (self._carried(end_s, up=up) - self._carried(start_s, up=up)) / (end_s - start_s)

    def rounds(self) -> Iterator[TracePoint]:
        """Its points, round after round without end, with times since the start of the first."""
        number = 0
        while True:
            start_s = number * self.length_s
            for point in self.points:
                yield TracePoint(start_s + point.at_s, point.up_bytes_per_s, point.down_bytes_per_s, point.rtt_s)
            number += 1

    def _carried(self, seconds: float, *, up: bool) -> float:
        rounds, rest_s = divmod(seconds, self.length_s)
        total = partly = 0.0
        for point, end_s in zip(self.points, [*self._starts_s[1:], self.length_s], strict=True):
            rate = point.up_bytes_per_s if up else point.down_bytes_per_s
            total += rate * (end_s - point.at_s)
            partly += rate * max(0.0, min(end_s, rest_s) - point.at_s)
        return rounds * total + partly


def shapes_at(point: TracePoint, base: LinkShape | None = None) -> tuple[LinkShape, LinkShape]:
    """What a proxy does at a point of a trace, up and down; what the trace does not tell is that of `base`."""
    base = base or LinkShape(math.inf)
    delay_s = base.delay_s if point.rtt_s is None else point.rtt_s / 2
    rates = (point.up_bytes_per_s, point.down_bytes_per_s)
    up, down = (
        LinkShape(rate if rate >= LEAST_BYTES_PER_S else 0.0, delay_s, base.jitter_s, base.loss) for rate in rates
    )
    return up, down


def lte_like(seed: int, seconds: float, *, step_s: float = 0.1) -> Trace:
    """A trace like that of a moving phone on LTE: between 1 and 60 Mbit/s, slow changes, and short fades.

    The logarithm of the rate follows an autoregressive process of order 1 around that of 14 Mbit/s, which forgets in
    about 5 s; fades come and go by a Markov chain, one in 20 s, each about 1 s long, and leave a tenth of the rate and
    a longer round trip. Both directions are alike. The figures are estimates of ours, fitted to nothing.

    Raises:
        ConfigError: the length or the step makes no trace, or one of too many points.
    """
    if not (math.isfinite(seconds) and math.isfinite(step_s) and 0 < step_s <= seconds <= step_s * MOST_POINTS):
        raise ConfigError(f"expected a trace of 1 to {MOST_POINTS} steps, came {seconds} s in steps of {step_s} s")
    draws = random.Random(f"{seed} lte")  # noqa: S311 - no secret
    keep = math.exp(-step_s / 5)
    center, spread = math.log(14.0), 0.7
    level, faded = draws.gauss(center, spread), False
    points = []
    for index in range(math.ceil(seconds / step_s - 1e-9)):
        faded = draws.random() < (math.exp(-step_s) if faded else 1 - math.exp(-step_s / 20))
        mbit = min(max(math.exp(level) * (0.1 if faded else 1.0), 1.0), 60.0)
        rate = mbit * 1e6 / 8
        points.append(TracePoint(index * step_s, rate, rate, _FADE_RTT_S if faded else _USUAL_RTT_S))
        level = center + keep * (level - center) + math.sqrt(1 - keep**2) * draws.gauss(0.0, spread)
    return Trace(tuple(points), seconds)
