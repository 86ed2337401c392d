"""Random tensors: of the stated distribution, but not the values that Core ML draws from the same seed."""

from collections.abc import Mapping
from typing import Final

import numpy as np

from flagsplit.targets.mobile.mil.arguments import Arguments, Operator
from flagsplit.targets.mobile.mil.ops.activation import softmax_of
from flagsplit.targets.mobile.mil.types import STORAGE, Array


def _generator(a: Arguments) -> np.random.Generator:
    seed = a.integer("seed", -1)
    return np.random.default_rng(seed if seed >= 0 else None)


def _of_output(a: Arguments, values: Array) -> Array:
    return np.asarray(values).astype(STORAGE[a.output_dtype()])


def random_bernoulli(a: Arguments) -> Array:
    """1 with the probability `prob`, else 0."""
    shape = a.room(a.integers("shape"))
    return _of_output(a, _generator(a).random(shape) < a.number("prob", 0.5))


def random_normal(a: Arguments) -> Array:
    """From a normal distribution."""
    shape = a.room(a.integers("shape"))
    drawn = _generator(a).standard_normal(shape)
    return _of_output(a, a.number("mean", 0.0) + a.number("stddev", 1.0) * drawn)


def random_uniform(a: Arguments) -> Array:
    """From `low` to before `high`."""
    shape = a.room(a.integers("shape"))
    low, high = a.number("low", 0.0), a.number("high", 1.0)
    return _of_output(a, low + (high - low) * _generator(a).random(shape))


def random_categorical(a: Arguments) -> Array:
    """`size` indices drawn with the probabilities, or the logits, along the last axis."""
    x, size = a.tensor("x"), a.integer("size", 1)
    shape = a.room((*x.shape[:-1], size))
    chances = softmax_of(x, -1) if a.choice("mode", ("logits", "probs"), "logits") == "logits" else x
    sums = np.cumsum(chances, axis=-1)
    drawn = _generator(a).random(shape) * sums[..., -1:]
    return _of_output(a, (drawn[..., None] >= sums[..., None, :]).sum(axis=-1))


OPERATORS: Final[Mapping[str, Operator]] = {
    "random_bernoulli": random_bernoulli,
    "random_categorical": random_categorical,
    "random_normal": random_normal,
    "random_uniform": random_uniform,
}
