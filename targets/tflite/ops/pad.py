"""Pad in all modes; below zero it cuts."""

import numpy as np
import onnx_ir as ir

from flagsplit.targets.tflite.attributes import front
from flagsplit.targets.tflite.builder import Builder
from flagsplit.targets.tflite.program import Refused, Tensor


def lower(builder: Builder, node: ir.Node) -> None:
    x = builder.take(node, 0)
    pads = builder.fixed(node, 1).tolist()
    axes = builder.maybe_fixed(node, 3)
    along = list(range(x.rank)) if axes is None else [front(int(each), x.rank) for each in axes.tolist()]
    amounts = [(0, 0)] * x.rank
    for at, axis in enumerate(along):
        amounts[axis] = (int(pads[at]), int(pads[at + len(along)]))
    x = _cut(builder, x, amounts)
    amounts = [(max(low, 0), max(high, 0)) for low, high in amounts]
    mode = node.attributes.get_string("mode", "constant")
    if mode != "constant":
        for axis, (low, high) in enumerate(amounts):
            x = _by_position(builder, x, axis, low, high, mode)
        builder.give(node, x)
        return
    value = builder.maybe_fixed(node, 2)
    fill = 0.0 if value is None else value.reshape(()).item()
    if x.dtype == "bool":
        wide = builder.pad(builder.cast(x, "int32"), amounts, int(fill))
        builder.give(node, builder.compare("NOT_EQUAL", wide, 0))
        return
    builder.give(node, builder.pad(x, amounts, fill))


def _cut(builder: Builder, x: Tensor, amounts: list[tuple[int, int]]) -> Tensor:
    begin = [max(-low, 0) for low, _ in amounts]
    size = [each - max(-low, 0) - max(-high, 0) for each, (low, high) in zip(x.shape, amounts, strict=True)]
    if min(size, default=1) <= 0:
        raise Refused("TFLite has no empty tensors")
    return builder.slice(x, begin, size)


def _by_position(builder: Builder, x: Tensor, axis: int, low: int, high: int, mode: str) -> Tensor:
    """Pad one axis by gathering: exact in every mode, also where the pad is longer than the tensor."""
    if not low and not high:
        return x
    modes = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}
    if mode not in modes:
        raise Refused(f"takes modes constant, reflect, edge and wrap, came {mode!r}")
    places = np.pad(np.arange(x.shape[axis]), (low, high), mode=mode)  # type: ignore[call-overload]
    return builder.gather(x, builder.ints(places.tolist()), axis)
