"""What is believed of one tier: how fast it is, and how long work waits there. Pure, on given times."""

import math
from collections import deque
from dataclasses import dataclass

from flagsplit.runtime.log_filter import LEAST, Clock, FilterOptions, LogFilter, Observations, seconds

_SLOWDOWN = FilterOptions(drift=0.15, prior=0.7, worse_sign=1, stale_s=8.0, return_s=5.0)


@dataclass(frozen=True)
class TierOptions:
    """How a tier is estimated.

    Attributes:
        slowdown: how it wanders.
        least_run_s: planned seconds below which a run says little.
        wait_gain_s: time constant by which waits of late count.
        stale_s: seconds after which an unheard wait counts as over.
    """

    slowdown: FilterOptions = _SLOWDOWN
    least_run_s: float = 0.001
    wait_gain_s: float = 0.5
    stale_s: float = 5.0


class TierEstimator:
    """One tier: how many times longer its work takes than planned, and how long work waits there.

    Args:
        slowdown: the nominal one.
        options: how it is estimated.
        observations: counts them.
    """

    def __init__(
        self, slowdown: float = 1.0, options: TierOptions | None = None, observations: Observations | None = None
    ) -> None:
        self._options = options or TierOptions()
        self._clock = Clock()
        self._slowdown = LogFilter(max(slowdown, LEAST), self._options.slowdown)
        self._last: deque[float] = deque(maxlen=3)
        self._wait_s = 0.0
        self._wait_at: float | None = None
        self._observations = observations or Observations()

    def ran(self, run_s: float, planned_s: float, now: float) -> None:
        """A request's work here took `run_s`; the plan says `planned_s` at the nominal speed."""
        time, _ = self._clock.set(now)
        self._observations.count += 1
        if not (math.isfinite(run_s) and math.isfinite(planned_s) and run_s > 0 and planned_s > 0):
            return
        self._last.append(run_s / planned_s)
        # The median of three: one run that was held up by something else does not count.
        middle = sorted(self._last)[len(self._last) // 2]
        self._slowdown.observe(middle, 0.1 + self._options.least_run_s / planned_s, time)

    def waited(self, wait_s: float, now: float) -> None:
        """Work waited here for its turn, or would."""
        time, _ = self._clock.set(now)
        self._observations.count += 1
        if not math.isfinite(wait_s):
            return
        wait_s = seconds(wait_s)
        old_s = 0.0 if self._wait_at is None else self._wait_s * self._left(time)
        since_s = math.inf if self._wait_at is None else time - self._wait_at
        gain = 1 - math.exp(-since_s / self._options.wait_gain_s)
        self._wait_s = old_s + max(gain, 0.3) * (wait_s - old_s)
        self._wait_at = time

    def slowdown(self, now: float) -> float:
        """The factor on its nominal seconds."""
        return self._slowdown.value(self._clock.at(now))

    def wait_s(self, now: float) -> float:
        """Seconds that work waits for its turn."""
        return self._wait_s * self._left(self._clock.at(now))

    def age_s(self, now: float) -> float:
        """Seconds since it last ran something; infinite if never."""
        return self._slowdown.age_s(self._clock.at(now))

    def is_stale(self, now: float) -> bool:
        """Whether that was too long ago."""
        return self._slowdown.is_stale(self._clock.at(now))

    def _left(self, time: float) -> float:
        """How much of the last wait still counts."""
        if self._wait_at is None:
            return 0.0
        over_s = time - self._wait_at - self._options.stale_s
        return 1.0 if over_s <= 0 else math.exp(-over_s / self._options.stale_s)
