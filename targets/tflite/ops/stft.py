"""STFT: frames are gathered, and transformed by a product that has the window in it."""

import numpy as np
import onnx_ir as ir

from flagsplit.targets.tflite.builder import Builder
from flagsplit.targets.tflite.ops.dft import transformed
from flagsplit.targets.tflite.program import Refused


def lower(builder: Builder, node: ir.Node) -> None:
    """Of [batch, length, parts] to [batch, frames, frequencies, 2]."""
    x, step = builder.take(node, 0), int(builder.fixed(node, 1).reshape(()))
    window, given = builder.maybe(node, 2), builder.maybe_fixed(node, 3)
    length = int(given.reshape(())) if given is not None else window.size if window is not None else x.shape[1]
    if window is not None and window.size != length:
        raise Refused(f"takes a window as long as a frame of {length}, came one of {window.size}")
    signal = x if x.rank == 3 else builder.reshape(x, (*x.shape, 1))
    count = 1 + (signal.shape[1] - length) // step
    places = np.arange(count)[:, None] * step + np.arange(length)
    frames = builder.gather(signal, builder.const(places.astype(np.int32)), 1)
    if window is not None and window.data is None:
        frames = builder.mul(frames, builder.reshape(window, (length, 1)))
    known = None if window is None or window.data is None else window.data.astype(np.float64)
    onesided = bool(node.attributes.get_int("onesided", 1))
    builder.give(node, transformed(builder, frames, length, onesided=onesided, window=known))
