"""What the session believes of links and tiers, from what requests and heartbeats show anyway. Pure, on given times.

`LinkEstimator` is one direction of one connection, `TierEstimator` one tier. Each quantity is a `LogFilter`. What the
whole line is like, as a state that plans are chosen for, is put together in `flagsplit.runtime.world`; what to do
about it is decided in `flagsplit.runtime.decisions`.
"""

import math
from collections import deque
from dataclasses import dataclass

from flagsplit.transport.messages import LinkGauge

_LEAST, _MOST = 1e-12, 1e15
_LARGEST_GAUGE = 2**53 - 1


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


_LEAST_RTT_S, _LONGEST_S = 1e-6, 3600.0
_AT_ONCE = math.log(4)
_VAGUE = 0.6  # a value that is off by that much anyway is no reason to think that things have changed


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
    return min(max(value, _LEAST), _MOST)


_END_OF_TIME_S = 1e15
"""What a clock says beyond is no time, and sums of such would be no numbers."""


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


@dataclass(frozen=True)
class LinkOptions:
    """How a link is estimated.

    Attributes:
        rate: how its bytes per second wander.
        rtt: how its round trip does.
        jitter_s: what times of messages are off by at least.
        least_sample_bytes: a part of a transfer that is measured by itself has at least so many bytes,
        least_sample_s: and took at least so long.
        base_window_s: the base round trip is the least of so many seconds.
        hopeless_s: a ping that is out for so long says that nothing goes through.
        stall_s: where nothing came for longer than that, and for much longer than the rate explains, the link stood
            still: what came then says little of its rate before and after,
        stall_deviation: no more than this, as a standard deviation of the logarithm.
        hint_deviation: by so much the rate is less certain once the round trip has become far shorter.
    """

    rate: FilterOptions = FilterOptions(drift=0.4, prior=1.0, worse_sign=-1)
    rtt: FilterOptions = FilterOptions(drift=0.2, prior=0.7, worse_sign=1, stale_s=15.0)
    jitter_s: float = 0.002
    least_sample_bytes: int = 16 << 10
    least_sample_s: float = 0.03
    base_window_s: float = 5.0
    hopeless_s: float = 60.0
    stall_s: float = 0.25
    stall_deviation: float = 1.0
    hint_deviation: float = 0.8


@dataclass
class _Transfer:
    """From the first byte that was sent on an idle connection until all are acknowledged."""

    started: float
    acked_before: int
    mark: float = 0.0
    mark_bytes: int = 0
    first_ack: float | None = None
    last_progress: float = 0.0
    stalled: bool = False


class LinkEstimator:
    """One direction of a connection: its bytes per second while busy, its round trip, its loss.

    A transfer of S bytes takes T = alpha + S / rate until it is acknowledged. Alpha is the round trip, known from
    pings; parts of a long transfer are measured from one acknowledgement to another, which takes alpha out. How much a
    transfer says follows from how large S / rate is beside what times are off by: tiny messages say nothing.

    Args:
        bytes_per_s: its nominal rate.
        rtt_s: its nominal round trip.
        options: how it is estimated.
        observations: counts them. What is sent is none: it says nothing until time has passed.

    Attributes:
        measured_bytes: bytes of all samples.
        stalls: how often bytes came after a pause.
        stall_ended_s: when the last such pause was over.
    """

    def __init__(
        self,
        bytes_per_s: float,
        rtt_s: float,
        options: LinkOptions | None = None,
        observations: Observations | None = None,
    ) -> None:
        self._options = options or LinkOptions()
        self._clock = Clock()
        self._rate = LogFilter(bytes_per_s, self._options.rate)
        self._rtt = LogFilter(max(rtt_s, _LEAST_RTT_S), self._options.rtt)
        self._recent: deque[tuple[float, float]] = deque(maxlen=64)
        self._pings: deque[float] = deque(maxlen=64)
        self._sent = self._acked = 0
        self._transfer: _Transfer | None = None
        self._lost = 0.0
        self._spread_s = 0.0
        self._rate_rtt_s = rtt_s
        self.measured_bytes = 0
        self.stalls = 0
        self.stall_ended_s: float | None = None
        self._observations = observations or Observations()

    def sent(self, size_bytes: int, now: float) -> None:
        """Bytes were handed to the connection."""
        time = self._tick(now)
        if size_bytes <= 0:
            return
        if self._transfer is None:
            self._transfer = _Transfer(time, self._acked, time, self._acked, None, time)
        self._sent += size_bytes

    def acked(self, acked_bytes: int, unacked_bytes: int, delay_s: float, now: float) -> None:
        """The peer said what it has.

        Args:
            acked_bytes: that it has received on this connection in all.
            unacked_bytes: that were sent and are not among those.
            delay_s: how long it held this message back after the last of those bytes came.
            now: when this message came.
        """
        time = self._observed(now)
        progress = acked_bytes - self._acked
        if progress <= 0:
            return
        self._acked = acked_bytes
        self._sent = max(self._sent, acked_bytes + max(unacked_bytes, 0))
        transfer = self._transfer
        if transfer is None:
            return
        came = max(time - _seconds(delay_s), transfer.last_progress)
        explained_s = progress / self._rate.value(came) + 2 * self._smooth_rtt_s(came)
        if came - transfer.last_progress > max(self._options.stall_s, 3 * explained_s):
            transfer.stalled = True
        transfer.last_progress = came
        done = unacked_bytes <= 0
        self._measure(transfer, came, done)
        if done:
            self._transfer = None

    def _measure(self, transfer: _Transfer, came: float, done: bool) -> None:
        """Take a part of the transfer as a sample: what came since the last, or since the start."""
        whole = transfer.first_ack is None
        if whole:
            transfer.first_ack = came
        size_bytes = self._acked - transfer.mark_bytes
        took_s = came - transfer.mark - (self._base_rtt_s(came) if whole else 0.0)
        enough = size_bytes >= self._options.least_sample_bytes and took_s >= self._options.least_sample_s
        if transfer.stalled:
            self._stood_still(size_bytes, took_s, came)
        elif enough or done:
            self._sample(size_bytes, took_s, came)
        if enough or whole or done or transfer.stalled:
            transfer.mark, transfer.mark_bytes, transfer.stalled = came, self._acked, False

    def _stood_still(self, size_bytes: int, took_s: float, came: float) -> None:
        """Bytes came after a pause. It may be over, or the link may be that slow now: a doubtful sample."""
        self.stalls += 1
        self.stall_ended_s = came
        if took_s > 0:
            self._rate.observe(size_bytes / took_s, self._options.stall_deviation, came)

    def _sample(self, size_bytes: int, took_s: float, came: float) -> None:
        off_s = max(self._options.jitter_s, self._spread_s)
        expected_s = size_bytes / self._rate.value(came)
        if took_s <= off_s:
            # Too fast to be timed; that it was at least so fast may still be news.
            if expected_s > 3 * off_s:
                self._rate.observe(size_bytes / off_s, off_s / expected_s + 0.5, came)
            return
        if max(expected_s, took_s / 4) < off_s:
            return  # as tiny as this it could have taken that long for any other reason
        self.measured_bytes += size_bytes
        self._rate_rtt_s = self._smooth_rtt_s(came)
        # By the larger of both: a transfer that came late by chance must not count for more than it says.
        self._rate.observe(size_bytes / took_s, off_s / min(took_s, max(expected_s, off_s)) + 0.05, came)

    def pinged(self, now: float) -> None:
        """A ping was sent."""
        self._pings.append(self._tick(now))

    def ponged(self, rtt_s: float, now: float) -> None:
        """It was answered after `rtt_s`."""
        time = self._observed(now)
        if not (math.isfinite(rtt_s) and rtt_s >= 0):
            return
        rtt_s = min(max(rtt_s, _LEAST_RTT_S), _LONGEST_S)
        while self._pings and self._pings[0] <= time - rtt_s + 1e-6:
            self._pings.popleft()
        before_s = self._rtt.value(time)
        if self._recent:
            self._spread_s += 0.2 * (min(abs(rtt_s - before_s), before_s) / 2 - self._spread_s)
        looked_better = self.looks_better(now)
        self._rtt.observe(rtt_s, 0.15, time)
        self._recent.append((time, rtt_s))
        self._lost *= 0.9
        if self.looks_better(now) and not looked_better:
            self._rate.widen(self._options.hint_deviation)  # one measurement will do to believe in a better rate

    def missed(self, now: float) -> None:
        """A ping had no answer in time."""
        time = self._observed(now)
        self._lost += 0.1 * (1 - self._lost)
        self._rate.widen(0.3)
        self._rtt.widen(0.3)
        if not self._pings:
            self._pings.append(time)

    def reported(self, bytes_per_s: float, rtt_s: float, loss: float, now: float) -> None:
        """The other end says what it has measured in this direction; 0 stands for what it does not know."""
        time = self._observed(now)
        self._rate.set(bytes_per_s, 0.15, time)
        if math.isfinite(rtt_s) and rtt_s > 0:
            rtt_s = min(max(rtt_s, _LEAST_RTT_S), _LONGEST_S)
            self._rtt.set(rtt_s, 0.15, time)
            self._recent.append((time, rtt_s))
        if math.isfinite(loss):
            self._lost = min(max(loss, 0.0), 1.0)

    def reset(self, now: float) -> None:
        """The connection is a new one: nothing is under way, and what was known is less certain."""
        self._observed(now)
        self._forget_pending()
        self._sent = self._acked = 0
        self._rate.widen(0.3)
        self._rtt.widen(0.2)

    def bytes_per_s(self, now: float) -> float:
        """What it carries while busy; less than was measured, if what is under way shows that."""
        time = self._clock.at(now)
        rate = self._rate.value(time)
        if self._transfer is None:
            return rate
        quiet_s = time - self._transfer.last_progress - self._smooth_rtt_s(time)
        unacked = max(self._sent - self._acked, 1)
        return min(rate, max(unacked / quiet_s, _LEAST)) if quiet_s > self._options.least_sample_s else rate

    def rtt_s(self, now: float) -> float:
        """The round trip of a small message, at least as long as the oldest ping is out."""
        time = self._clock.at(now)
        out_s = time - self._pings[0] if self._pings else 0.0
        smooth_s = self._smooth_rtt_s(time)
        return max(smooth_s, min(out_s, self._options.hopeless_s)) if out_s > 2 * smooth_s else smooth_s

    def base_rtt_s(self, now: float) -> float:
        """The least of late: what the way takes without a queue."""
        return self._base_rtt_s(self._clock.at(now))

    def deviation(self, now: float) -> float:
        """Standard deviation of the logarithm of the rate: 0.1 is 10 %."""
        return self._rate.deviation(self._clock.at(now))

    def confidence(self, now: float) -> float:
        """From 0, nothing is known, to 1."""
        return math.exp(-2 * self.deviation(now)) if self._rate.count else 0.0

    def age_s(self, now: float) -> float:
        """Seconds since the rate was last measured; infinite if never."""
        return self._rate.age_s(self._clock.at(now))

    def rtt_age_s(self, now: float) -> float:
        """Seconds since the round trip was."""
        return self._rtt.age_s(self._clock.at(now))

    def is_stale(self, now: float) -> bool:
        """Whether the rate was measured too long ago."""
        return self._rate.is_stale(self._clock.at(now))

    def looks_better(self, now: float) -> bool:
        """Whether the round trip is far shorter than when the rate was measured, or a pause ended since."""
        time = self._clock.at(now)
        age_s = self._rate.age_s(time)
        paused = self.stall_ended_s is not None and age_s >= time - self.stall_ended_s
        newer = self._rtt.age_s(time) < age_s and not self._rtt.is_stale(time)
        return paused or (newer and self.rtt_s(now) < 0.7 * self._rate_rtt_s)

    @property
    def knows_rate(self) -> bool:
        """Whether it was ever measured."""
        return self._rate.count > 0

    @property
    def knows_rtt(self) -> bool:
        """Whether a ping was ever answered."""
        return self._rtt.count > 0

    @property
    def is_busy(self) -> bool:
        """Whether bytes are under way."""
        return self._transfer is not None

    def loss(self) -> float:
        """Share of the pings of late that had no answer."""
        return self._lost

    def gauge(self, tier: str, now: float) -> LinkGauge:
        """What to tell others of this direction, towards `tier`; a rate of 0 where nothing is known of late."""
        known = self.knows_rate and not self.is_stale(now)
        rate = min(int(self.bytes_per_s(now)), _LARGEST_GAUGE) if known else 0
        rtt_us = min(int(self.rtt_s(now) * 1e6), _LARGEST_GAUGE) if self.knows_rtt else 0
        return LinkGauge(tier, rate, rtt_us, round(1000 * self._lost))

    def _observed(self, now: float) -> float:
        self._observations.count += 1
        return self._tick(now)

    def _tick(self, now: float) -> float:
        time, set_back = self._clock.set(now)
        if set_back:
            self._observations.count += 1
            self._forget_pending()
        return time

    def _forget_pending(self) -> None:
        """What is under way can no longer be timed."""
        self._transfer = None
        self._pings.clear()

    def _smooth_rtt_s(self, time: float) -> float:
        return self._rtt.value(time)

    def _base_rtt_s(self, time: float) -> float:
        since = time - self._options.base_window_s
        while self._recent and self._recent[0][0] < since:
            self._recent.popleft()
        return min((rtt_s for _, rtt_s in self._recent), default=self._smooth_rtt_s(time))


def _seconds(value: float) -> float:
    return min(max(value, 0.0), _LONGEST_S) if math.isfinite(value) else 0.0


@dataclass(frozen=True)
class TierOptions:
    """How a tier is estimated.

    Attributes:
        slowdown: how it wanders.
        least_run_s: planned seconds below which a run says little.
        wait_gain_s: time constant by which waits of late count.
        stale_s: seconds after which an unheard wait counts as over.
    """

    slowdown: FilterOptions = FilterOptions(drift=0.15, prior=0.7, worse_sign=1, stale_s=8.0, return_s=5.0)
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
        self._slowdown = LogFilter(max(slowdown, _LEAST), self._options.slowdown)
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
        wait_s = _seconds(wait_s)
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
