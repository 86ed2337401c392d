"""Elementwise operators, activations and casts against ONNX Runtime and NumPy."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.targets.mobile.mil.oracle import close, onnx_op
from tests.targets.mobile.mil.writing import load, run

from flagsplit.errors import BundleError
from flagsplit.targets.mobile.mil.ops.error_function import erf

UNARY = {
    "abs": "Abs",
    "acos": "Acos",
    "asin": "Asin",
    "atan": "Atan",
    "atanh": "Atanh",
    "ceil": "Ceil",
    "cos": "Cos",
    "cosh": "Cosh",
    "erf": "Erf",
    "exp": "Exp",
    "floor": "Floor",
    "identity": "Identity",
    "relu": "Relu",
    "round": "Round",
    "sigmoid": "Sigmoid",
    "sign": "Sign",
    "sin": "Sin",
    "sinh": "Sinh",
    "softplus": "Softplus",
    "softsign": "Softsign",
    "tan": "Tan",
    "tanh": "Tanh",
}
BINARY = {"add": "Add", "sub": "Sub", "mul": "Mul", "real_div": "Div", "pow": "Pow", "maximum": "Max", "minimum": "Min"}
COMPARED = {"equal": "Equal", "greater": "Greater", "greater_equal": "GreaterOrEqual", "less": "Less"}
COMPARED |= {"less_equal": "LessOrEqual"}
LOGICAL = {"logical_and": "And", "logical_or": "Or", "logical_xor": "Xor"}


def test_unary(tmp_path: Path) -> None:
    x = np.random.default_rng(1).uniform(-0.99, 0.99, (3, 1, 5)).astype(np.float32)
    x[0, 0, :3] = 0, 0.5, -0.5
    came = run(tmp_path, lambda mb, x: tuple(getattr(mb, kind)(x=x) for kind in UNARY), {"x": x})
    for kind, result in zip(UNARY.values(), came, strict=True):
        close(result, onnx_op(kind, x)[0])


def test_unary_of_positive_numbers(tmp_path: Path) -> None:
    x = np.random.default_rng(2).uniform(0.1, 4, (3, 5)).astype(np.float32)

    def build(mb: Any, x: Any) -> Any:
        return (
            mb.log(x=x),
            mb.log(x=x, epsilon=0.5),
            mb.rsqrt(x=x),
            mb.rsqrt(x=x, epsilon=0.5),
            mb.inverse(x=x),
            mb.inverse(x=x, epsilon=0.0),
            mb.sqrt(x=x),
            mb.square(x=x),
            mb.exp2(x=x),
            mb.clip(x=x, alpha=1.0, beta=2.0),
            mb.threshold(x=x, alpha=1.5),
        )

    came = run(tmp_path, build, {"x": x})
    expected = [
        np.log(x),
        np.log(x + np.float32(0.5)),
        1 / np.sqrt(x),
        1 / np.sqrt(x + np.float32(0.5)),
        1 / (x + np.float32(1e-4)),
        1 / x,
        np.sqrt(x),
        x * x,
        2**x,
        np.clip(x, 1, 2),
        np.maximum(x, np.float32(1.5)),
    ]
    for result, wanted in zip(came, expected, strict=True):
        close(result, wanted)


@pytest.mark.slow
def test_an_epsilon_is_of_the_type_of_the_input(tmp_path: Path) -> None:
    """In fp16, 1e-12 becomes the least number above 0."""
    x = np.zeros((1, 12), np.float32)
    single = run(tmp_path / "single", lambda mb, x: mb.rsqrt(x=x), {"x": x})
    half = run(tmp_path / "half", lambda mb, x: mb.rsqrt(x=x), {"x": x}, half=True)
    close(single[0], np.full_like(x, 1e6))
    close(half[0], np.full_like(x, 4096))


@pytest.mark.parametrize("shapes", [((2, 3, 4), (3, 1)), ((1,), (4, 2)), ((2, 2), (2, 2))], ids=str)
def test_binary(tmp_path: Path, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    rng = np.random.default_rng(3)
    x, y = (rng.integers(1, 5, shape).astype(np.float32) for shape in shapes)
    kinds = BINARY | COMPARED
    came = run(
        tmp_path,
        lambda mb, x, y: tuple(
            mb.cast(x=getattr(mb, kind)(x=x, y=y), dtype="fp32") if kind in COMPARED else getattr(mb, kind)(x=x, y=y)
            for kind in (*kinds, "not_equal")
        )[: len(kinds)],
        {"x": x, "y": y},
    )
    for kind, result in zip(kinds.values(), came, strict=True):
        close(result, onnx_op(kind, x, y)[0].astype(np.float32))


def test_integers(tmp_path: Path) -> None:
    x = np.array([[7, -7, 8, -8]], np.int32)
    y = np.array([[2, 2, -3, -3]], np.int32)

    def build(mb: Any, x: Any, y: Any) -> Any:
        equal = mb.not_equal(x=x, y=y)
        other = mb.equal(x=x, y=7)
        return (
            mb.floor_div(x=x, y=y),
            mb.mod(x=x, y=y),
            mb.add(x=x, y=y),
            mb.sign(x=x),
            mb.cast(x=mb.logical_and(x=equal, y=other), dtype="int32"),
            mb.cast(x=mb.logical_or(x=equal, y=other), dtype="int32"),
            mb.cast(x=mb.logical_xor(x=equal, y=other), dtype="int32"),
            mb.cast(x=mb.logical_not(x=other), dtype="int32"),
            mb.select(cond=other, a=x, b=y),
        )

    came = run(tmp_path, build, {"x": x, "y": y})
    expected = [[3, -4, -3, 2], [1, 1, -1, -2], [9, -5, 5, -11], [1, -1, 1, -1]]
    expected += [[1, 0, 0, 0], [1, 1, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1], [7, 2, -3, -3]]
    for result, wanted in zip(came, expected, strict=True):
        close(result, np.array([wanted], np.int32))


def test_casts(tmp_path: Path) -> None:
    x = np.array([[1.9, -1.9, 0.0, 1000.4]], np.float32)

    def build(mb: Any, x: Any) -> Any:
        return (
            mb.cast(x=x, dtype="int32"),
            mb.cast(x=mb.cast(x=x, dtype="bool"), dtype="int32"),
            mb.cast(x=mb.cast(x=x, dtype="fp16"), dtype="fp32"),
            mb.cast(x=mb.cast(x=x, dtype="int8"), dtype="int32"),
        )

    whole, truth, half, byte = run(tmp_path, build, {"x": x}, ios=17)
    close(whole, np.array([[1, -1, 0, 1000]], np.int32))
    close(truth, np.array([[1, 1, 0, 1]], np.int32))
    np.testing.assert_array_equal(half, x.astype(np.float16).astype(np.float32))
    close(byte[:, :3], np.array([[1, -1, 0]], np.int32))


def test_activations(tmp_path: Path) -> None:
    x = np.random.default_rng(4).standard_normal((2, 3, 4, 2)).astype(np.float32) * 3
    alpha = np.array([0.1, 0.2, 0.3], np.float32)

    def build(mb: Any, x: Any) -> Any:
        return (
            mb.elu(x=x, alpha=0.7),
            mb.leaky_relu(x=x, alpha=0.1),
            mb.prelu(x=x, alpha=alpha),
            mb.sigmoid_hard(x=x, alpha=0.3, beta=0.4),
            mb.thresholded_relu(x=x, alpha=1.0),
            mb.gelu(x=x),
            mb.gelu(x=x, mode="TANH_APPROXIMATION"),
            mb.softmax(x=x, axis=1),
            mb.relu6(x=x),
        )

    came = run(tmp_path, build, {"x": x})
    expected = [
        onnx_op("Elu", x, alpha=0.7),
        onnx_op("LeakyRelu", x, alpha=0.1),
        onnx_op("PRelu", x, alpha.reshape(3, 1, 1)),
        onnx_op("HardSigmoid", x, alpha=0.3, beta=0.4),
        onnx_op("ThresholdedRelu", x, alpha=1.0),
        onnx_op("Gelu", x),
        onnx_op("Gelu", x, approximate="tanh"),
        onnx_op("Softmax", x, axis=1),
        onnx_op("Clip", x, np.array(0, np.float32), np.array(6, np.float32)),
    ]
    for result, (wanted,) in zip(came, expected, strict=True):
        close(result, wanted)


def test_activations_that_only_mil_has(tmp_path: Path) -> None:
    x = np.random.default_rng(5).standard_normal((2, 3, 2, 2)).astype(np.float32) * 3
    alpha, beta = np.array([1, 2, 0.5], np.float32), np.array([0.5, 1, 2], np.float32)

    def build(mb: Any, x: Any) -> Any:
        return (
            mb.clamped_relu(x=x, alpha=0.1, beta=1.5),
            mb.linear_activation(x=x, alpha=2.0, beta=-1.0),
            mb.scaled_tanh(x=x, alpha=1.5, beta=0.5),
            mb.silu(x=x),
            mb.softplus_parametric(x=x, alpha=alpha, beta=beta),
            mb.gelu(x=x, mode="SIGMOID_APPROXIMATION"),
        )

    came = run(tmp_path, build, {"x": x})
    a, b = alpha.reshape(3, 1, 1), beta.reshape(3, 1, 1)
    expected = [
        np.minimum(np.float32(1.5), np.where(x >= 0, x, np.float32(0.1) * x)),
        2 * x - 1,
        np.float32(1.5) * np.tanh(x / 2),
        x / (1 + np.exp(-x)),
        a * np.log(1 + np.exp(b * x)),
        x / (1 + np.exp(np.float32(-1.702) * x)),
    ]
    for result, wanted in zip(came, expected, strict=True):
        close(result, wanted)


def test_activations_do_not_overflow(tmp_path: Path) -> None:
    x = np.array([[-1e4, -200, 0, 200, 1e4]], np.float32)
    came = run(tmp_path, lambda mb, x: (mb.sigmoid(x=x), mb.softplus(x=x), mb.silu(x=x), mb.softmax(x=x)), {"x": x})
    for result, wanted in zip(
        came,
        ([0, 0, 0.5, 1, 1], [0, 0, math.log(2), 200, 1e4], [0, 0, 0, 200, 1e4], [0, 0, 0, 0, 1]),
        strict=True,
    ):
        close(result, np.array([wanted], np.float32))


def test_erf_is_the_gauss_error_function() -> None:
    x = np.concatenate([np.linspace(-7, 7, 4001), [0.0, 1.0, -1.0, 50.0, -50.0, 1e-300]])
    np.testing.assert_allclose(erf(x), [math.erf(value) for value in x], rtol=1e-14)
    assert np.isnan(erf(np.array([np.nan]))).all()
    assert erf(np.array([np.inf, -np.inf])).tolist() == [1, -1]


def test_results_of_half_precision_are_rounded_once_each(tmp_path: Path) -> None:
    """Each operator computes in fp32 from inputs in fp16, and its result is rounded."""
    rng = np.random.default_rng(6)
    x = rng.standard_normal((4, 16)).astype(np.float16)
    weight = rng.standard_normal((8, 16)).astype(np.float16)

    def build(mb: Any, x: Any) -> Any:
        return mb.exp(x=mb.linear(x=x, weight=weight))

    (came,) = run(tmp_path, build, {"x": x}, ios=16)
    product = (x.astype(np.float32) @ weight.astype(np.float32).T).astype(np.float16)
    assert came.dtype == np.float16
    np.testing.assert_allclose(came, np.exp(product.astype(np.float32)).astype(np.float16), rtol=1e-3)


def test_every_operator_gives_what_its_precision_can_hold(tmp_path: Path) -> None:
    """Also those that are taken to move elements only, given numbers that fp16 lacks."""
    x = np.random.default_rng(7).standard_normal((1, 4, 6, 6)).astype(np.float16)

    def build(mb: Any, x: Any) -> Any:
        low = mb.clip(x=x, alpha=np.float16(-0.1), beta=np.float16(0.3))
        return (
            low,
            mb.pad(x=x, pad=[1, 1, 1, 1], constant_val=np.float16(0.1)),
            mb.max_pool(x=x, kernel_sizes=[2, 2], pad_type="valid"),
            mb.maximum(x=x, y=np.float16(0.7)),
            mb.select(cond=mb.greater(x=x, y=low), a=x, b=low),
            mb.reshape(x=x, shape=[4, 36]),
        )

    import coremltools as ct

    outputs = [ct.TensorType(dtype=np.float16)] * 6
    function = load(tmp_path, build, {"x": x}, ios=16, outputs=outputs)
    executor: Any = function._executor
    for result in executor.run({"x": x.astype(np.float32)}):
        np.testing.assert_array_equal(result, result.astype(np.float16).astype(np.float32))


def test_types_that_differ_are_refused(tmp_path: Path) -> None:
    """The builder would insert a cast; a package by another writer may lack it."""
    function = load(
        tmp_path, lambda mb, x, y: mb.add(x=x, y=y), {"x": np.ones(3, np.float32), "y": np.ones(3, np.float32)}
    )
    executor: Any = function._executor
    types = dict(executor._types)
    executor._types["y"] = type(types["y"])("int32", (3,))
    with pytest.raises(BundleError, match="one type"):
        executor.run({"x": np.ones(3, np.float32), "y": np.ones(3, np.int32)})
