"""Which range of an activation int8 has to hold, told from what it was on samples.

`minmax` takes all that was seen. `percentile` leaves out the outermost of both sides. `entropy` clips where the
distribution in 8 bits diverges least from the one that was seen (Migacz, "8-bit Inference with TensorRT", 2017), `mse`
where the mean squared error is least: what is clipped, and the rounding of the rest. All but the first look at the
samples twice: first for the extremes, then for a histogram between them.
"""

from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from flagsplit.flagir.quantization.params import Array

ObserverName = Literal["minmax", "percentile", "entropy", "mse"]
OBSERVERS: tuple[ObserverName, ...] = ("minmax", "percentile", "entropy", "mse")

PERCENTILE = 99.99
"""How much of what was seen `percentile` keeps, in per cent, half of the rest lost at either end."""

_BINS = 2048
_LEVELS = 128
"""Of one sign, in the divergence: int8 has these many on each side of its zero."""


class Observer(Protocol):
    """Sees the values that one activation takes, and says what range is to be held."""

    passes: int
    """How often it wants to see all samples."""

    def see(self, array: Array, turn: int) -> None:
        """Take in the activation of one sample, in pass 0 or 1; a NaN or an infinity is left out."""

    def range(self) -> tuple[float, float]:
        """Lowest and highest; (0, 0) if nothing was seen."""


def new_observer(name: ObserverName) -> Observer:
    """A fresh observer for one activation."""
    return {"minmax": MinMax, "percentile": Percentile, "entropy": Entropy, "mse": LeastError}[name]()


class MinMax:
    """All that was seen."""

    passes = 1

    def __init__(self) -> None:
        self._low, self._high = np.inf, -np.inf

    def see(self, array: Array, turn: int) -> None:
        """Widen the range."""
        numbers = _finite(array)
        if turn == 0 and numbers.size:
            self._low, self._high = min(self._low, float(numbers.min())), max(self._high, float(numbers.max()))

    def range(self) -> tuple[float, float]:
        """The extremes."""
        return (self._low, self._high) if self._low <= self._high else (0.0, 0.0)


class _Histogram(MinMax):
    """Counts in equal bins between the extremes."""

    passes = 2

    def __init__(self) -> None:
        super().__init__()
        self._counts: NDArray[np.int64] = np.zeros(_BINS, np.int64)

    def see(self, array: Array, turn: int) -> None:
        """Widen the range in the first pass, count in the second."""
        super().see(array, turn)
        low, high = super().range()
        if turn == 1 and high > low:
            self._counts += np.histogram(_finite(array).astype(np.float64), _BINS, (low, high))[0]


class Percentile(_Histogram):
    """All but the outermost."""

    def range(self) -> tuple[float, float]:
        """Where the outermost begin; each side is moved by whole bins."""
        low, high = MinMax.range(self)
        total = int(self._counts.sum())
        if not total:
            return low, high
        lost = (100 - PERCENTILE) / 200 * total
        below = int(np.searchsorted(np.cumsum(self._counts), lost, side="right"))
        above = int(np.searchsorted(np.cumsum(self._counts[::-1]), lost, side="right"))
        width = (high - low) / _BINS
        return low + below * width, high - above * width


class Entropy(_Histogram):
    """Clipped where 8 bits diverge least."""

    def range(self) -> tuple[float, float]:
        """The range that was seen, cut at the best threshold of absolute value."""
        low, high = MinMax.range(self)
        if not self._counts.any():
            return low, high
        centres = low + (np.arange(_BINS) + 0.5) * (high - low) / _BINS
        most = max(abs(low), abs(high))
        sizes = np.histogram(np.abs(centres), _BINS, (0, most), weights=self._counts)[0]
        threshold = most * _best_end(sizes) / _BINS
        return max(low, -threshold), min(high, threshold)


class LeastError(_Histogram):
    """Clipped where the mean squared error is least."""

    def range(self) -> tuple[float, float]:
        """The range that was seen, each end moved towards 0 as far as it pays."""
        low, high = MinMax.range(self)
        if not self._counts.any():
            return low, high
        centres = low + (np.arange(_BINS) + 0.5) * (high - low) / _BINS
        best, least = (low, high), np.inf
        for at_low in _SHARES if low < 0 else (1.0,):
            for at_high in _SHARES if high > 0 else (1.0,):
                ends = (min(low, 0.0) * at_low, max(high, 0.0) * at_high)
                error = _squared_error(centres, self._counts, *ends)
                if error < least:
                    best, least = ends, error
        return best


_SHARES = tuple(0.97**power for power in range(0, 80, 2))
"""Of an end of the range, from all of it down to a hundredth."""


def _squared_error(centres: NDArray[np.float64], counts: NDArray[np.int64], low: float, high: float) -> float:
    """Sum over all that was seen: a twelfth of a squared step where it is held, the squared distance where not."""
    off = np.maximum(low - centres, 0) + np.maximum(centres - high, 0)
    step = (high - low) / (2 * _LEVELS - 1)
    return float((counts * np.where(off > 0, off**2, step**2 / 12)).sum())


def _best_end(counts: NDArray[np.float64]) -> int:
    """How many of the first bins are kept, when the rest is put into the last kept one."""
    ends = range(_LEVELS, _BINS + 1, _LEVELS // 8)
    return min(ends, key=lambda end: (_divergence(counts, end), -end))


def _divergence(counts: NDArray[np.float64], end: int) -> float:
    """Kullback-Leibler, of what was seen from what `_LEVELS` levels over the kept bins tell of it."""
    kept = counts[:end].astype(np.float64)
    seen = kept.copy()
    seen[-1] += counts[end:].sum()
    level = np.arange(end) * _LEVELS // end
    held, filled = (np.bincount(level, weights, _LEVELS) for weights in (kept, (kept > 0).astype(np.float64)))
    told = np.where(kept > 0, (held / np.maximum(filled, 1))[level], 0.0)
    there = seen > 0
    if not told[there].all():
        told = told + 1e-9 * seen.sum()  # what is put into a bin that was empty must not diverge for ever
    p, q = seen[there] / seen.sum(), told[there] / told.sum()
    return float((p * np.log(p / q)).sum())


def _finite(array: Array) -> NDArray[np.generic]:
    numbers = np.asarray(array).reshape(-1)
    return numbers if np.isfinite(numbers).all() else numbers[np.isfinite(numbers)]
