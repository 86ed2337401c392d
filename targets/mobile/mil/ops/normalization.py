"""Normalizations."""

from collections.abc import Mapping
from typing import Final

import numpy as np

from flagsplit.targets.mobile.mil.arguments import Arguments, Operator
from flagsplit.targets.mobile.mil.types import Array


def _channels(a: Arguments, name: str, x: Array, default: float) -> Array:
    """A vector over the channels of `x` [n, C, *D], of a shape that broadcasts."""
    vector = a.optional(name)
    if vector is None:
        return np.full([1] * x.ndim, default, x.dtype)
    if x.ndim < 2 or vector.shape != (x.shape[1],):
        raise a.refuse(f"expected {name} to hold a value for each channel of {list(x.shape)}; it is {vector.shape}")
    return vector.reshape(1, -1, *[1] * (x.ndim - 2))


def batch_norm(a: Arguments) -> Array:
    """`gamma * (x - mean) / sqrt(variance + epsilon) + beta`, channel by channel."""
    x = a.tensor("x")
    if not (a.has("mean") and a.has("variance")):
        raise a.refuse("expected a mean and a variance")
    scale = _channels(a, "gamma", x, 1.0) / np.sqrt(
        _channels(a, "variance", x, 1.0) + np.float32(a.number("epsilon", 1e-5))
    )
    return (x - _channels(a, "mean", x, 0.0)) * scale + _channels(a, "beta", x, 0.0)


def instance_norm(a: Arguments) -> Array:
    """Each channel of each item normalized over its spatial axes."""
    x = a.tensor("x")
    normal = _normalized(x, tuple(range(2, x.ndim)), a.number("epsilon", 1e-5))
    return normal * _channels(a, "gamma", x, 1.0) + _channels(a, "beta", x, 0.0)


def layer_norm(a: Arguments) -> Array:
    """Normalized over `axes`, then scaled and shifted by tensors over these axes."""
    x = a.tensor("x")
    axes = tuple(sorted(axis % x.ndim for axis in a.integers("axes", range(x.ndim))))
    shape = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
    result = _normalized(x, axes, a.number("epsilon", 1e-5))
    gamma, beta = a.optional("gamma"), a.optional("beta")
    if gamma is not None:
        result = result * gamma.reshape(shape)
    return result if beta is None else result + beta.reshape(shape)


def _normalized(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    centered = x - np.mean(x, axis=axes, keepdims=True)
    variance = np.mean(np.square(centered), axis=axes, keepdims=True)
    result: Array = centered / np.sqrt(variance + np.float32(epsilon))
    return result


def l2_norm(a: Arguments) -> Array:
    """Divided by the root of the sum of the squares over the last three axes."""
    x = a.tensor("x")
    total = np.sum(np.square(x), axis=(-1, -2, -3), keepdims=True)
    return x / np.sqrt(total + np.float32(a.number("epsilon", 1e-6)))


def local_response_norm(a: Arguments) -> Array:
    """`x / (k + alpha / size * sum of squares over size neighboring channels) ** beta`."""
    x, size = a.tensor("x"), a.integer("size")
    if size < 1:
        raise a.refuse(f"expected a size of 1 and more; it is {size}")
    # Running sums along the channels, so that the cost does not grow with the size.
    sums = np.cumsum(np.square(x), axis=1, dtype=np.float64)
    sums = np.concatenate([np.zeros_like(sums[:, :1]), sums], axis=1)
    channels = np.arange(x.shape[1])
    first = np.maximum(channels - (size - 1) // 2, 0)
    last = np.minimum(channels + size // 2 + 1, x.shape[1])
    squares = (sums[:, last] - sums[:, first]).astype(x.dtype)
    alpha, beta, k = a.number("alpha", 1e-4), a.number("beta", 0.75), a.number("k", 1.0)
    return x / np.power(np.float32(k) + np.float32(alpha / size) * squares, np.float32(beta))


OPERATORS: Final[Mapping[str, Operator]] = {
    "batch_norm": batch_norm,
    "instance_norm": instance_norm,
    "l2_norm": l2_norm,
    "layer_norm": layer_norm,
    "local_response_norm": local_response_norm,
}
