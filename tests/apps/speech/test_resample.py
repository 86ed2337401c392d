"""Resampling: what the spectra say, against exact sinusoids, and the same in blocks of any size."""

import numpy as np
import pytest
from numpy.typing import NDArray

from flagsplit.apps.speech.resample import Resampler

Signal = NDArray[np.float32]
PAIRS = [(48_000, 16_000), (44_100, 16_000), (8_000, 16_000), (11_025, 16_000), (44_099, 16_000), (96_000, 16_000)]


def resampled(signal: Signal, from_hz: int, to_hz: int) -> Signal:
    resampler = Resampler(from_hz, to_hz)
    return np.concatenate([resampler.push(signal), resampler.finish()])


def tone(frequency_hz: float, rate_hz: int, seconds: float) -> Signal:
    return np.sin(2 * np.pi * frequency_hz * np.arange(round(seconds * rate_hz)) / rate_hz).astype(np.float32)


def middle(signal: Signal) -> Signal:
    """Without the ends, where the tone starts and stops."""
    return signal[len(signal) // 8 : -len(signal) // 8]


@pytest.mark.parametrize(("from_hz", "to_hz"), PAIRS)
def test_tones_that_fit_stay_what_they_are(from_hz: int, to_hz: int) -> None:
    """Less than 0.1 dB of ripple: below a hundredth of the amplitude; here a thousandth is asked for, in phase too."""
    for share in (0.01, 0.3, 0.61, 0.89):
        frequency_hz = share * min(from_hz, to_hz) / 2
        found = middle(resampled(tone(frequency_hz, from_hz, 0.25), from_hz, to_hz))
        wanted = middle(tone(frequency_hz, to_hz, 0.25))
        assert np.abs(found - wanted).max() < 1e-3, frequency_hz


@pytest.mark.parametrize(("from_hz", "to_hz"), PAIRS)
def test_tones_that_do_not_fit_vanish(from_hz: int, to_hz: int) -> None:
    """Aliases, and images when the rate rises, lie 60 dB down and more."""
    if from_hz > to_hz:
        for frequency_hz in np.linspace(to_hz / 2 + 1, from_hz / 2 * 0.98, 7):
            found = middle(resampled(tone(frequency_hz, from_hz, 0.25), from_hz, to_hz))
            assert np.abs(found).max() < 1e-3, frequency_hz
        return
    for frequency_hz in np.linspace(0.05, 0.89, 5) * from_hz / 2:
        found = middle(resampled(tone(frequency_hz, from_hz, 0.25), from_hz, to_hz))
        spectrum = np.abs(np.fft.rfft(found * np.blackman(len(found))))
        above = int(np.ceil(len(found) * from_hz / 2 / to_hz)) + 4
        assert spectrum[above:].max() < 1e-3 * spectrum.max(), frequency_hz


@pytest.mark.parametrize(("from_hz", "to_hz"), PAIRS)
def test_blocks_of_any_size_give_the_same(from_hz: int, to_hz: int) -> None:
    rng = np.random.default_rng(3)
    signal = rng.standard_normal(5_000).astype(np.float32)
    whole = resampled(signal, from_hz, to_hz)
    assert len(whole) == -(-len(signal) * to_hz // from_hz)
    for _ in range(3):
        resampler, parts, at = Resampler(from_hz, to_hz), [], 0
        while at < len(signal):
            size = int(rng.choice([0, 1, 2, 100, 3_000]))
            parts.append(resampler.push(signal[at : at + size]))
            at += size
        parts.append(resampler.finish())
        np.testing.assert_allclose(np.concatenate(parts), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 440, 441, 442])
def test_short_signals(count: int) -> None:
    """As long as what went in, rounded up; a constant stays one in the middle."""
    for from_hz, to_hz in PAIRS:
        assert len(resampled(np.ones(count, np.float32), from_hz, to_hz)) == -(-count * to_hz // from_hz)


def test_a_constant_stays_a_constant() -> None:
    for from_hz, to_hz in PAIRS:
        np.testing.assert_allclose(middle(resampled(np.ones(4_000, np.float32), from_hz, to_hz)), 1, atol=2e-4)


def test_an_impulse_stays_where_it_is() -> None:
    """Nothing is delayed: the peak lies at the same time."""
    for from_hz, to_hz in PAIRS:
        signal = np.zeros(from_hz // 4, np.float32)
        signal[from_hz // 8] = 1
        found = resampled(signal, from_hz, to_hz)
        assert abs(int(found.argmax()) - round(from_hz // 8 / from_hz * to_hz)) <= 1
