"""Observers against NumPy's own statistics, and what each leaves out."""

import numpy as np
import pytest

from flagsplit.flagir.quantization.observers import PERCENTILE, ObserverName, new_observer
from flagsplit.flagir.quantization.params import params_of_range


def _range(name: ObserverName, arrays: list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]) -> tuple[float, float]:
    observer = new_observer(name)
    for turn in range(observer.passes):
        for array in arrays:
            observer.see(array, turn)
    return observer.range()


def _normal(outlier: float) -> list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((100, 50)).astype(np.float32) for _ in range(20)]
    arrays[7][3, 4] = outlier
    return arrays


def test_minmax_holds_all() -> None:
    arrays = _normal(30.0)
    assert _range("minmax", arrays) == (min(a.min() for a in arrays), 30.0)


def test_percentile_is_that_of_numpy_within_a_bin() -> None:
    arrays = _normal(6.0)
    every = np.concatenate([array.reshape(-1) for array in arrays])
    lost = (100 - PERCENTILE) / 2
    low, high = _range("percentile", arrays)
    width = float(every.max() - every.min()) / 2048
    assert low == pytest.approx(np.percentile(every, lost), abs=2 * width)
    assert high == pytest.approx(np.percentile(every, 100 - lost), abs=2 * width)


def test_entropy_cuts_off_a_lone_outlier_and_keeps_what_is_spread_evenly() -> None:
    low, high = _range("entropy", _normal(60.0))
    assert 2 < high < 12
    assert low == pytest.approx(-high, rel=0.5) or low > -12
    even = [np.random.default_rng(1).uniform(-1, 1, 20_000).astype(np.float32)]
    low, high = _range("entropy", even)
    assert low < -0.9
    assert high > 0.9


def test_least_error_is_that_of_trying_all() -> None:
    """Against quantizing the numbers themselves with every pair of ends."""
    array = np.concatenate([np.random.default_rng(2).standard_normal(5000), [40.0, -9.0]]).astype(np.float32)

    def error(low: float, high: float) -> float:
        params = params_of_range(low, high)
        real = (params.quantized(array).astype(np.float64) - params.zero_point) * params.scale
        return float(((real - array) ** 2).mean())

    found = error(*_range("mse", [array]))
    ends = np.linspace(0.5, 40, 40)
    best = min(error(-low, high) for low in ends[:10] for high in ends)
    assert found <= 1.15 * best
    assert found <= error(-9, 40)


@pytest.mark.parametrize("name", ["minmax", "percentile", "entropy", "mse"])
def test_what_is_no_number_is_left_out(name: ObserverName) -> None:
    array = np.array([np.nan, np.inf, -np.inf, -2.0, 3.0], np.float32)
    low, high = _range(name, [array, array])
    assert (low, high) == pytest.approx((-2, 3), abs=0.01)
    assert _range(name, [np.array([np.nan], np.float32)]) == (0.0, 0.0)
    assert _range(name, []) == (0.0, 0.0)
    assert _range(name, [np.full(5, 2.5, np.float32)]) == (2.5, 2.5)
