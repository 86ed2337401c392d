"""Change the rate of sound by band-limited interpolation, in blocks, with NumPy alone.

The filter is a sinc under a Kaiser window (J. O. Smith, "Digital Audio Resampling"): up to 0.9 of the lower of the two
Nyquist frequencies it changes less than 0.01 dB, from that frequency on it leaves less than -75 dB. Output sample n
lies exactly at input time n * from / to: nothing is delayed, and blocks of any size give the same output.

Where the ratio is of small numbers, as 44.1 to 16 kHz is, the coefficients repeat after a period, and a period is one
row of a matrix product. Else each output takes the nearest of many shifts of the filter.
"""

from __future__ import annotations

from math import gcd
from typing import Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

_STOPBAND_DB: Final = 84.0
_PASSBAND_SHARE: Final = 0.9
# Per sample of the lower rate: an error of -78 dB where the sound changes fastest.
_SHIFTS: Final = 4096
# A period's matrix: outputs of a row worth a matrix product, and the most coefficients that are kept.
_ROW_OUTPUTS: Final = 128
_COEFFICIENTS_MAX: Final = 1 << 21
_GATHERED_MAX: Final = 1 << 20


class Resampler:
    """Changes the rate of one stream of sound."""

    def __init__(self, from_hz: int, to_hz: int) -> None:
        common = gcd(from_hz, to_hz)
        self._step_in, self._step_out = from_hz // common, to_hz // common
        nyquist = min(1.0, to_hz / from_hz) / 2
        self._cutoff = nyquist * (1 + _PASSBAND_SHARE) / 2
        # Kaiser's formula for the length that a transition band of this width needs.
        width = nyquist * (1 - _PASSBAND_SHARE)
        self._half = int(np.ceil((_STOPBAND_DB - 7.95) / (14.36 * width) / 2)) + 1
        # The filter reaches back half its length: silence before the first sample.
        self._held: NDArray[np.float32] = np.zeros(self._half, np.float32)
        self._held_from = -self._half
        self._taken = 0
        self._given = 0
        self._shifts = max(_SHIFTS * min(to_hz, from_hz) // from_hz, 1)
        periods = -(-_ROW_OUTPUTS // self._step_out)
        self._row_in, self._row_out = periods * self._step_in, periods * self._step_out
        self._is_periodic = (self._row_in + 2 * self._half) * self._row_out <= _COEFFICIENTS_MAX
        self._matrix = self._period_matrix() if self._is_periodic else self._shift_table()

    def push(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take the next samples, of any number; give what is complete by now, which may be nothing."""
        self._taken += len(samples)
        self._held = np.concatenate([self._held, np.asarray(samples, np.float32)])
        return self._ready()

    def finish(self) -> NDArray[np.float32]:
        """The rest: as many samples in all as last as long as those taken, rounded up."""
        total = -(-self._taken * self._step_out // self._step_in)
        missing = total - self._given
        padding = 2 * self._half + self._row_in + self._step_in
        self._held = np.concatenate([self._held, np.zeros(padding, np.float32)])
        return self._ready()[:missing]

    def _ready(self) -> NDArray[np.float32]:
        # An output at input time t needs the inputs up to floor(t) + half.
        inputs = self._held_from + len(self._held) - self._half
        if self._is_periodic:
            count = inputs // self._row_in * self._row_out - self._given
        else:
            count = -(-inputs * self._step_out // self._step_in) - self._given
        if count <= 0:
            return np.zeros(0, np.float32)
        found = self._periods(count // self._row_out) if self._is_periodic else self._shifted(count)
        self._given += count
        first = self._given * self._step_in // self._step_out - self._half
        self._held = self._held[first - self._held_from :].copy()
        self._held_from = first
        return found

    def _filter(self, offsets: NDArray[np.float64]) -> NDArray[np.float64]:
        """The filter at offsets in input samples."""
        beta = 0.1102 * (_STOPBAND_DB - 8.7)
        inside = np.clip(1 - (offsets / self._half) ** 2, 0, None)
        window = np.where(np.abs(offsets) <= self._half, np.i0(beta * np.sqrt(inside)) / np.i0(beta), 0)
        return 2 * self._cutoff * np.sinc(2 * self._cutoff * offsets) * window

    def _period_matrix(self) -> NDArray[np.float32]:
        """[inputs around a row, outputs of it]; the first input lies half a filter before the first output."""
        inputs = np.arange(self._row_in + 2 * self._half)[:, None] - self._half
        outputs = np.arange(self._row_out)[None] * self._step_in / self._step_out
        return self._filter(inputs - outputs).astype(np.float32)

    def _shift_table(self) -> NDArray[np.float32]:
        """[shift, input]: the filter for outputs that lie shift / shifts after an input."""
        inputs = np.arange(-self._half, self._half + 1)[None]
        return self._filter(inputs - np.arange(self._shifts + 1)[:, None] / self._shifts).astype(np.float32)

    def _periods(self, rows: int) -> NDArray[np.float32]:
        windows = sliding_window_view(self._held, len(self._matrix))[:: self._row_in][:rows]
        return (np.ascontiguousarray(windows) @ self._matrix).reshape(-1)

    def _shifted(self, count: int) -> NDArray[np.float32]:
        windows = sliding_window_view(self._held, 2 * self._half + 1)
        each = max(_GATHERED_MAX // (2 * self._half + 1), 1)
        parts = []
        for first in range(self._given, self._given + count, each):
            times = np.arange(first, min(first + each, self._given + count), dtype=np.int64) * self._step_in
            whole, rest = np.divmod(times, self._step_out)
            shift = (rest * self._shifts + self._step_out // 2) // self._step_out
            starts = whole - self._half - self._held_from
            parts.append(np.einsum("nt,nt->n", windows[starts], self._matrix[shift]))
        return np.concatenate(parts)
