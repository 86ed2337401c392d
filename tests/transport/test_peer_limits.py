"""Limits on one client: buckets against their arithmetic, tables that stay small."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flagsplit.errors import ConfigError, ProtocolError
from flagsplit.transport.channel import ChannelOptions
from flagsplit.transport.messages import MAX_PAYLOAD_BYTES
from flagsplit.transport.peer_limits import Admission, PeerRates, TokenBucket


@settings(deadline=None)
@given(st.integers(1, 50), st.integers(1, 100), st.lists(st.integers(0, 500), max_size=200))
def test_a_bucket_never_gives_more_than_burst_and_rate(rate: int, burst: int, waits_ms: list[int]) -> None:
    bucket, now_s, times = TokenBucket(rate, burst, 0.0), 0.0, []
    for wait_ms in waits_ms:
        now_s += wait_ms / 1000
        if bucket.take(now_s):
            times.append(now_s)
    for first in range(len(times)):
        for last in range(first, len(times)):
            assert last - first + 1 <= burst + rate * (times[last] - times[first]) + 1e-6


def test_a_bucket_in_debt_says_when_it_is_paid() -> None:
    bucket = TokenBucket(10, 20, 0.0)
    assert bucket.charge(0.0, 20) == 0.0
    assert bucket.charge(0.0, 5) == 0.5
    assert bucket.charge(0.25, 5) == 1.0
    assert bucket.charge(5.0, 0) == 5.0
    assert not TokenBucket(10, 20, 0.0).take(0.0, 21)


def test_no_rate_is_no_limit() -> None:
    bucket = TokenBucket(0, 0, 0.0)
    assert all(bucket.take(0.0, 1e9) for _ in range(100))
    assert bucket.charge(3.0, 1e9) == 3.0


def test_time_that_goes_back_gives_nothing() -> None:
    bucket = TokenBucket(1, 1, 10.0)
    assert bucket.take(10.0)
    assert not bucket.take(0.0)
    assert not bucket.take(10.5)
    assert bucket.take(11.0)


def test_too_many_messages_are_an_offense() -> None:
    rates = PeerRates(ChannelOptions(max_messages_per_s=5), 0.0)
    for _ in range(10):
        rates.count([b"x"], 0.0, is_limited=True)
    with pytest.raises(ProtocolError, match="at most 5 messages per second"):
        rates.count([b"x"], 0.1, is_limited=True)
    rates.count([b"x"], 0.3, is_limited=True)


def test_too_many_bytes_delay_credit_or_are_an_offense() -> None:
    options = ChannelOptions(max_data_bytes_per_s=1000)
    frames = [b"header", bytes(MAX_PAYLOAD_BYTES)]
    rates = PeerRates(options, 0.0)
    assert rates.count(frames, 0.0, is_limited=True) == 0.0
    assert rates.count([b"h", bytes(500)], 0.0, is_limited=True) == 0.5
    assert rates.count([b"h"], 0.25, is_limited=True) == 0.5
    rates = PeerRates(options, 0.0)
    rates.count(frames, 0.0, is_limited=False)
    rates.count([b"h"], 0.0, is_limited=False)
    with pytest.raises(ProtocolError, match="1000 payload bytes per second"):
        rates.count([b"h", b"1"], 0.0, is_limited=False)


def test_admission_counts_connections_and_peers() -> None:
    admission = Admission(ChannelOptions(max_inbound_connections=2, max_peers_per_key=1))
    assert admission.connection(2) == ""
    assert "all 2 connections" in admission.connection(3)
    assert admission.peer(1) == ""
    assert "1 peers with the same key" in admission.peer(2)


def test_hellos_are_limited_per_key_in_bounded_memory() -> None:
    admission = Admission(ChannelOptions(max_hellos_per_s=2))
    assert [admission.hello("a", 0.0) == "" for _ in range(9)] == [True] * 8 + [False]
    assert admission.hello("b", 0.0) == ""
    assert admission.hello("a", 0.5) == ""
    for number in range(10_000):
        assert admission.hello(f"stranger {number}", 1.0) == ""
    assert len(admission._hellos) <= 4096


def test_refusals_are_told_once_a_second() -> None:
    admission = Admission(ChannelOptions())
    told = [admission.telling("full", millisecond / 1000) for millisecond in range(2500)]
    assert [line for line in told if line] == [
        "refused: full",
        "refused: full (and 999 more refused since the last such line)",
        "refused: full (and 999 more refused since the last such line)",
    ]


@pytest.mark.parametrize(
    "name", ["window_bytes", "ack_delay_s", "max_hellos_per_s", "max_messages_per_s", "max_data_bytes_per_s"]
)
def test_limits_below_nothing_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        ChannelOptions(**{name: -1})
