"""The last minute of a tier, kept exactly: when answers came and how long they took, and the newest runs by segment.

Histograms of Prometheus are for a server that asks again and again; this is for somebody who looks once. Bounded in
entries, so that under load the window is shorter than a minute.
"""

import math
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass

WINDOW_S = 60.0
_MOST_ANSWERS = 8192
_MOST_RUNS = 256
_MOST_SEGMENTS = 64


@dataclass(frozen=True)
class Second:
    """What came within one second: answers, and percentiles of their latencies in seconds; NaN without answers."""

    answers: int
    p50_s: float
    p99_s: float


class Recent:
    """Answers and runs; written on the shell's thread, read from any."""

    def __init__(self) -> None:
        self._answers: deque[tuple[float, float]] = deque(maxlen=_MOST_ANSWERS)
        self._runs: OrderedDict[str, deque[tuple[float, float]]] = OrderedDict()
        self._totals: dict[str, int] = {}

    def answer(self, now: float, latency_s: float) -> None:
        """A request was answered."""
        self._answers.append((now, latency_s))

    def run(self, now: float, segment: str, wait_s: float, run_s: float) -> None:  # noqa: ARG002 - the newest count
        """A segment ran."""
        if segment not in self._runs and len(self._runs) >= _MOST_SEGMENTS:
            return
        self._runs.setdefault(segment, deque(maxlen=_MOST_RUNS)).append((wait_s, run_s))
        self._totals[segment] = self._totals.get(segment, 0) + 1

    def latencies_s(self, now: float) -> list[float]:
        """Latencies of the last minute, sorted."""
        return sorted(latency_s for at, latency_s in self._copy() if now - at <= WINDOW_S)

    def rate_per_s(self, now: float, uptime_s: float) -> float:
        """Answers per second over the last minute, or since the start if that is less."""
        answers = self._copy()
        span_s = min(WINDOW_S, uptime_s)
        if len(answers) == _MOST_ANSWERS:
            span_s = min(span_s, now - answers[0][0])
        return sum(now - at <= WINDOW_S for at, _ in answers) / max(span_s, 1.0)

    def seconds(self, now: float) -> list[Second]:
        """The last minute second by second, the newest last."""
        bins: list[list[float]] = [[] for _ in range(int(WINDOW_S))]
        for at, latency_s in self._copy():
            age = int(now - at)
            if 0 <= age < len(bins):
                bins[-1 - age].append(latency_s)
        return [Second(len(each), percentile(sorted(each), 50), percentile(sorted(each), 99)) for each in bins]

    def runs(self) -> dict[str, tuple[int, list[float], list[float]]]:
        """By segment: runs since the start, then sorted seconds of waiting and of running of the newest ones."""
        found = {}
        for segment in tuple(self._runs):
            newest = tuple(self._runs[segment].copy())
            waits, runs = sorted(wait for wait, _ in newest), sorted(run for _, run in newest)
            found[segment] = (self._totals.get(segment, 0), waits, runs)
        return found

    def _copy(self) -> tuple[tuple[float, float], ...]:
        return tuple(self._answers.copy())  # a deque's copy is one step; going through it while it grows is not


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest value that at least so many percent do not exceed (nearest rank); NaN of nothing."""
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]
