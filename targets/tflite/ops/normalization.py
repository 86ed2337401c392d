"""Normalizations: by fixed statistics, over the last axes, over space, over groups, over neighboring channels."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from flagsplit.targets.tflite.attributes import axis_of, ints_of
from flagsplit.targets.tflite.builder import Builder
from flagsplit.targets.tflite.ops.sign import absolute
from flagsplit.targets.tflite.program import Refused, Tensor


def lower_batch(builder: Builder, node: ir.Node) -> None:
    """x scale / sqrt(variance + epsilon) + (bias - mean of the same): two operators where the statistics are fixed."""
    if node.attributes.get_int("training_mode", 0):
        raise Refused("BatchNormalization in training mode")
    x, *rest = builder.takes(node)
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    if all(each.data is not None for each in rest):
        scale, bias, mean, variance = (np.asarray(each.data, np.float64) for each in rest)
        factor = scale / np.sqrt(variance + epsilon)
        slope = builder.const(factor.astype(np.float32))
        offset = builder.const((bias - mean * factor).astype(np.float32))
    else:
        scaled, shift, average, spread = rest
        slope = builder.div(scaled, builder.unary("SQRT", builder.add(spread, epsilon)))
        offset = builder.sub(shift, builder.mul(average, slope))
    slope, offset = (per_channel(builder, each, x.rank) for each in (slope, offset))
    builder.give(node, builder.add(builder.mul(x, slope), offset))


def per_channel(builder: Builder, x: Tensor, rank: int) -> Tensor:
    """A vector along the channels, which come second."""
    return builder.reshape(x, (1, x.size, *[1] * (rank - 2)) if rank > 1 else (x.size,))


def normalized(builder: Builder, x: Tensor, axes: Sequence[int], epsilon: float) -> Tensor:
    """Less its mean, over the root of its variance, along axes."""
    less = builder.sub(x, builder.reduce("MEAN", x, axes))
    variance = builder.reduce("MEAN", builder.mul(less, less), axes)
    return builder.mul(less, builder.unary("RSQRT", builder.add(variance, epsilon)))


def lower_layer(builder: Builder, node: ir.Node) -> None:
    x, scale, bias = builder.take(node, 0), builder.take(node, 1), builder.maybe(node, 2)
    axes = list(range(axis_of(node, x.rank, -1), x.rank))
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    mean = builder.reduce("MEAN", x, axes)
    less = builder.sub(x, mean)
    variance = builder.reduce("MEAN", builder.mul(less, less), axes)
    inverse = builder.unary("RSQRT", builder.add(variance, epsilon))
    made = builder.mul(builder.mul(less, inverse), scale)
    made = made if bias is None else builder.add(made, bias)
    builder.give(node, made, mean, inverse)


def lower_rms(builder: Builder, node: ir.Node) -> None:
    x, scale = builder.take(node, 0), builder.take(node, 1)
    axes = list(range(axis_of(node, x.rank, -1), x.rank))
    square = builder.reduce("MEAN", builder.mul(x, x), axes)
    inverse = builder.unary("RSQRT", builder.add(square, node.attributes.get_float("epsilon", 1e-5)))
    builder.give(node, builder.mul(builder.mul(x, inverse), scale))


def lower_instance(builder: Builder, node: ir.Node) -> None:
    x, scale, bias = builder.takes(node)
    made = normalized(builder, x, list(range(2, x.rank)), node.attributes.get_float("epsilon", 1e-5))
    scale, bias = (per_channel(builder, each, x.rank) for each in (scale, bias))
    builder.give(node, builder.add(builder.mul(made, scale), bias))


def lower_group(builder: Builder, node: ir.Node) -> None:
    x, scale, bias = builder.takes(node)
    groups = node.attributes.get_int("num_groups", 1)
    split = builder.reshape(x, (x.shape[0], groups, x.size // x.shape[0] // groups))
    made = normalized(builder, split, [2], node.attributes.get_float("epsilon", 1e-5))
    scale, bias = (per_channel(builder, each, x.rank) for each in (scale, bias))
    builder.give(node, builder.add(builder.mul(builder.reshape(made, x.shape), scale), bias))


def lower_mean_variance(builder: Builder, node: ir.Node) -> None:
    x = builder.take(node, 0)
    axes = [each % x.rank for each in ints_of(node, "axes", [0, 2, 3])]
    less = builder.sub(x, builder.reduce("MEAN", x, axes))
    variance = builder.reduce("MEAN", builder.mul(less, less), axes)
    builder.give(node, builder.div(less, builder.add(builder.unary("SQRT", variance), 1e-9)))


def lower_lp(builder: Builder, node: ir.Node) -> None:
    x = builder.take(node, 0)
    axis, power = axis_of(node, x.rank, -1), node.attributes.get_int("p", 2)
    raised = absolute(builder, x) if power == 1 else builder.mul(x, x)
    total = builder.reduce("SUM", raised, [axis])
    size = total if power == 1 else builder.unary("SQRT", total)
    empty = builder.compare("EQUAL", size, 0.0)
    builder.give(node, builder.div(x, builder.select(empty, builder.like(1, x), size)))


def lower_local_response(builder: Builder, node: ir.Node) -> None:
    """x / (bias + alpha / size * sum of squares over neighboring channels) ^ beta."""
    x, size = builder.take(node, 0), node.attributes.get_int("size", 1)
    low, high = (size - 1) // 2, size // 2
    square = builder.mul(x, x)
    wide = builder.pad(square, [(0, 0), (low, high), *[(0, 0)] * (x.rank - 2)])
    total = builder.cut(wide, 1, 0, x.shape[1])
    for shift in range(1, size):
        total = builder.add(total, builder.cut(wide, 1, shift, x.shape[1]))
    alpha, beta = node.attributes.get_float("alpha", 1e-4), node.attributes.get_float("beta", 0.75)
    base = builder.add(builder.mul(total, alpha / size), node.attributes.get_float("bias", 1.0))
    builder.give(node, builder.mul(x, builder.binary("POW", base, builder.like(-beta, x))))
