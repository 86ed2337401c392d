"""Networks that change, for `adapt.py`: traces like those of LTE, adversarial shapes, and how a link follows one.

A trace gives rates and a round trip every tenth of a second. It is made from a seed; nothing here knows how the runtime
estimates. `lte_like` is a random walk of the logarithm of the rate, with fades and outages, and a round trip that is
longer where the rate is lower.
"""

import bisect
import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

STEP_S = 0.1
_LEAST_MBIT = 0.02
_ACK_BYTES = 64 << 10


@dataclass(frozen=True)
class Trace:
    """What a link is like, every `STEP_S` seconds: Mbit/s away from the phone and towards it, round trip in ms."""

    up_mbit: tuple[float, ...]
    down_mbit: tuple[float, ...]
    rtt_ms: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.up_mbit) * STEP_S


def lte_like(seed: int, seconds: float) -> Trace:
    """1 to 60 Mbit/s down, 0.4 of that up, fades of seconds and outages of up to three."""
    rng = random.Random(seed)
    keep = math.exp(-STEP_S / rng.uniform(4.0, 12.0))
    middle, spread = math.log(rng.uniform(8.0, 25.0)), rng.uniform(0.5, 0.9)
    level, fade, left, outage = rng.gauss(0, 1), 1.0, 0, 0
    up, down, rtt = [], [], []
    for _ in range(max(1, round(seconds / STEP_S))):
        level = keep * level + math.sqrt(1 - keep * keep) * rng.gauss(0, 1)
        if left == 0 and rng.random() < STEP_S / 25:
            fade, left = rng.uniform(0.1, 0.4), round(rng.uniform(1, 6) / STEP_S)
        if outage == 0 and rng.random() < STEP_S / 60:
            outage = round(rng.uniform(0.4, 3.0) / STEP_S)
        left, outage = max(0, left - 1), max(0, outage - 1)
        fade = 1.0 if left == 0 else fade
        rate = min(max(math.exp(middle + spread * level) * fade, 1.0), 60.0)
        rtt.append(min(30 + 160 / rate, 250) * rng.uniform(0.95, 1.1))
        wobble = rng.uniform(0.9, 1.1)
        down.append(_LEAST_MBIT if outage else rate * wobble)
        up.append(_LEAST_MBIT if outage else max(0.4 * rate * wobble, 0.4))
    return Trace(tuple(up), tuple(down), tuple(rtt))


def _shape(seconds: float, of: Callable[[float], float]) -> Trace:
    rates = [max(of(i * STEP_S), _LEAST_MBIT) for i in range(round(seconds / STEP_S))]
    return Trace(tuple(0.4 * r for r in rates), tuple(rates), tuple(min(30 + 160 / r, 250) for r in rates))


def adversarial(seconds: float) -> Mapping[str, Trace]:
    """Shapes that an estimator can trip over."""
    return {
        "square 5 s": _shape(seconds, lambda t: 40.0 if t % 10 < 5 else 2.0),
        "square 20 s": _shape(seconds, lambda t: 40.0 if t % 40 < 20 else 2.0),
        "ramp": _shape(seconds, lambda t: 60.0 * (1 / 60) ** (abs(t % 60 - 30) / 30)),
        "outages": _shape(seconds, lambda t: _LEAST_MBIT if t % 20 > 17 else 25.0),
        "steady fast": _shape(seconds, lambda _: 50.0),
        "steady slow": _shape(seconds, lambda _: 1.5),
    }


class Way:
    """One direction of a link that follows a trace."""

    def __init__(self, mbit: tuple[float, ...], rtt_ms: tuple[float, ...]) -> None:
        steps = [max(rate, _LEAST_MBIT) * 1e6 / 8 * STEP_S for rate in mbit]
        self._carried = [0.0, *itertools.accumulate(steps)]
        self._one_way_s = [ms / 2e3 for ms in rtt_ms]
        self._down = [rate <= _LEAST_MBIT for rate in mbit]

    def arrivals(self, start: float, size_bytes: float) -> Iterator[tuple[float, float]]:
        """When parts of a transfer have come: seconds and bytes so far."""
        before = self._carried_by(start)
        parts = max(1, math.ceil(size_bytes / _ACK_BYTES))
        for part in range(1, parts + 1):
            so_far = size_bytes * part / parts
            left = self._when(before + so_far)
            yield max(left, start) + self.delay_s(left), so_far

    def arrival(self, start: float, size_bytes: float) -> float:
        """When all of it has come."""
        left = self._when(self._carried_by(start) + size_bytes)
        return max(left, start) + self.delay_s(left)

    def delay_s(self, at: float) -> float:
        """One way."""
        return self._one_way_s[min(int(at / STEP_S), len(self._one_way_s) - 1)]

    def _carried_by(self, at: float) -> float:
        step, rest = divmod(at / STEP_S, 1)
        i = int(step)
        if i >= len(self._carried) - 1:
            return self._carried[-1] + (at - (len(self._carried) - 1) * STEP_S) * self._last_rate
        return self._carried[i] + rest * (self._carried[i + 1] - self._carried[i])

    def _when(self, carried: float) -> float:
        if carried >= self._carried[-1]:
            return (len(self._carried) - 1) * STEP_S + (carried - self._carried[-1]) / self._last_rate
        i = bisect.bisect_right(self._carried, carried) - 1
        return (i + (carried - self._carried[i]) / (self._carried[i + 1] - self._carried[i])) * STEP_S

    @property
    def _last_rate(self) -> float:
        """Bytes per second beyond the end: as on average."""
        return self._carried[-1] / ((len(self._carried) - 1) * STEP_S)


def steady(trace: Trace, mbit: float, rtt_ms: float) -> Trace:
    """As long as a trace, and never changes."""
    count = len(trace.up_mbit)
    return replace(trace, up_mbit=(mbit,) * count, down_mbit=(mbit,) * count, rtt_ms=(rtt_ms,) * count)


def busy_spells(seed: int, seconds: float) -> list[tuple[float, float, float]]:
    """When a shared tier is slow: from, until, and how many times."""
    rng = random.Random(seed)
    found, at = [], rng.uniform(10, 60)
    while at < seconds:
        long_s = rng.uniform(5, 20)
        found.append((at, at + long_s, rng.uniform(1.5, 5)))
        at += long_s + rng.uniform(20, 90)
    return found
