"""An emulated link's arithmetic: rate, delay, jitter and buffer, on times that the test makes up."""

import math
import random

import pytest

from flagsplit.errors import ConfigError
from flagsplit.transport.emulation.pacer import PACKET_BYTES, LinkShape, Pacer


def arrivals(pacer: Pacer, count: int, start: float = 0.0) -> list[float]:
    """A sender that always has more: when each of its pieces comes out."""
    now, found = start, []
    for _ in range(count):
        now = max(now, pacer.takes_from())
        found.append(pacer.take(pacer.quantum_bytes, now))
    return found


@pytest.mark.parametrize("bytes_per_s", [10e3, 2.5e6, 125e6])
def test_the_rate_is_exact(bytes_per_s: float) -> None:
    pacer = Pacer(LinkShape(bytes_per_s, 0.05), random.Random(0))
    times = arrivals(pacer, 50)
    assert times[-1] == pytest.approx(50 * pacer.quantum_bytes / bytes_per_s + 0.05)


def test_an_idle_link_delays_only() -> None:
    pacer = Pacer(LinkShape(1e6, 0.02), random.Random(0))
    assert pacer.take(1000, 5.0) == pytest.approx(5.021)
    assert pacer.take(1000, 9.0) == pytest.approx(9.021)


def test_the_buffer_is_ten_milliseconds_or_two_pieces() -> None:
    fast, slow = (Pacer(LinkShape(rate), random.Random(0)) for rate in (2.5e6, 1e4))
    for pacer, buffer_s in ((fast, 0.01), (slow, 2 * slow.quantum_bytes / 1e4)):
        held = 0
        while pacer.takes_from() <= 0.0:
            pacer.take(pacer.quantum_bytes, 0.0)
            held += pacer.quantum_bytes
        assert held == pytest.approx(buffer_s * pacer.shape.bytes_per_s, abs=pacer.quantum_bytes)


def test_a_link_without_a_rate_takes_all() -> None:
    pacer = Pacer(LinkShape(math.inf, 0.5), random.Random(0))
    assert {pacer.take(1 << 20, 1.0) for _ in range(100)} == {1.5}
    assert pacer.takes_from() <= 1.0


def test_jitter_is_seeded_and_only_adds() -> None:
    def drawn(seed: int) -> list[float]:
        pacer = Pacer(LinkShape(math.inf, 0.01, 0.02), random.Random(seed))
        return [pacer.take(1, 0.0) for _ in range(100)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert 0.01 <= min(drawn(1)) < 0.012 < 0.028 < max(drawn(1)) <= 0.03


def test_a_new_shape_holds_from_now_on() -> None:
    pacer = Pacer(LinkShape(1e6), random.Random(0))
    assert pacer.take(10_000, 0.0) == pytest.approx(0.01)
    pacer.shape = LinkShape(1e5, 1.0)
    assert pacer.take(10_000, 0.0) == pytest.approx(1.11)


@pytest.mark.parametrize(
    ("figures", "name"),
    [
        ((-1.0,), "bytes_per_s"),
        ((math.nan,), "bytes_per_s"),
        ((1.0, -0.1), "delay_s"),
        ((1.0, math.inf), "delay_s"),
        ((1.0, 0.0, math.nan), "jitter_s"),
        ((1.0, 0.0, 0.0, 1.0), "loss"),
        ((1.0, 0.0, 0.0, -0.1), "loss"),
        ((1.0, 0.0, 0.0, math.nan), "loss"),
    ],
)
def test_wrong_figures(figures: tuple[float, ...], name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} of a link: expected"):
        LinkShape(*figures)


def test_losses_are_seeded_and_as_frequent_as_asked() -> None:
    shape = LinkShape(2.5e6, 0.02, loss=0.02)

    def drawn(seed: int) -> list[float]:
        pacer = Pacer(shape, random.Random(seed))
        return [pacer.held_up_s(PACKET_BYTES) for _ in range(20_000)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert set(drawn(1)) == {0.0, shape.timeout_s}
    assert sum(map(bool, drawn(1))) == pytest.approx(400, rel=0.15)


def test_a_link_without_loss_draws_for_none() -> None:
    with_none, never_asked = (Pacer(LinkShape(1e6, 0.0, 0.01), random.Random(4)) for _ in range(2))
    assert with_none.held_up_s(10_000) == 0.0
    assert with_none.take(1, 0.0) == never_asked.take(1, 0.0)


@pytest.mark.parametrize(("mbit", "loss"), [(2.0, 0.02), (20.0, 0.005), (200.0, 0.001), (20.0, 0.0)])
def test_goodput_is_what_one_busy_connection_gets(mbit: float, loss: float) -> None:
    """Against the time that a sender takes that waits for every lost packet."""
    shape = LinkShape(mbit * 1e6 / 8, 0.02, 0.0, loss)
    pacer = Pacer(shape, random.Random(8))
    now, pieces = 0.0, 20_000
    for _ in range(pieces):
        now = max(now, pacer.takes_from())
        pacer.take(shape.quantum_bytes, now)
        held_s = pacer.held_up_s(shape.quantum_bytes)
        if held_s:
            now = pacer.free_at + held_s
    assert pieces * shape.quantum_bytes / now == pytest.approx(shape.goodput_bytes_per_s, rel=0.07)


def test_a_link_without_a_rate_gets_nothing_through() -> None:
    assert LinkShape(0.0).goodput_bytes_per_s == 0.0
    assert LinkShape(math.inf).goodput_bytes_per_s == math.inf
    assert Pacer(LinkShape(0.0), random.Random(0)).takes_from() == math.inf


def test_the_time_out_is_that_of_the_rfc() -> None:
    assert LinkShape(1.0, 0.1).timeout_s == pytest.approx(0.4)
    assert LinkShape(1.0, 0.1, 0.3).timeout_s == pytest.approx(0.2 + 0.3 + 0.4)
