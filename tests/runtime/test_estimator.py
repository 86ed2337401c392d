"""Estimates of links and tiers: they find the truth on steady links, follow changes, and survive any input."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flagsplit.runtime.link_estimator import LinkEstimator, LinkOptions
from flagsplit.runtime.log_filter import Clock, FilterOptions, LogFilter
from flagsplit.runtime.tier_estimator import TierEstimator

ACK_BYTES = 64 << 10


class Steady:
    """A link with a fixed rate, delay and jitter, and what its sender tells an estimator."""

    def __init__(self, estimator: LinkEstimator, rate: float, rtt_s: float, jitter_s: float, seed: int = 0) -> None:
        self.estimator, self.rate, self.rtt_s, self.jitter_s = estimator, rate, rtt_s, jitter_s
        self.now, self.total = 0.0, 0
        self._rng = random.Random(seed)

    def transfer(self, size_bytes: int) -> None:
        self.estimator.sent(size_bytes, self.now)
        start, done, said = self.now, 0, self.now
        while done < size_bytes:
            done = min(done + ACK_BYTES, size_bytes)
            came = start + done / self.rate + self.rtt_s / 2
            said = max(came + self._rng.uniform(0, 0.02), said)
            self.now = max(self.now, said + self.rtt_s / 2 + self._rng.uniform(0, self.jitter_s))
            self.estimator.acked(self.total + done, size_bytes - done, said - came, self.now)
        self.total += size_bytes
        self.now += self._rng.uniform(0.05, 0.3)

    def ping(self) -> None:
        self.estimator.pinged(self.now)
        rtt_s = self.rtt_s + self._rng.uniform(0, self.jitter_s)
        self.now += rtt_s
        self.estimator.ponged(rtt_s, self.now)


@settings(deadline=None, max_examples=60)
@given(
    rate=st.floats(3e4, 3e7),
    rtt_s=st.floats(0.001, 0.3),
    wrong=st.floats(0.05, 20.0),
    seed=st.integers(0, 2**32),
    jitter=st.floats(0.0, 0.05),
)
def test_a_steady_link_is_found(rate: float, rtt_s: float, wrong: float, seed: int, jitter: float) -> None:
    estimator = LinkEstimator(rate * wrong, rtt_s / wrong)
    size_bytes = int(min(max(rate * 0.3, 2e5), 4e6))
    link = Steady(estimator, rate, rtt_s, min(jitter * rtt_s, 0.1 * size_bytes / rate), seed)
    for _ in range(40):
        link.ping()
        link.transfer(size_bytes)
    assert estimator.bytes_per_s(link.now) == pytest.approx(rate, rel=0.1)
    assert estimator.rtt_s(link.now) == pytest.approx(rtt_s, rel=0.1)
    assert estimator.base_rtt_s(link.now) == pytest.approx(rtt_s, rel=0.1)
    assert estimator.confidence(link.now) > 0.5
    assert estimator.loss() < 0.01
    assert not estimator.is_stale(link.now)


def test_tiny_messages_say_nothing_of_the_rate() -> None:
    estimator = LinkEstimator(1e6, 0.05)
    link = Steady(estimator, 1e6, 0.05, 0.005)
    for _ in range(20):
        link.ping()
        link.transfer(300_000)
    before = estimator.bytes_per_s(link.now)
    for _ in range(300):
        link.transfer(200)
    assert estimator.bytes_per_s(link.now) == pytest.approx(before, rel=0.1)


def test_one_slow_transfer_is_doubted_and_a_row_of_them_believed() -> None:
    estimator = LinkEstimator(5e6, 0.03)
    link = Steady(estimator, 5e6, 0.03, 0.002)
    for _ in range(20):
        link.ping()
        link.transfer(1_000_000)
    link.rate = 2e5
    link.transfer(60_000)
    after_one = estimator.bytes_per_s(link.now)
    assert after_one > 4e5
    for _ in range(4):
        link.transfer(200_000)
    assert estimator.bytes_per_s(link.now) == pytest.approx(2e5, rel=0.35)
    link.rate = 5e6
    for _ in range(6):
        link.transfer(1_000_000)
    assert estimator.bytes_per_s(link.now) == pytest.approx(5e6, rel=0.35)


def test_a_pause_says_little_once_it_is_over() -> None:
    estimator = LinkEstimator(1e6, 0.04)
    link = Steady(estimator, 1e6, 0.04, 0.002)
    for _ in range(20):
        link.ping()
        link.transfer(400_000)
    estimator.sent(100_000, link.now)
    assert estimator.bytes_per_s(link.now + 3) < 5e4, "nothing came for three seconds"
    estimator.acked(link.total + 100_000, 0, 0.0, link.now + 3)
    assert estimator.stalls == 1
    assert estimator.bytes_per_s(link.now + 3) > 3e5
    assert estimator.looks_better(link.now + 3.1)


def test_an_unanswered_ping_lengthens_the_round_trip() -> None:
    estimator = LinkEstimator(1e6, 0.05)
    link = Steady(estimator, 1e6, 0.05, 0.0)
    for _ in range(10):
        link.ping()
    estimator.pinged(link.now)
    estimator.missed(link.now + 1)
    assert estimator.rtt_s(link.now + 2.0) == pytest.approx(2.0)
    assert estimator.loss() > 0.05
    estimator.ponged(2.5, link.now + 2.5)
    assert estimator.rtt_s(link.now + 2.5) < 0.3, "one late answer is doubted"


def test_what_is_not_heard_of_goes_back_to_nominal_and_gets_less_certain() -> None:
    estimator = LinkEstimator(1e6, 0.05)
    link = Steady(estimator, 1e5, 0.05, 0.0)
    for _ in range(20):
        link.ping()
        link.transfer(100_000)
    spreads = [estimator.deviation(link.now + age) for age in (0, 2, 10, 100)]
    assert spreads == sorted(spreads)
    rates = [estimator.bytes_per_s(link.now + age) for age in (0, 4, 20, 60, 600)]
    assert rates == sorted(rates)
    assert rates[1] == pytest.approx(rates[0])
    assert rates[-1] == pytest.approx(1e6, rel=0.05)
    assert estimator.is_stale(link.now + 10)
    assert estimator.gauge("edge", link.now + 10).bytes_per_s == 0
    assert estimator.gauge("edge", link.now).bytes_per_s == pytest.approx(1e5, rel=0.15)


def test_a_new_connection_starts_its_counts_anew() -> None:
    estimator = LinkEstimator(1e6, 0.05)
    link = Steady(estimator, 1e6, 0.05, 0.0)
    for _ in range(10):
        link.transfer(300_000)
    estimator.sent(500_000, link.now)
    estimator.reset(link.now + 1)
    assert not estimator.is_busy
    link.total, link.now = 0, link.now + 1
    for _ in range(10):
        link.transfer(300_000)
    assert estimator.bytes_per_s(link.now) == pytest.approx(1e6, rel=0.1)


NUMBER = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True), st.floats(0, 100), st.sampled_from([0.0, -1.0, 1e300, 1e-300])
)
BYTES = st.one_of(st.integers(-(2**40), 2**60), st.integers(0, 10**6), st.just(0))
EVENT = st.tuples(st.sampled_from(["sent", "acked", "pinged", "ponged", "missed", "reset", "reported"]), BYTES, BYTES,
                  NUMBER, NUMBER)  # fmt: skip


@settings(deadline=None, max_examples=200)
@given(st.lists(EVENT, max_size=40), NUMBER)
def test_no_input_breaks_a_link(events: list[tuple[str, int, int, float, float]], asked: float) -> None:
    estimator = LinkEstimator(1e6, 0.05)
    for name, size, other, figure, now in events:
        match name:
            case "sent":
                estimator.sent(size, now)
            case "acked":
                estimator.acked(size, other, figure, now)
            case "pinged":
                estimator.pinged(now)
            case "ponged":
                estimator.ponged(figure, now)
            case "missed":
                estimator.missed(now)
            case "reported":
                estimator.reported(float(size), figure, figure, now)
            case _:
                estimator.reset(now)
        for at in (now, asked):
            for value in (estimator.bytes_per_s(at), estimator.rtt_s(at), estimator.base_rtt_s(at)):
                assert math.isfinite(value)
                assert value > 0
            assert 0 <= estimator.confidence(at) <= 1
            assert 0 <= estimator.loss() <= 1
            assert estimator.age_s(at) >= 0
            assert math.isfinite(estimator.deviation(at))
            estimator.gauge("edge", at)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.booleans(), NUMBER, NUMBER, NUMBER), max_size=40), NUMBER)
def test_no_input_breaks_a_tier(events: list[tuple[bool, float, float, float]], asked: float) -> None:
    estimator = TierEstimator()
    for is_run, one, other, now in events:
        if is_run:
            estimator.ran(one, other, now)
        else:
            estimator.waited(one, now)
        for at in (now, asked):
            assert math.isfinite(estimator.slowdown(at))
            assert estimator.slowdown(at) > 0
            assert math.isfinite(estimator.wait_s(at))
            assert estimator.wait_s(at) >= 0


def test_a_clock_that_is_set_back_goes_on() -> None:
    estimator = LinkEstimator(1e6, 0.05)
    link = Steady(estimator, 2e6, 0.05, 0.0)
    link.now = 1000.0
    for _ in range(10):
        link.ping()
        link.transfer(500_000)
    link.now = 5.0
    for _ in range(20):
        link.ping()
        link.transfer(500_000)
    assert estimator.bytes_per_s(link.now) == pytest.approx(2e6, rel=0.1)
    assert estimator.age_s(link.now + 3) == pytest.approx(3, abs=0.5)


def test_clock_never_goes_back() -> None:
    clock = Clock()
    assert clock.set(-3.0) == (-3.0, False)
    assert clock.set(2.0) == (2.0, False)
    assert clock.set(1.0) == (2.0, True)
    assert clock.set(1.5) == (2.5, False)
    assert clock.at(0.0) == 2.5
    assert clock.set(math.nan) == (2.5, False)


@settings(deadline=None, max_examples=40)
@given(slowdown=st.floats(0.2, 20), seed=st.integers(0, 2**32))
def test_a_tiers_slowdown_is_found_though_single_runs_are_far_off(slowdown: float, seed: int) -> None:
    rng, estimator, now = random.Random(seed), TierEstimator(), 0.0
    for i in range(60):
        now += 0.2
        hiccup = 12.0 if i % 7 == 3 else 1.0
        estimator.ran(0.05 * slowdown * math.exp(rng.gauss(0, 0.05)) * hiccup, 0.05, now)
    assert estimator.slowdown(now) == pytest.approx(slowdown, rel=0.15)
    assert estimator.slowdown(now + 1000) == pytest.approx(1.0, rel=0.01)
    assert estimator.is_stale(now + 1000)


def test_waits_are_followed_and_forgotten() -> None:
    estimator = TierEstimator()
    assert estimator.wait_s(0.0) == 0.0
    for i in range(20):
        estimator.waited(0.4, i * 0.3)
    assert estimator.wait_s(6.0) == pytest.approx(0.4, rel=0.05)
    for i in range(10):
        estimator.waited(0.0, 6 + i * 0.3)
    assert estimator.wait_s(9.0) < 0.02
    estimator.waited(5.0, 10.0)
    assert estimator.wait_s(200.0) < 1e-3


def test_a_filter_passes_over_what_is_no_value() -> None:
    each = LogFilter(10.0, FilterOptions())
    for value in (math.nan, math.inf, 0.0, -1.0):
        each.observe(value, 0.1, 1.0)
        each.set(value, 0.1, 1.0)
    assert each.count == 0
    assert each.age_s(5.0) == math.inf
    assert each.value(5.0) == pytest.approx(10.0)
    assert LinkOptions().rate.worse_sign == -1
