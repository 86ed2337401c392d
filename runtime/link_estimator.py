"""What is believed of one direction of a connection, from what requests and heartbeats show anyway.

Pure, on given times. Each quantity is a `LogFilter`. What the whole line is like, as a state that plans are chosen for,
is put together in `flagsplit.runtime.world`; what to do about it is decided in `flagsplit.runtime.decisions`.
"""

import math
from collections import deque
from dataclasses import dataclass

from flagsplit.runtime.log_filter import LEAST, LONGEST_S, Clock, FilterOptions, LogFilter, Observations, seconds
from flagsplit.transport.messages import LinkGauge

_RATE = FilterOptions(drift=0.4, prior=1.0, worse_sign=-1)
_RTT = FilterOptions(drift=0.2, prior=0.7, worse_sign=1, stale_s=15.0)
_LEAST_RTT_S = 1e-6
_LARGEST_GAUGE = 2**53 - 1


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

    rate: FilterOptions = _RATE
    rtt: FilterOptions = _RTT
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
        came = max(time - seconds(delay_s), transfer.last_progress)
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
        rtt_s = min(max(rtt_s, _LEAST_RTT_S), LONGEST_S)
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
            rtt_s = min(max(rtt_s, _LEAST_RTT_S), LONGEST_S)
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
        return min(rate, max(unacked / quiet_s, LEAST)) if quiet_s > self._options.least_sample_s else rate

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
