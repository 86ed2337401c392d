"""ConvTranspose of one or two spatial axes: TRANSPOSE_CONV without padding, then cut or padded to the node's size.

Its bias goes in with the weights, unless there are groups or more is padded: a pad gets the bias too.
"""

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
    sizes = [(last.shape[-3:][at] - 1) * each + weights.shape[2 + at] for at, each in enumerate([1, *strides][-2:])]
    low, missing = _fit(node, sizes[-count:], strides)
    bias = builder.maybe(node, 2)
    inside = bias if bias is not None and bias.data is not None and groups == 1 and not any(missing) else None
    made = _by_group(builder, last, weights, inside, sizes, [1, *strides][-2:], groups)
    if count == 1:
        made = builder.reshape(made, (made.shape[0], *made.shape[2:]))
    made = builder.pad(made, [(0, 0), *((0, each) for each in missing), (0, 0)])
    made = builder.slice(made, [0, *low, 0], [made.shape[0], *_out(node), made.shape[-1]])
    made = made if bias is None or bias is inside else builder.add(made, bias)
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


def _by_group(
    builder: Builder,
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None,
    sizes: list[int],
    strides: list[int],
    groups: int,
) -> Tensor:
    each = x.shape[-1] // groups
    shape = (x.shape[0], *sizes, weights.shape[1])
    parts = []
    for group in range(groups):
        part = builder.cut(x, 3, group * each, each)
        kernel = builder.transpose(builder.cut(weights, 0, group * each, each), (1, 2, 3, 0))
        inputs = [builder.ints(shape), kernel, part, *([] if bias is None else [bias])]
        parts.append(
            builder.op("TRANSPOSE_CONV", inputs, shape, "float32", padding=1, strideH=strides[0], strideW=strides[1])
        )
    return builder.concat(parts, 3)


def _fit(node: ir.Node, sizes: list[int], strides: list[int]) -> tuple[list[int], list[int]]:
    """How much of the whole is cut off in front, and how much it lacks at the end."""
    count, out = len(strides), _out(node)
    over = [sizes[at] + _extra(node, at, count) - out[at] for at in range(count)]
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    low = ints_of(node, "pads", [0] * (2 * count))[:count]
    if auto in ("SAME_UPPER", "SAME_LOWER") or "output_shape" in node.attributes:
        low = [max(each, 0) // 2 if auto == "SAME_UPPER" else max(each, 0) - max(each, 0) // 2 for each in over]
    elif auto == "VALID":
        low = [0] * count
    return low, [max(low[at] + out[at] - sizes[at], 0) for at in range(count)]


def _out(node: ir.Node) -> list[int]:
    shape = node.outputs[0].shape
    assert shape is not None
    return [int(dim) for dim in shape[2:] if isinstance(dim, int)]


def _extra(node: ir.Node, at: int, count: int) -> int:
    return ints_of(node, "output_padding", [0] * count)[at]
