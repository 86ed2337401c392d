"""Whisper's log-mel spectrogram, in NumPy and as the first nodes of an encoder.

Frames of 25 ms every 10 ms, the power of their spectrum in 80 (or 128) bands of the mel scale, its logarithm cut off 80
dB below the loudest, brought to about -1..1. Constants and scale are those of openai/whisper's `audio.py`, bands those
of `librosa.filters.mel`. As nodes, an encoder may be cut at the samples or at the spectrogram, whichever is smaller.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from flagsplit.errors import InputError
from flagsplit.flagir.programs.writer import GraphWriter, declared

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

RATE_HZ: Final = 16_000
WINDOW: Final = 400
"""Samples of a frame."""
HOP: Final = 160
"""Samples from one frame to the next."""
_HOPS: Final = -(-WINDOW // HOP)
"""That a frame touches."""
_BINS: Final = WINDOW // 2 + 1
_LEAST: Final = 1e-10
"""Power that silence counts as."""
_NO_ZERO, _LEAST_PEAK = 1e-12, 1e-4
"""What keeps logarithms finite; both are below what comes out."""
_LOUD: Final = 16.0
"""Powers are taken so many times as high: the loudest stays within float16, whose normal numbers then reach nearly nine
decades below it. By Parseval's theorem no band of samples within -1..1 is above 2,600."""
_DECADES: Final = 8.0
"""Of power, that count below the loudest of all bands and frames."""
_MOVE: Final = 4.0
_SCALE: Final = 4.0
"""Decades are moved, then divided, to lie about 0."""


def log_mel(samples: Floats, bands: int, steps: int) -> Floats:
    """The spectrogram of a sound.

    Args:
        samples: [samples] at 16 kHz, -1..1, at most `steps` * 160 of them; silence follows.
        bands: of the mel scale.
        steps: how many frames.

    Returns:
        [bands, steps].

    Raises:
        InputError: there are more samples.
    """
    if samples.ndim != 1 or len(samples) > steps * HOP:
        raise InputError(f"expected at most {steps * HOP} samples of one channel, came {list(samples.shape)}")
    padded = np.pad(samples.astype(np.float64), (0, steps * HOP - len(samples)))
    padded = np.pad(padded, WINDOW // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[: steps * HOP : HOP]
    power = np.abs(np.fft.rfft(frames * _hann(), axis=-1)) ** 2
    decades = np.log10(np.maximum(mel_bands(bands) @ power.T, _LEAST))
    result: Floats = ((np.maximum(decades, decades.max() - _DECADES) + _MOVE) / _SCALE).astype(np.float32)
    return result


def write_log_mel(g: GraphWriter, audio: ir.Value, bands: int, steps: int) -> ir.Value:
    """The nodes that make `log_mel` [batch, bands, steps] of `audio` [batch, samples], float32.

    The Fourier transform is a convolution with 402 waves: products are what every engine and chip is good at, and these
    are a hundredth of the work of the smallest encoder. Samples are laid out in rows of one hop each first: chips have
    limits on how long an axis may be, which half a minute of samples passes.
    """
    missing = g.op("Sub", g.numbers(steps * HOP), g.op("Shape", audio, start=1))
    whole = g.op("Pad", audio, g.op("Concat", g.numbers(0, 0, 0), missing, axis=0), mode="constant")
    rows = steps + _HOPS - 1
    mirrored = g.op("Pad", whole, g.numbers(0, WINDOW // 2, 0, (rows - steps) * HOP - WINDOW // 2), mode="reflect")
    laid_out = g.op("Transpose", g.op("Reshape", mirrored, g.numbers(0, rows, HOP)), perm=[0, 2, 1])
    laid_out = declared(laid_out, ["batch", HOP, rows])
    # As loud as can be, and what that took put back after the logarithm: the power of a quiet voice is below float16.
    peak = g.op("ReduceMax", g.op("Abs", laid_out), g.numbers(1, 2), keepdims=1)
    peak = g.op("Max", peak, g.constant(_LEAST_PEAK, np.float32))
    waves = g.constant(_waves(), np.float32, "log_mel.waves")
    spectrum = g.op("Conv", g.op("Div", laid_out, peak), waves, kernel_shape=[_HOPS])
    real, imaginary = g.ops("Split", g.op("Mul", spectrum, spectrum), outputs=2, axis=1, num_outputs=2)
    weights = g.constant(mel_bands(bands) * _LOUD, np.float32, "log_mel.bands")
    power = g.op("Max", g.op("MatMul", weights, g.op("Add", real, imaginary)), g.constant(_NO_ZERO * _LOUD, np.float32))
    decade = 1 / np.log(10) / _SCALE
    moved = g.op("Mul", g.op("Log", peak), g.constant(2 * decade, np.float32))
    moved = g.op("Add", moved, g.constant(_MOVE / _SCALE - decade * np.log(_LOUD), np.float32))
    scaled = g.op("Add", g.op("Mul", g.op("Log", power), g.constant(decade, np.float32)), moved)
    loudest = g.op("ReduceMax", scaled, g.numbers(1, 2), keepdims=1)
    floor = g.op("Sub", loudest, g.constant(_DECADES / _SCALE, np.float32))
    floor = g.op("Max", floor, g.constant((np.log10(_LEAST) + _MOVE) / _SCALE, np.float32))
    return declared(g.op("Max", scaled, floor, name="log_mel"), ["batch", bands, steps])


def mel_bands(bands: int) -> Doubles:
    """The weight of each frequency in each band, [bands, 201]: triangles of equal area, even on Slaney's mel scale."""
    edges = _hz(np.linspace(0.0, _mel(RATE_HZ / 2), bands + 2))
    frequencies = np.linspace(0.0, RATE_HZ / 2, _BINS)
    rising = (frequencies - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - frequencies) / np.diff(edges)[1:, None]
    heights = 2.0 / (edges[2:] - edges[:-2])
    result: Doubles = np.maximum(0.0, np.minimum(rising, falling)) * heights[:, None]
    return result


_LINEAR_HZ: Final = 200.0 / 3
"""Of a mel, below 1 kHz."""
_BREAK_HZ: Final = 1000.0
_LOG_STEP: Final = float(np.log(6.4)) / 27
"""27 mels from 1 kHz to 6.4 kHz."""


def _mel(hz: float) -> float:
    return _BREAK_HZ / _LINEAR_HZ + float(np.log(hz / _BREAK_HZ)) / _LOG_STEP


def _hz(mels: Doubles) -> Doubles:
    above = np.maximum(mels - _BREAK_HZ / _LINEAR_HZ, 0.0)
    return np.where(above > 0, _BREAK_HZ * np.exp(_LOG_STEP * above), mels * _LINEAR_HZ)


def _hann() -> Doubles:
    """Hann's window, as one period."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)


def _waves() -> Doubles:
    """Cosines, then sines of all frequencies under the window, in rows of one hop: [402, 160, 3], zeros at the end."""
    angles = 2 * np.pi * np.outer(np.arange(_BINS), np.arange(WINDOW)) / WINDOW
    waves = np.concatenate([np.cos(angles), np.sin(angles)]) * _hann()
    padded = np.pad(waves, ((0, 0), (0, _HOPS * HOP - WINDOW)))
    return padded.reshape(2 * _BINS, _HOPS, HOP).transpose(0, 2, 1)
