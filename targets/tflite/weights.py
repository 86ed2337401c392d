"""Smaller weights: large constants as fp16 or int8, which a DEQUANTIZE in front of their reader makes float32 again.

int8 is symmetric, with a scale for each output channel. Activations stay float32.
"""

import numpy as np

from flagsplit.targets.interface import Array
from flagsplit.targets.tflite.program import Operator, Program, Tensor

_LEAST_ELEMENTS = 1024
_MOST_INT8 = 127
_CHANNEL_AXIS = {
    "BATCH_MATMUL": None,
    "CONV_2D": 0,
    "CONV_3D": 4,
    "DEPTHWISE_CONV_2D": 3,
    "FULLY_CONNECTED": 0,
    "GATHER": None,
    "TRANSPOSE_CONV": 0,
}
"""Operators whose weights are quantized, with the axis of the output channels; None is one scale for all."""


def with_weights(program: Program, kind: str) -> Program:
    """The program with its large constants in another form.

    Args:
        program: stays as it is.
        kind: "fp32", "fp16" or "int8".
    """
    if kind == "fp32":
        return program
    made: dict[tuple[Tensor, int | None], Tensor] = {}
    operators: list[Operator] = []
    for operator in program.operators:
        inputs = []
        for each in operator.inputs:
            if each is None or not _large(each) or (kind == "int8" and operator.code not in _CHANNEL_AXIS):
                inputs.append(each)
                continue
            key = (each, _CHANNEL_AXIS.get(operator.code))
            if key not in made:
                assert each.data is not None
                stored = _halved(each.data) if kind == "fp16" else _quantized(each.data, key[1])
                made[key] = Tensor(each.shape, "float32")
                operators.append(Operator("DEQUANTIZE", (stored,), (made[key],)))
            inputs.append(made[key])
        operators.append(Operator(operator.code, tuple(inputs), operator.outputs, operator.options))
    return Program(program.inputs, program.outputs, operators)


def _large(x: Tensor) -> bool:
    return x.data is not None and x.dtype == "float32" and x.size >= _LEAST_ELEMENTS


def _halved(data: Array) -> Tensor:
    """As fp16; what it cannot hold becomes the largest that it can."""
    most = np.finfo(np.float16).max
    half = np.clip(np.asarray(data, np.float32), -most, most).astype(np.float16)
    return Tensor(half.shape, "float16", half)


def _quantized(data: Array, axis: int | None) -> Tensor:
    values = np.asarray(data, np.float32)
    others = tuple(at for at in range(values.ndim) if at != axis)
    most = np.abs(values).max(axis=others, keepdims=True)
    scale = np.where(most > 0, most / _MOST_INT8, 1).astype(np.float32)
    rounded = np.clip(np.rint(values / scale), -_MOST_INT8, _MOST_INT8).astype(np.int8)
    return Tensor(rounded.shape, "int8", rounded, scale.reshape(-1), axis or 0)
