"""Scale and zero point against what they promise, over seeded random ranges and weights."""

import numpy as np
import pytest

from flagsplit.flagir.quantization.params import (
    params_of_constant,
    params_of_range,
    quantized_bias,
    quantized_weights,
    weight_scales,
)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_in_range_comes_back_within_half_a_step(seed: int) -> None:
    rng = np.random.default_rng(seed)
    low, high = np.sort(rng.normal(scale=10.0 ** rng.integers(-6, 6), size=2))
    params = params_of_range(low, high)
    numbers = rng.uniform(min(low, 0), max(high, 0), 1000).astype(np.float32)
    whole = params.quantized(numbers).astype(np.float64)
    real = (whole - params.zero_point) * params.scale
    # The zero point is rounded too: at an end of the range up to one more half step is cut off.
    assert np.abs(real - numbers).max() <= params.scale * (1 + 1e-3)
    inside = (whole > -128) & (whole < 127)
    assert np.abs(real - numbers)[inside].max(initial=0) <= params.scale * (0.5 + 1e-3)
    assert params.quantized(np.array([0.0], np.float32))[0] == params.zero_point


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (0.0, 1e-45), (-1e-42, 0.0), (0.0, float("inf"))])
def test_a_range_of_nothing_is_held(low: float, high: float) -> None:
    params = params_of_range(low, high)
    assert params.scale > 0
    assert np.isfinite(params.scale)


def test_a_lone_constant_is_exact() -> None:
    for number in (0.3, -7.0, 1e-3, 0.0):
        params = params_of_constant(np.array([number], np.float32))
        assert params.quantized(np.array([number], np.float32))[0] * params.scale == pytest.approx(number, rel=1e-6)


@pytest.mark.parametrize("axis", [0, 1])
def test_weights_are_within_half_a_step_of_their_channel(axis: int) -> None:
    weights = np.random.default_rng(axis).standard_normal((6, 5, 3)).astype(np.float32)
    weights *= np.logspace(-3, 3, weights.shape[axis]).reshape([-1 if at == axis else 1 for at in range(3)])
    scales = weight_scales(weights, axis, 0.1, None)
    shape = [-1 if at == axis else 1 for at in range(3)]
    whole = quantized_weights(weights, scales, axis)
    assert np.abs(whole).max() == 127
    assert (np.abs(whole * scales.reshape(shape) - weights) <= scales.reshape(shape) * 0.501).all()


def test_a_bias_fits_int32_and_keeps_its_digits_beside_tiny_weights() -> None:
    weights = np.array([[1e-12], [0.0], [1.0]], np.float32)
    bias = np.array([5.0, 0.3, -2.0], np.float32)
    scales = weight_scales(weights, 0, 0.5, bias)
    steps = scales * np.float32(0.5)
    whole = quantized_bias(bias, steps)
    np.testing.assert_allclose(whole * steps.astype(np.float64), bias, rtol=1e-2)
    assert np.abs(whole).max() <= 1 << 30
