"""Conv of one to three spatial axes, with any groups."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from flagsplit.targets.tflite.builder import Builder
from flagsplit.targets.tflite.ops.windows import Windows, windows_of
from flagsplit.targets.tflite.program import Refused, Tensor, nchw, nhwc

_SAME, _VALID = 0, 1


def lower(builder: Builder, node: ir.Node) -> None:
    x, weights = builder.take(node, 0), builder.take(node, 1)
    groups = node.attributes.get_int("group", 1)
    if not 3 <= x.rank <= 5:
        raise Refused(f"TFLite convolves over 1 to 3 axes, came {x.rank - 2}")
    bias = builder.maybe(node, 2) or builder.const(np.zeros(weights.shape[0], np.float32))
    window = windows_of(node, weights.shape[2:], x.shape[2:])
    last = builder.transpose(x, nhwc(x.rank))
    made = {3: _along_line, 4: _plane, 5: _volume}[x.rank](builder, last, weights, bias, window, groups)
    builder.give(node, builder.transpose(made, nchw(x.rank)))


def padded(builder: Builder, x: Tensor, needed: Sequence[tuple[int, int]], value: float = 0) -> Tensor:
    """A tensor with channels last, padded or cut in space."""
    over = [min(high, 0) for _, high in needed]
    if any(over):
        size = [x.shape[0], *(each + cut for each, cut in zip(x.shape[1:-1], over, strict=True)), x.shape[-1]]
        x = builder.slice(x, [0] * x.rank, size)
    return builder.pad(x, [(0, 0), *((low, max(high, 0)) for low, high in needed), (0, 0)], value)


def _along_line(builder: Builder, x: Tensor, weights: Tensor, bias: Tensor, window: Windows, groups: int) -> Tensor:
    """As a plane of height 1."""
    flat = Windows(*((each, *line) for each, line in zip((1, 1, 1, 1, 0, 0, 1), _fields(window), strict=True)))
    plane = builder.reshape(x, (x.shape[0], 1, *x.shape[1:]))
    kernel = builder.reshape(weights, (*weights.shape[:2], 1, weights.shape[2]))
    made = _plane(builder, plane, kernel, bias, flat, groups)
    return builder.reshape(made, (made.shape[0], *made.shape[2:]))


def _fields(window: Windows) -> tuple[tuple[int, ...], ...]:
    return (window.kernel, window.strides, window.dilations, window.sizes, window.low, window.high, window.out)


def _plane(builder: Builder, x: Tensor, weights: Tensor, bias: Tensor, window: Windows, groups: int) -> Tensor:
    padding = _SAME if window.same and any(any(each) for each in window.needed) else _VALID
    if padding == _VALID:
        x = padded(builder, x, window.needed)
    channels, out = x.shape[-1], weights.shape[0]
    shape = (x.shape[0], *window.out, out)
    options: dict[str, Any] = {
        "padding": padding,
        "strideH": window.strides[0],
        "strideW": window.strides[1],
        "dilationHFactor": window.dilations[0],
        "dilationWFactor": window.dilations[1],
    }
    if groups == channels and groups > 1:
        kernel = builder.transpose(builder.reshape(weights, (1, *weights.shape[0:1], *weights.shape[2:])), (0, 2, 3, 1))
        options["depthMultiplier"] = out // channels
        return builder.op("DEPTHWISE_CONV_2D", [x, kernel, bias], shape, **options)
    kernel = builder.transpose(weights, (0, 2, 3, 1))
    return builder.op("CONV_2D", [x, kernel, bias], shape, **options)


def _volume(builder: Builder, x: Tensor, weights: Tensor, bias: Tensor, window: Windows, groups: int) -> Tensor:
    """Each group by itself, since CONV_3D takes none."""
    x = padded(builder, x, window.needed)
    kernel = builder.transpose(weights, (2, 3, 4, 1, 0))
    axes = ("D", "H", "W")
    options: dict[str, Any] = {"padding": _VALID}
    options |= {f"stride{axis}": window.strides[at] for at, axis in enumerate(axes)}
    options |= {f"dilation{axis}Factor": window.dilations[at] for at, axis in enumerate(axes)}
    shape = (x.shape[0], *window.out, weights.shape[0])
    each_in, each_out = x.shape[-1] // groups, shape[-1] // groups
    parts = []
    for group in range(groups):
        part = builder.cut(x, 4, group * each_in, each_in)
        weights = builder.cut(kernel, 4, group * each_out, each_out)
        share = builder.cut(bias, 0, group * each_out, each_out)
        parts.append(builder.op("CONV_3D", [part, weights, share], (*shape[:-1], each_out), **options))
    return builder.concat(parts, 4)
