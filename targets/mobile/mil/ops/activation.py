"""Activation functions, with their constants in the type of the input."""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from flagsplit.targets.mobile.mil.arguments import Arguments, Operator
from flagsplit.targets.mobile.mil.ops.error_function import erf
from flagsplit.targets.mobile.mil.types import Array

GELU_MODES: Final = ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION")


def sigmoid(x: Array) -> Array:
    """`1 / (1 + exp(-x))`, without overflow."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small)).astype(x.dtype, copy=False)


def softplus(x: Array) -> Array:
    """`log(1 + exp(x))`, without overflow."""
    return np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0)


def softmax_of(x: Array, axis: int) -> Array:
    """Exponentials that sum to 1 along `axis`."""
    powers = np.exp(x - np.max(x, axis=axis, keepdims=True))
    result: Array = powers / np.sum(powers, axis=axis, keepdims=True)
    return result


def _plain(function: Callable[[Array], Array]) -> Operator:
    return lambda a: function(a.tensor("x"))


def _with_alpha(function: Callable[[Array, float], Array]) -> Operator:
    return lambda a: function(a.tensor("x"), a.number("alpha"))


def _with_alpha_beta(function: Callable[[Array, float, float], Array]) -> Operator:
    return lambda a: function(a.tensor("x"), a.number("alpha"), a.number("beta"))


def gelu(a: Arguments) -> Array:
    """`x` times the normal distribution function of `x`, exact or approximated."""
    x = a.tensor("x")
    mode = a.choice("mode", GELU_MODES, "EXACT")
    if mode == "EXACT":
        return 0.5 * x * (1 + erf(x / np.float32(np.sqrt(2))))
    if mode == "TANH_APPROXIMATION":
        return 0.5 * x * (1 + np.tanh(np.float32(np.sqrt(2 / np.pi)) * (x + 0.044715 * x * x * x)))
    return x * sigmoid(1.702 * x)


def _by_channel(a: Arguments, name: str, x: Array) -> Array:
    """A vector over the channels of `x`, of a shape that broadcasts."""
    vector = a.tensor(name)
    if vector.shape != (x.shape[1],):
        raise a.refuse(f"expected {name} to hold {x.shape[1]} values; it has the shape {list(vector.shape)}")
    return vector.reshape(-1, *[1] * (x.ndim - 2))


def prelu(a: Arguments) -> Array:
    """`x`, or `alpha` of its channel times `x` where that is below 0."""
    x = a.tensor("x")
    return np.maximum(x, 0) + np.minimum(x, 0) * _by_channel(a, "alpha", x)


def softplus_parametric(a: Arguments) -> Array:
    """`alpha * log(1 + exp(beta * x))`, with `alpha` and `beta` of the channel."""
    x = a.tensor("x")
    return _by_channel(a, "alpha", x) * softplus(x * _by_channel(a, "beta", x))


def softmax(a: Arguments) -> Array:
    """Exponentials that sum to 1 along `axis`."""
    return softmax_of(a.tensor("x"), a.integer("axis", -1))


OPERATORS: Final[Mapping[str, Operator]] = {
    "clamped_relu": _with_alpha_beta(
        lambda x, alpha, beta: np.minimum(np.where(x >= 0, x, x * x.dtype.type(alpha)), x.dtype.type(beta))
    ),
    "elu": _with_alpha(lambda x, alpha: np.where(x > 0, x, x.dtype.type(alpha) * np.expm1(np.minimum(x, 0)))),
    "gelu": gelu,
    "leaky_relu": _with_alpha(lambda x, alpha: np.where(x >= 0, x, x * x.dtype.type(alpha))),
    "linear_activation": _with_alpha_beta(lambda x, alpha, beta: x * x.dtype.type(alpha) + x.dtype.type(beta)),
    "prelu": prelu,
    "relu": _plain(lambda x: np.maximum(x, 0)),
    "relu6": _plain(lambda x: np.minimum(np.maximum(x, 0), 6)),
    "scaled_tanh": _with_alpha_beta(lambda x, alpha, beta: x.dtype.type(alpha) * np.tanh(x * x.dtype.type(beta))),
    "sigmoid": _plain(sigmoid),
    "sigmoid_hard": _with_alpha_beta(
        lambda x, alpha, beta: np.minimum(np.maximum(x * x.dtype.type(alpha) + x.dtype.type(beta), 0), 1)
    ),
    "silu": _plain(lambda x: x * sigmoid(x)),
    "softmax": softmax,
    "softplus": _plain(softplus),
    "softplus_parametric": softplus_parametric,
    "softsign": _plain(lambda x: x / (1 + np.abs(x))),
    "thresholded_relu": _with_alpha(lambda x, alpha: np.where(x >= x.dtype.type(alpha), x, x.dtype.type(0))),
}
