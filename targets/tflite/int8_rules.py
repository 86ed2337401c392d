"""Which operators LiteRT computes in int8, and what each demands of scales: a table.

From TensorFlow's "LiteRT 8-bit quantization specification", each tried in ai-edge-litert 2.3.0. Weights are symmetric
with a scale for each output channel, a bias is int32 in units of input scale times weight scale.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from flagsplit.targets.interface import Array
from flagsplit.targets.tflite.program import Operator, Tensor

LOWEST, HIGHEST = -128, 127
_MOST_BIAS = (1 << 31) - 1


class Params(NamedTuple):
    """How int8 stands for real numbers: `scale * (integer - zero)`."""

    scale: float
    zero: int

    def quantized(self, data: Array) -> Array:
        """Constants as int8, rounded half to even and saturated."""
        steps = np.rint(np.asarray(data, np.float64) / self.scale) + self.zero
        return np.asarray(np.clip(steps, LOWEST, HIGHEST), np.int8)

    def tensor(self, shape: tuple[int, ...], data: Array | None = None) -> Tensor:
        """A tensor of int8."""
        return Tensor(shape, "int8", data, np.array([self.scale], np.float32), 0, self.zero)

    @property
    def low(self) -> float:
        """The lowest number that int8 stands for."""
        return self.scale * (LOWEST - self.zero)

    @property
    def high(self) -> float:
        """The highest."""
        return self.scale * (HIGHEST - self.zero)


def params_of(x: Tensor) -> Params:
    """Of a tensor of int8."""
    assert x.scales is not None
    return Params(float(x.scales[0]), x.zero)


MOVERS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(
        "BROADCAST_TO DEPTH_TO_SPACE EXPAND_DIMS GATHER MAX_POOL_2D PAD PADV2 REDUCE_MAX REDUCE_MIN RELU RELU6 RESHAPE "
        "RESIZE_NEAREST_NEIGHBOR REVERSE_V2 SLICE SPACE_TO_DEPTH SQUEEZE STRIDED_SLICE TILE TRANSPOSE".split(),
        (0,),
    ),
    "CONCATENATION": (),
    "MAXIMUM": (0, 1),
    "MINIMUM": (0, 1),
}
"""Operators that commute with rounding: both sides have one scale. With the inputs that are data; () is all."""

CLIPS = frozenset(("RELU", "RELU6", "MAXIMUM", "MINIMUM"))
"""Of these, those that saturate."""

FIXED = {"SOFTMAX": Params(1 / 256, -128), "LOGISTIC": Params(1 / 256, -128), "TANH": Params(1 / 128, 0)}
"""Operators whose output has a scale that the kernels demand."""

SAME = frozenset(("AVERAGE_POOL_2D", "RESIZE_BILINEAR"))
"""Operators whose kernels demand that both sides have one scale, and that round."""


@dataclass(frozen=True)
class Weighted:
    """Where an operator has its activation and bias, and the axis of the output channels in its weights, input 1."""

    x: int
    bias: int
    axis: int


WEIGHTED = {
    "CONV_2D": Weighted(0, 2, 0),
    "DEPTHWISE_CONV_2D": Weighted(0, 2, 3),
    "FULLY_CONNECTED": Weighted(0, 2, 0),
    "TRANSPOSE_CONV": Weighted(2, 3, 0),
}

OPERANDS = {
    **dict.fromkeys("ADD BATCH_MATMUL MUL PRELU SUB".split(), (0, 1)),
    **dict.fromkeys("HARD_SWISH LEAKY_RELU MEAN SUM".split(), (0,)),
    **dict.fromkeys((*FIXED, *SAME), (0,)),
}
"""The other operators that compute in int8, with the inputs that are data."""

CODES = frozenset((*MOVERS, *WEIGHTED, *OPERANDS, "QUANTIZE", "DEQUANTIZE"))
"""All operators that take int8."""


def data_inputs(operator: Operator) -> tuple[int, ...]:
    """The positions of what a mover moves."""
    return MOVERS[operator.code] or tuple(range(len(operator.inputs)))


def constant_operand(x: Tensor, rounded: bool = False) -> Tensor | None:
    """A constant as int8: as it was quantized, or a lone number exactly, or rounded; None if it is neither."""
    assert x.data is not None
    if x.steps is not None and x.steps.size and x.steps.min() == x.steps.max():
        params = Params(float(x.steps.reshape(-1)[0]), x.zero)
    elif (x.size == 1 or rounded) and x.dtype == "float32" and np.isfinite(x.data).all():
        most = float(np.abs(np.asarray(x.data, np.float32)).max())
        params = Params(float(np.float32(most / HIGHEST)) if most > np.finfo(np.float32).tiny * HIGHEST else 1.0, 0)
    else:
        return None
    return params.tensor(x.shape, params.quantized(x.data))


def weights_of(x: Tensor | None, axis: int) -> Tensor | None:
    """Constant weights as int8 with a scale for each of an axis; None if they were not quantized so."""
    if x is None or x.data is None or x.steps is None or x.zero != 0:
        return None
    scales = scales_along(x.steps, axis)
    if scales is None:
        return None
    return Tensor(x.shape, "int8", _whole(x), scales, axis)


def scales_along(steps: Array, axis: int) -> Array | None:
    """One number for each of an axis, if steps differ along no other."""
    others = tuple(at for at in range(steps.ndim) if at != axis)
    low, high = steps.min(axis=others), steps.max(axis=others)
    return np.array(low, np.float32) if np.array_equal(low, high) else None


def stored(x: Tensor) -> Tensor | None:
    """A constant that was quantized, as int8 again; None where its steps differ along more than one axis."""
    assert x.steps is not None
    if x.steps.min() == x.steps.max():
        return Tensor(x.shape, "int8", _whole(x), np.array([x.steps.min()], np.float32), 0, x.zero)
    for axis in range(x.rank):
        if (scales := scales_along(x.steps, axis)) is not None:
            return Tensor(x.shape, "int8", _whole(x), scales, axis, x.zero)
    return None


def _whole(x: Tensor) -> Array:
    assert x.data is not None
    assert x.steps is not None
    steps = np.rint(np.asarray(x.data, np.float32) / np.asarray(x.steps, np.float32)) + x.zero
    return np.asarray(np.clip(steps, LOWEST, HIGHEST), np.int8)


def bias_of(bias: Tensor | None, x: Params, weights: Tensor) -> Tensor | None:
    """A bias as int32; None if it is computed, not one number for each channel, or too large."""
    assert weights.scales is not None
    if bias is None or bias.data is None or bias.data.reshape(-1).size != weights.scales.size:
        return None
    scales = np.asarray(weights.scales, np.float64) * x.scale
    steps = np.rint(np.asarray(bias.data, np.float64).reshape(-1) / scales)
    if np.abs(steps).max(initial=0) > _MOST_BIAS:
        return None
    return Tensor(steps.shape, "int32", steps.astype(np.int32), scales.astype(np.float32), 0)
