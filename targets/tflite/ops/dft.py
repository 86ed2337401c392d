"""DFT: a product with the matrix that NumPy's transforms make of each unit."""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from flagsplit.targets.tflite.attributes import front
from flagsplit.targets.tflite.builder import Builder
from flagsplit.targets.tflite.ops.matmul import fully_connected
from flagsplit.targets.tflite.program import Refused, Tensor

_MOST_ELEMENTS = 1 << 24


def lower(builder: Builder, node: ir.Node) -> None:
    x = builder.take(node, 0)
    given, placed = builder.maybe_fixed(node, 1), builder.maybe_fixed(node, 2)
    axis = front(-2 if placed is None else int(placed.reshape(())), x.rank)
    inverse, onesided = (bool(node.attributes.get_int(name, 0)) for name in ("inverse", "onesided"))
    size = x.shape[axis]
    length = int(given.reshape(())) if given is not None else 2 * (size - 1) if inverse and onesided else size
    order = [at for at in range(x.rank - 1) if at != axis] + [axis, x.rank - 1]
    made = transformed(builder, builder.transpose(x, order), length, inverse, onesided)
    builder.give(node, builder.transpose(made, [order.index(at) for at in range(x.rank)]))


def transformed(
    builder: Builder,
    x: Tensor,
    length: int,
    inverse: bool = False,
    onesided: bool = False,
    window: NDArray[np.float64] | None = None,
) -> Tensor:
    """The transform along the last axis but one; the last has a real part, and an imaginary one if there are two."""
    size, parts = x.shape[-2:]
    if size * parts * length * 2 > _MOST_ELEMENTS:
        raise Refused(f"is written as a product, for up to {_MOST_ELEMENTS >> 20} Mi weights; came {size} to {length}")
    units = np.eye(size * parts).reshape(-1, size, parts)
    units = units if window is None else units * window[:, None]
    weights = _transform(units, length, inverse, onesided)
    flat = builder.reshape(x, (*x.shape[:-2], size * parts))
    made = fully_connected(builder, flat, builder.const(weights.reshape(len(units), -1).T.astype(np.float32)), None)
    return builder.reshape(made, (*x.shape[:-2], *weights.shape[1:]))


def _transform(x: NDArray[np.float64], length: int, inverse: bool, onesided: bool) -> NDArray[np.float64]:
    """Of [count, size, parts]."""
    signal = x[..., 0] + (1j * x[..., 1] if x.shape[-1] == 2 else 0)
    if inverse and onesided:
        return np.fft.irfft(signal, length)[..., None]
    found = (np.fft.ifft if inverse else np.fft.fft)(signal, length)
    found = found[:, : length // 2 + 1] if onesided else found
    return np.stack([found.real, found.imag], -1)
