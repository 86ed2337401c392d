"""MaxPool, AveragePool and LpPool, and those over all of space.

TFLite's pools have two axes, no dilation, and pad as SAME or not at all. Other pads are put around explicitly, averages
corrected by how much of each window counts, and what is no plain plane is pooled axis by axis from shifted slices.
"""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from flagsplit.targets.tflite.attributes import ints_of
from flagsplit.targets.tflite.builder import Builder
from flagsplit.targets.tflite.ops.conv import padded
from flagsplit.targets.tflite.ops.sign import absolute
from flagsplit.targets.tflite.ops.windows import Windows, windows_of
from flagsplit.targets.tflite.program import Refused, Tensor, nchw, nhwc

_LOWEST = float(np.finfo(np.float32).min)
_MOST_SLICES = 64


def lower_max(builder: Builder, node: ir.Node) -> None:
    if len(node.outputs) > 1 and (node.outputs[1].name or node.outputs[1].uses()):
        raise Refused("TFLite's MAX_POOL_2D gives no indices")
    x, window = _read(builder, node)
    if x.dtype != "float32":
        raise Refused(f"TFLite has no MAX_POOL_2D of {x.dtype}")
    last = builder.transpose(x, nhwc(x.rank))
    same = window.same and _plain(window)
    if not same:
        last = padded(builder, last, window.needed, _LOWEST)
    builder.give(node, builder.transpose(_pool(builder, "MAX_POOL_2D", last, window, same), nchw(x.rank)))


def lower_average(builder: Builder, node: ir.Node) -> None:
    x, window = _read(builder, node)
    last = builder.transpose(x, nhwc(x.rank))
    counts_pads = bool(node.attributes.get_int("count_include_pad", 0))
    if window.same and _plain(window) and not counts_pads:
        made = _pool(builder, "AVERAGE_POOL_2D", last, window, same=True)
    else:
        made = _pool(builder, "AVERAGE_POOL_2D", padded(builder, last, window.needed), window, same=False)
        made = _corrected(builder, made, window, counts_pads)
    builder.give(node, builder.transpose(made, nchw(x.rank)))


def lower_lp(builder: Builder, node: ir.Node) -> None:
    x, window = _read(builder, node)
    power = node.attributes.get_int("p", 2)
    last = builder.transpose(x, nhwc(x.rank))
    raised = _power(builder, last, power)
    mean = _pool(builder, "AVERAGE_POOL_2D", padded(builder, raised, window.needed), window, same=False)
    total = builder.mul(mean, float(np.prod(window.kernel)))
    builder.give(node, builder.transpose(_root(builder, total, power), nchw(x.rank)))


def lower_global(code: str) -> Callable[[Builder, ir.Node], None]:
    """Over all of space, by a reduction."""

    def lower(builder: Builder, node: ir.Node) -> None:
        x = builder.take(node, 0)
        builder.give(node, builder.reduce(code, x, list(range(2, x.rank))))

    return lower


lower_global_average = lower_global("MEAN")
lower_global_max = lower_global("REDUCE_MAX")


def lower_global_lp(builder: Builder, node: ir.Node) -> None:
    x, power = builder.take(node, 0), node.attributes.get_int("p", 2)
    total = builder.reduce("SUM", _power(builder, x, power), list(range(2, x.rank)))
    builder.give(node, _root(builder, total, power))


def _power(builder: Builder, x: Tensor, power: int) -> Tensor:
    if power == 1:
        return absolute(builder, x)
    return builder.mul(x, x) if power == 2 else builder.binary("POW", absolute(builder, x), builder.like(power, x))


def _root(builder: Builder, x: Tensor, power: int) -> Tensor:
    if power == 1:
        return x
    return builder.unary("SQRT", x) if power == 2 else builder.binary("POW", x, builder.like(1 / power, x))


def _read(builder: Builder, node: ir.Node) -> tuple[Tensor, Windows]:
    x = builder.take(node, 0)
    if not 3 <= x.rank <= 5:
        raise Refused(f"pools over 1 to 3 axes, came {x.rank - 2}")
    return x, windows_of(node, ints_of(node, "kernel_shape", []), x.shape[2:])


def _plain(window: Windows) -> bool:
    """Whether TFLite's own pools do it."""
    return len(window.kernel) <= 2 and all(each == 1 for each in window.dilations) and len(window.kernel) == 2


def _pool(builder: Builder, code: str, x: Tensor, window: Windows, same: bool) -> Tensor:
    """Pool what has channels last and needs no more padding than SAME."""
    shape = (x.shape[0], *window.out, x.shape[-1])
    if not all(each == 1 for each in window.dilations) or len(window.kernel) == 3:
        return _from_slices(builder, code, x, window)
    kernel, strides = (1, *window.kernel)[-2:], (1, *window.strides)[-2:]
    flat = builder.reshape(x, (x.shape[0], 1, *x.shape[1:])) if x.rank == 3 else x
    made = builder.op(
        code,
        [flat],
        (shape[0], 1, *shape[1:]) if x.rank == 3 else shape,
        padding=0 if same else 1,
        strideH=strides[0],
        strideW=strides[1],
        filterHeight=kernel[0],
        filterWidth=kernel[1],
    )
    return builder.reshape(made, shape)


def _from_slices(builder: Builder, code: str, x: Tensor, window: Windows) -> Tensor:
    """Axis by axis, the maximum or sum of one slice for each place in the window."""
    if sum(window.kernel) > _MOST_SLICES:
        raise Refused(f"a window of {window.kernel}, with dilations or over three axes, takes too many operators")
    for axis in range(len(window.kernel)):
        whole: Tensor | None = None
        for place in range(window.kernel[axis]):
            part = _every(builder, x, axis + 1, place * window.dilations[axis], window.strides[axis], window.out[axis])
            joined = "MAXIMUM" if code == "MAX_POOL_2D" else "ADD"
            whole = part if whole is None else builder.binary(joined, whole, part)
        assert whole is not None
        x = whole
    return x if code == "MAX_POOL_2D" else builder.mul(x, 1 / float(np.prod(window.kernel)))


def _every(builder: Builder, x: Tensor, axis: int, begin: int, step: int, count: int) -> Tensor:
    start, end, steps, shape = [0] * x.rank, list(x.shape), [1] * x.rank, list(x.shape)
    start[axis], end[axis], steps[axis], shape[axis] = begin, begin + (count - 1) * step + 1, step, count
    bounds = [builder.ints(each) for each in (start, end, steps)]
    return builder.op("STRIDED_SLICE", [x, *bounds], shape)


def _corrected(builder: Builder, x: Tensor, window: Windows, counts_pads: bool) -> Tensor:
    """By how many elements of each window count: those inside the input, or inside it and its pads."""
    factor = np.ones((1,) * (len(window.kernel) + 2), np.float64)
    for axis, size in enumerate(window.sizes):
        first, last = (0, size) if not counts_pads else (-window.low[axis], size + window.high[axis])
        starts = np.arange(window.out[axis]) * window.strides[axis] - window.low[axis]
        places = starts[:, None] + np.arange(window.kernel[axis]) * window.dilations[axis]
        counted = ((places >= first) & (places < last)).sum(1)
        shape = [1] * factor.ndim
        shape[axis + 1] = window.out[axis]
        factor = factor * (window.kernel[axis] / np.maximum(counted, 1)).reshape(shape)
    return x if np.all(factor == 1) else builder.mul(x, builder.const(factor.astype(np.float32)))
