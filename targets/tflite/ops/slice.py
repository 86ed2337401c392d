"""Slice: by STRIDED_SLICE, backwards after REVERSE_V2."""

import onnx_ir as ir

from flagsplit.targets.tflite.attributes import front
from flagsplit.targets.tflite.builder import Builder
from flagsplit.targets.tflite.program import Refused, Tensor


def lower(builder: Builder, node: ir.Node) -> None:
    x = builder.take(node, 0)
    starts, ends = (builder.fixed(node, at).tolist() for at in (1, 2))
    axes, steps = builder.maybe_fixed(node, 3), builder.maybe_fixed(node, 4)
    along = list(range(len(starts))) if axes is None else [front(int(each), x.rank) for each in axes.tolist()]
    begin, stop, step, shape = [0] * x.rank, list(x.shape), [1] * x.rank, list(x.shape)
    for at, axis in enumerate(along):
        stride = 1 if steps is None else int(steps.tolist()[at])
        places = range(x.shape[axis])[slice(starts[at], ends[at], stride)]
        if not len(places):
            raise Refused("TFLite has no empty tensors")
        if stride < 0:
            x = reverse(builder, x, axis)
            places = range(x.shape[axis])[x.shape[axis] - 1 - places[0] :: -stride][: len(places)]
        begin[axis], stop[axis], step[axis], shape[axis] = places[0], places[-1] + 1, abs(stride), len(places)
    builder.give(node, strided(builder, x, begin, stop, step, shape))


def reverse(builder: Builder, x: Tensor, axis: int) -> Tensor:
    return builder.op("REVERSE_V2", [x, builder.ints([axis])], x.shape)


def strided(
    builder: Builder, x: Tensor, begin: list[int], stop: list[int], step: list[int], shape: list[int]
) -> Tensor:
    if all(each == 1 for each in step):
        return builder.slice(x, begin, shape)
    return builder.op("STRIDED_SLICE", [x, *(builder.ints(each) for each in (begin, stop, step))], shape)
