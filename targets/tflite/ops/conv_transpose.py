"""ConvTranspose of one or two spatial axes: TRANSPOSE_CONV without padding, then cut or padded to the node's size."""

import numpy as np
import onnx_ir as ir

from flagsplit.targets.tflite.attributes import ints_of
from flagsplit.targets.tflite.builder import Builder
from flagsplit.targets.tflite.program import Refused, Tensor, nchw, nhwc


def lower(builder: Builder, node: ir.Node) -> None:
    x, weights = builder.take(node, 0), builder.take(node, 1)
    if x.rank not in (3, 4):
        raise Refused(f"TFLite has transposed convolutions over 1 or 2 axes, came {x.rank - 2}")
    count, groups = x.rank - 2, node.attributes.get_int("group", 1)
    strides, dilations = ints_of(node, "strides", [1] * count), ints_of(node, "dilations", [1] * count)
    last, weights = builder.transpose(x, nhwc(x.rank)), _spread(builder, weights, dilations)
    if count == 1:
        last = builder.reshape(last, (last.shape[0], 1, *last.shape[1:]))
        weights = builder.reshape(weights, (*weights.shape[:2], 1, weights.shape[2]))
    made = _by_group(builder, last, weights, [1, *strides][-2:], groups)
    if count == 1:
        made = builder.reshape(made, (made.shape[0], *made.shape[2:]))
    made = _fitted(builder, node, made, strides)
    bias = builder.maybe(node, 2)
    made = made if bias is None else builder.add(made, bias)
    builder.give(node, builder.transpose(made, nchw(x.rank)))


def _spread(builder: Builder, weights: Tensor, dilations: list[int]) -> Tensor:
    """With zeros between: TRANSPOSE_CONV has no dilations."""
    if all(each == 1 for each in dilations):
        return weights
    if weights.data is None:
        raise Refused("TFLite has no dilated transposed convolution of weights that are computed")
    sizes = [(size - 1) * each + 1 for size, each in zip(weights.shape[2:], dilations, strict=True)]
    wide = np.zeros((*weights.shape[:2], *sizes), np.float32)
    wide[(slice(None), slice(None), *(slice(None, None, each) for each in dilations))] = weights.data
    return builder.const(wide)


def _by_group(builder: Builder, x: Tensor, weights: Tensor, strides: list[int], groups: int) -> Tensor:
    each = x.shape[-1] // groups
    out = weights.shape[1]
    sizes = [(x.shape[1 + at] - 1) * strides[at] + weights.shape[2 + at] for at in range(2)]
    shape = (x.shape[0], *sizes, out)
    parts = []
    for group in range(groups):
        part = builder.cut(x, 3, group * each, each)
        kernel = builder.transpose(builder.cut(weights, 0, group * each, each), (1, 2, 3, 0))
        inputs = [builder.ints(shape), kernel, part]
        parts.append(
            builder.op("TRANSPOSE_CONV", inputs, shape, "float32", padding=1, strideH=strides[0], strideW=strides[1])
        )
    return builder.concat(parts, 3)


def _fitted(builder: Builder, node: ir.Node, x: Tensor, strides: list[int]) -> Tensor:
    """Cut by the pads, and padded at the end where the node's output is larger."""
    shape = node.outputs[0].shape
    assert shape is not None
    count = len(strides)
    out = [int(dim) for dim in shape[2:] if isinstance(dim, int)]
    over = [x.shape[1 + at] + _extra(node, at, count) - out[at] for at in range(count)]
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    pads = ints_of(node, "pads", [0] * (2 * count))
    low = pads[:count]
    if auto in ("SAME_UPPER", "SAME_LOWER") or "output_shape" in node.attributes:
        low = [max(each, 0) // 2 if auto == "SAME_UPPER" else max(each, 0) - max(each, 0) // 2 for each in over]
    elif auto == "VALID":
        low = [0] * count
    missing = [max(low[at] + out[at] - x.shape[1 + at], 0) for at in range(count)]
    x = builder.pad(x, [(0, 0), *((0, each) for each in missing), (0, 0)])
    return builder.slice(x, [0, *low, 0], [x.shape[0], *out, x.shape[-1]])


def _extra(node: ir.Node, at: int, count: int) -> int:
    return ints_of(node, "output_padding", [0] * count)[at]
