"""One quantity that wanders, and the times at which it was seen: what estimates are made of. Pure, on given times."""

import math
from dataclasses import dataclass

LEAST, _MOST = 1e-12, 1e15
LONGEST_S = 3600.0
"""Seconds of a wait or a round trip beyond these are not believed."""
_AT_ONCE = math.log(4)
_VAGUE = 0.6  # a value that is off by that much anyway is no reason to think that things have changed
_END_OF_TIME_S = 1e15
"""What a clock says beyond is no time, and sums of such would be no numbers."""


@dataclass(frozen=True)
class FilterOptions:
    """How a positive quantity wanders, as logarithms: 0.1 is about 10 %.

    Attributes:
        drift: standard deviation that it gains in a second.
        prior: standard deviation of the nominal value; no estimate gets wider than that.
        jump: how many standard deviations off a value is doubted when it comes once; a second one is believed.
        worse_sign: 1 if larger is worse, -1 if smaller is; what is worse is believed at once, up to a factor of 4.
        stale_s: seconds without a value after which the estimate goes back towards the nominal value.
        return_s: time constant of that.
    """

    drift: float = 0.3
    prior: float = 0.7
    jump: float = 3.0
    worse_sign: int = -1
    stale_s: float = 5.0
    return_s: float = 20.0


class LogFilter:
    """A scalar Kalman filter on the logarithm of a quantity that walks at random.

    That is exponential forgetting by time, with a gain that follows from how much each value says. What is far off is
    clipped once; if the next is as far off on the same side, the quantity has jumped and the filter goes there.

    Args:
        nominal: where it starts, and goes back to when nothing is heard.
        options: how it wanders.
    """

    def __init__(self, nominal: float, options: FilterOptions) -> None:
        self._options = options
        self._nominal = math.log(_clamp(nominal))
        self._mean = self._nominal
        self._variance = options.prior**2
        self._at: float | None = None
        self._doubted = 0
        self.count = 0

    def observe(self, value: float, deviation: float, now: float) -> None:
        """A value was seen, within a factor of exp(`deviation`) or so; what is no positive number is no value."""
        if not (math.isfinite(value) and value > 0 and math.isfinite(deviation)):
            return
        options = self._options
        mean, prior = self._estimate(now)
        noise = min(max(deviation, 1e-3), 1e3) ** 2
        off = math.log(_clamp(value)) - mean
        limit = options.jump * math.sqrt(prior + noise)
        side = 0 if abs(off) <= limit else int(math.copysign(1, off))
        if side and side == self._doubted:
            prior = max(prior, off * off)
        elif side and deviation > _VAGUE:
            off = math.copysign(limit, off)
        elif side:
            allowed = max(limit, _AT_ONCE) if side == options.worse_sign else limit
            prior = max(prior, min(off * off, allowed**2) / 4)
            off = math.copysign(min(abs(off), allowed), off)
        self._doubted = side
        gain = prior / (prior + noise)
        self._mean = mean + gain * off
        self._variance = (1 - gain) * prior
        self._at = now
        self.count += 1

    def widen(self, deviation: float) -> None:
        """Something has changed: the estimate may be off by so much more."""
        self._variance = min(self._variance + deviation**2, self._options.prior**2)

    def set(self, value: float, deviation: float, now: float) -> None:
        """Take over what somebody else has estimated."""
        if math.isfinite(value) and value > 0:
            self._mean, self._variance = math.log(_clamp(value)), deviation**2
            self._at, self._doubted = now, 0
            self.count += 1

    def value(self, now: float) -> float:
        """The estimate, its median."""
        return math.exp(self._estimate(now)[0])

    def deviation(self, now: float) -> float:
        """The standard deviation of its logarithm."""
        return math.sqrt(self._estimate(now)[1])

    def age_s(self, now: float) -> float:
        """Seconds since the last value, infinite if there was none."""
        return math.inf if self._at is None else max(0.0, now - self._at)

    def is_stale(self, now: float) -> bool:
        """Whether too long ago."""
        return self.age_s(now) > self._options.stale_s

    def _estimate(self, now: float) -> tuple[float, float]:
        """Mean and variance of the logarithm at a time."""
        options, age_s = self._options, self.age_s(now)
        if self._at is None:
            return self._nominal, self._variance
        variance = min(self._variance + options.drift**2 * age_s, options.prior**2)
        if age_s <= options.stale_s:
            return self._mean, variance
        kept = math.exp(-(age_s - options.stale_s) / max(options.return_s, 1e-9))
        return self._nominal + kept * (self._mean - self._nominal), variance


def _clamp(value: float) -> float:
    return min(max(value, LEAST), _MOST)


class Clock:
    """Times that never go back: when the caller's clock does, its own goes on from where it was."""

    def __init__(self) -> None:
        self._last = 0.0
        self._shift_s = 0.0
        self._started = False

    def set(self, now: float) -> tuple[float, bool]:
        """The time of an event, and whether the clock was set back before it."""
        if not abs(now) < _END_OF_TIME_S:
            return self._last, False
        time = now + self._shift_s
        set_back = self._started and time < self._last
        if set_back:
            self._shift_s = self._last - now
            time = self._last
        self._last, self._started = time, True
        return time, set_back

    def at(self, now: float) -> float:
        """The time of a question, which changes nothing."""
        return max(now + self._shift_s, self._last) if abs(now) < _END_OF_TIME_S else self._last


class Observations:
    """How many there were, of all estimators that share it: whether what followed from them still holds."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


def seconds(value: float) -> float:
    """What was said to be seconds, as some that can be: none below 0, over an hour, or no number."""
    return min(max(value, 0.0), LONGEST_S) if math.isfinite(value) else 0.0
