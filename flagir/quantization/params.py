"""Scale and zero point: how int8 stands for real numbers, `real = scale * (integer - zero_point)`.

Activations are asymmetric, weights symmetric (zero point 0) with a scale for each output channel, and a bias is int32
in units of input scale times weight scale: the scheme of Jacob et al., "Quantization and Training of Neural Networks
for Efficient Integer-Arithmetic-Only Inference" (2018), which int8 engines share.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LOWEST, HIGHEST = -128, 127
_MOST_WEIGHT = 127
_MOST_BIAS = 1 << 30
_BIAS_STEPS = 1 << 16
"""A bias is resolved to at least this many steps, by a larger number of which small weights lose nothing."""

Array = NDArray[Any]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class QuantParams:
    """Of one tensor as a whole.

    Attributes:
        scale: positive; a float32 number.
        zero_point: the int8 that stands for 0, in [-128, 127].
    """

    scale: float
    zero_point: int

    def quantized(self, array: Array) -> NDArray[np.int8]:
        """Rounded half to even and saturated, as QuantizeLinear does it."""
        steps = np.rint(np.asarray(array, np.float32) / np.float32(self.scale)) + self.zero_point
        return np.asarray(np.clip(steps, LOWEST, HIGHEST), np.int8)


def params_of_range(low: float, high: float) -> QuantParams:
    """The parameters that spread a range over int8; the range is widened to hold 0, which is then exact."""
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    scale = float(np.float32((high - low) / (HIGHEST - LOWEST)))
    if not np.isfinite(scale) or scale < np.finfo(np.float32).tiny:
        return QuantParams(1.0, 0)
    zero = int(np.clip(np.rint(LOWEST - low / scale), LOWEST, HIGHEST))
    return QuantParams(scale, zero)


def params_of_constant(array: Array) -> QuantParams:
    """Symmetric parameters for a constant, so that a lone number is exact."""
    most = float(np.abs(np.asarray(array, np.float64)).max(initial=0.0))
    scale = float(np.float32(most / _MOST_WEIGHT))
    return QuantParams(scale if scale >= np.finfo(np.float32).tiny else 1.0, 0)


def weight_scales(weights: Array, axis: int, input_scale: float, bias: Array | None) -> Floats:
    """A scale for each output channel.

    A channel whose weights are tiny beside its bias gets a larger scale, or its bias would not fit into int32; one of
    nothing but zeros gets one in which its bias is still resolved.

    Args:
        weights: finite numbers.
        axis: of the output channels.
        input_scale: of the activation that they are multiplied with.
        bias: one number for each channel.
    """
    others = tuple(at for at in range(weights.ndim) if at != axis)
    most = np.abs(np.asarray(weights, np.float64)).max(axis=others)
    scales = most / _MOST_WEIGHT
    if bias is not None:
        offsets = np.abs(np.asarray(bias, np.float64)).reshape(-1) / input_scale
        scales = np.maximum(scales, offsets / _MOST_BIAS)
        scales = np.where(most > 0, scales, offsets / _BIAS_STEPS)
    return np.where(scales > np.finfo(np.float32).tiny, scales, 1.0).astype(np.float32)


def quantized_weights(weights: Array, scales: Floats, axis: int) -> NDArray[np.int8]:
    """Weights in [-127, 127]."""
    shape = [-1 if at == axis else 1 for at in range(weights.ndim)]
    steps = np.rint(np.asarray(weights, np.float32) / scales.reshape(shape))
    return np.asarray(np.clip(steps, -_MOST_WEIGHT, _MOST_WEIGHT), np.int8)


def quantized_bias(bias: Array, scales: Floats) -> NDArray[np.int32]:
    """A bias in steps of the given scales, one for each channel."""
    steps = np.rint(np.asarray(bias, np.float64).reshape(-1) / scales.astype(np.float64))
    return np.clip(steps, -_MOST_BIAS, _MOST_BIAS).astype(np.int32)
