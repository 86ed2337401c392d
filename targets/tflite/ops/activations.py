"""Activations that are made of a few elementwise operators."""

import math

import numpy as np
import onnx_ir as ir

from flagsplit.targets.tflite.builder import Builder
from flagsplit.targets.tflite.ops.sign import absolute
from flagsplit.targets.tflite.ops.trigonometry import log1p
from flagsplit.targets.tflite.program import Refused, Tensor


def lower_clip(builder: Builder, node: ir.Node) -> None:
    x = builder.take(node, 0)
    low, high = builder.maybe(node, 1), builder.maybe(node, 2)
    if x.dtype == "float32" and _is(low, 0) and (_is(high, 6) or high is None):
        builder.give(node, builder.unary("RELU" if high is None else "RELU6", x))
        return
    if low is not None:
        x = builder.maximum(x, low)
    if high is not None:
        x = builder.minimum(x, high)
    builder.give(node, builder.add(x, 0) if low is None and high is None else x)


def _is(bound: Tensor | None, number: float) -> bool:
    return bound is not None and bound.data is not None and bool(np.all(bound.data == number))


def lower_leaky_relu(builder: Builder, node: ir.Node) -> None:
    alpha = node.attributes.get_float("alpha", 0.01)
    builder.give(node, builder.unary("LEAKY_RELU", builder.take(node, 0), alpha=alpha))


def lower_prelu(builder: Builder, node: ir.Node) -> None:
    """max(x, 0) + slope min(x, 0): the slope may have any shape that broadcasts."""
    x, slope = builder.take(node, 0), builder.take(node, 1)
    if slope.data is not None and slope.rank <= x.rank <= 4 and x.dtype == "float32":
        builder.give(node, builder.op("PRELU", [x, builder.raised(slope, x.rank)], x.shape))
        return
    below = builder.mul(builder.minimum(x, 0.0), slope)
    builder.give(node, builder.add(builder.maximum(x, 0.0), below))


def lower_elu(builder: Builder, node: ir.Node) -> None:
    x, alpha = builder.take(node, 0), node.attributes.get_float("alpha", 1.0)
    if alpha == 1:
        builder.give(node, builder.unary("ELU", x))
        return
    below = builder.mul(builder.unary("ELU", builder.minimum(x, 0.0)), alpha)
    builder.give(node, builder.add(builder.maximum(x, 0.0), below))


def lower_selu(builder: Builder, node: ir.Node) -> None:
    x = builder.take(node, 0)
    alpha = node.attributes.get_float("alpha", 1.67326319217681884765625)
    gamma = node.attributes.get_float("gamma", 1.05070102214813232421875)
    below = builder.mul(builder.unary("ELU", builder.minimum(x, 0.0)), alpha)
    builder.give(node, builder.mul(builder.add(builder.maximum(x, 0.0), below), gamma))


def lower_celu(builder: Builder, node: ir.Node) -> None:
    x, alpha = builder.take(node, 0), node.attributes.get_float("alpha", 1.0)
    below = builder.mul(builder.unary("ELU", builder.minimum(builder.mul(x, 1 / alpha), 0.0)), alpha)
    builder.give(node, builder.add(builder.maximum(x, 0.0), below))


def lower_thresholded_relu(builder: Builder, node: ir.Node) -> None:
    x = builder.take(node, 0)
    above = builder.compare("GREATER", x, node.attributes.get_float("alpha", 1.0))
    builder.give(node, builder.select(above, x, builder.like(0, x)))


def lower_shrink(builder: Builder, node: ir.Node) -> None:
    x = builder.take(node, 0)
    bias, edge = node.attributes.get_float("bias", 0.0), node.attributes.get_float("lambd", 0.5)
    low = builder.select(builder.compare("LESS", x, -edge), builder.add(x, bias), builder.like(0, x))
    builder.give(node, builder.select(builder.compare("GREATER", x, edge), builder.sub(x, bias), low))


def lower_softplus(builder: Builder, node: ir.Node) -> None:
    builder.give(node, softplus(builder, builder.take(node, 0)))


def softplus(builder: Builder, x: Tensor) -> Tensor:
    """max(x, 0) + log(1 + exp(-|x|)), which overflows nowhere."""
    small = builder.unary("EXP", builder.unary("NEG", absolute(builder, x)))
    return builder.add(builder.maximum(x, 0.0), log1p(builder, small))


def lower_softsign(builder: Builder, node: ir.Node) -> None:
    x = builder.take(node, 0)
    builder.give(node, builder.div(x, builder.add(absolute(builder, x), 1.0)))


def lower_mish(builder: Builder, node: ir.Node) -> None:
    x = builder.take(node, 0)
    builder.give(node, builder.mul(x, builder.unary("TANH", softplus(builder, x))))


def lower_hard_sigmoid(builder: Builder, node: ir.Node) -> None:
    alpha, beta = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
    builder.give(node, hard_sigmoid(builder, builder.take(node, 0), alpha, beta))


def hard_sigmoid(builder: Builder, x: Tensor, alpha: float, beta: float) -> Tensor:
    line = builder.add(builder.mul(x, alpha), beta)
    return builder.minimum(builder.maximum(line, 0.0), 1.0)


def lower_hard_swish(builder: Builder, node: ir.Node) -> None:
    builder.give(node, builder.unary("HARD_SWISH", builder.take(node, 0)))


def lower_swish(builder: Builder, node: ir.Node) -> None:
    x, alpha = builder.take(node, 0), node.attributes.get_float("alpha", 1.0)
    inner = x if alpha == 1 else builder.mul(x, alpha)
    builder.give(node, builder.mul(x, builder.unary("LOGISTIC", inner)))


def lower_gelu(builder: Builder, node: ir.Node) -> None:
    """Written out: LiteRT's own kernel may be a rougher approximation than its option says."""
    x = builder.take(node, 0)
    if node.attributes.get_string("approximate", "none") == "tanh":
        cube = builder.mul(builder.mul(x, x), x)
        inner = builder.mul(builder.add(x, builder.mul(cube, 0.044715)), math.sqrt(2 / math.pi))
        whole = builder.add(builder.unary("TANH", inner), 1.0)
        builder.give(node, builder.mul(builder.mul(x, 0.5), whole))
        return
    builder.give(node, builder.unary("GELU", x, approximate=False))


def lower_erf(builder: Builder, node: ir.Node) -> None:
    x = builder.take(node, 0)
    if x.dtype != "float32":
        raise Refused(f"Erf takes float32, came {x.dtype}")
    builder.give(node, erf(builder, x))


def erf(builder: Builder, x: Tensor) -> Tensor:
    """x P(x²) / Q(x²) on |x| <= 4, where erf is 1 within 2e-8 beyond: the rational of Eigen and XLA, 1e-7 absolute."""
    upper = (-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
             -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02)  # fmt: skip
    lower = (-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
             -1.42647390514189e-02)  # fmt: skip
    bound = builder.maximum(builder.minimum(x, 4.0), -4.0)
    square = builder.mul(bound, bound)
    top, bottom = (_polynomial(builder, square, each) for each in (upper, lower))
    return builder.div(builder.mul(bound, top), bottom)


def _polynomial(builder: Builder, x: Tensor, factors: tuple[float, ...]) -> Tensor:
    """By Horner's rule, the highest power first."""
    whole = builder.add(builder.mul(x, factors[0]), factors[1])
    for factor in factors[2:]:
        whole = builder.add(builder.mul(whole, x), factor)
    return whole
