"""Patterns that the passes of the cuda target know: graphs, what they become, and inputs for them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from tests.targets.cloud.cuda.parts import drawn

from flagsplit.targets.interface import Array

LINEAR, ATTENTION, CONV_RELU = (f"flagsplit.cuda.{name}" for name in ("Linear", "Attention", "ConvRelu"))


@dataclass(frozen=True)
class Pattern:
    """One graph.

    Attributes:
        name: what it shows.
        body, inputs, outputs: in ONNX's text format.
        left: the operators after the passes, sorted.
        tensors: inputs by name.
        weights: constants by name.
    """

    name: str
    body: str
    inputs: str
    outputs: str
    left: tuple[str, ...]
    tensors: Mapping[str, Array]
    weights: Mapping[str, Array] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


def _number(value: float) -> Array:
    return np.asarray(value, np.float32)


_NORM = """
    mean = ReduceMean <keepdims = 1> (x, last)
    d = Sub (x, mean)
    square = Pow (d, two)
    spread = ReduceMean <keepdims = 1> (square, last)
    sum = Add (spread, eps)
    root = Sqrt (sum)
    quotient = Div (d, root)
    scaled = Mul (quotient, scale)
    y = Add (scaled, bias)
"""
_RMS = """
    square = Mul (x, x)
    spread = ReduceMean <keepdims = 1> (square, last)
    sum = Add (spread, eps)
    root = Sqrt (sum)
    inverse = Reciprocal (root)
    quotient = Mul (x, inverse)
    y = Mul (quotient, scale)
"""
_NORM_WEIGHTS = {
    "last": np.array([-1]),
    "two": _number(2),
    "eps": _number(1e-5),
    "scale": drawn(16, seed=1),
    "bias": drawn(16, seed=2),
}
_ATTENTION = """
    kt = Transpose <perm = [0, 1, 3, 2]> (k)
    qs = Mul (q, factor)
    scores = MatMul (qs, kt)
    halved = Div (scores, two)
    masked = Add (halved, mask)
    weights = Softmax <axis = -1> (masked)
    y = MatMul (weights, v)
"""
_FLAT_ATTENTION = """
    kt = Transpose <perm = [0, 1, 3, 2]> (k)
    scores = MatMul (q, kt)
    rows = Reshape (scores, flat)
    soft = Softmax <axis = -1> (rows)
    weights = Reshape (soft, whole)
    y = MatMul (weights, v)
"""
_QKV_TENSORS = {name: drawn(2, 4, 6, 8, seed=at) for at, name in enumerate("qkv")}
_QKV = ", ".join(f"float[2,4,6,8] {name}" for name in "qkv")
_BATCH = {name: np.abs(drawn(5, seed=at)) + 0.5 for at, name in enumerate(("gamma", "beta", "mean", "variance"))}

PATTERNS = [
    Pattern(
        "layer norm",
        _NORM,
        "float[2,3,16] x",
        "float[2,3,16] y",
        ("LayerNormalization",),
        {"x": drawn(2, 3, 16)},
        _NORM_WEIGHTS,
    ),
    Pattern(
        "rms norm",
        _RMS,
        "float[2,3,16] x",
        "float[2,3,16] y",
        ("RMSNormalization",),
        {"x": drawn(2, 3, 16)},
        {name: _NORM_WEIGHTS[name] for name in ("last", "eps", "scale")},
    ),
    Pattern(
        "gelu",
        "a = Div (x, root) e = Erf (a) b = Add (e, one) c = Mul (x, b) y = Mul (c, half)",
        "float[2,9] x",
        "float[2,9] y",
        ("Gelu",),
        {"x": drawn(2, 9)},
        {"root": _number(2**0.5), "one": _number(1), "half": _number(0.5)},
    ),
    Pattern(
        "gelu, halved first",
        "a = Mul (x, root) e = Erf (a) b = Add (one, e) c = Mul (half, x) y = Mul (b, c)",
        "float[2,9] x",
        "float[2,9] y",
        ("Gelu",),
        {"x": drawn(2, 9)},
        {"root": _number(0.5**0.5), "one": _number(1), "half": _number(0.5)},
    ),
    Pattern(
        "hard swish",
        "a = Add (x, three) b = Clip (a, zero, six) c = Mul (x, b) y = Div (c, six)",
        "float[2,9] x",
        "float[2,9] y",
        ("HardSwish",),
        {"x": drawn(2, 9) * 4},
        {"three": _number(3), "zero": _number(0), "six": _number(6)},
    ),
    Pattern(
        "swish, with a product by 1",
        "a = Mul (x, one) b = Sigmoid (a) y = Mul (x, b)",
        "float[2,9] x",
        "float[2,9] y",
        ("Swish",),
        {"x": drawn(2, 9)},
        {"one": _number(1)},
    ),
    Pattern(
        "batch norm and bias into a convolution",
        "a = Conv <pads = [1, 1, 1, 1]> (x, w) b = BatchNormalization (a, gamma, beta, mean, variance) "
        "y = Add (b, more)",
        "float[2,3,6,6] x",
        "float[2,5,6,6] y",
        ("Conv",),
        {"x": drawn(2, 3, 6, 6)},
        {"w": drawn(5, 3, 3, 3), "more": drawn(1, 5, 1, 1), **_BATCH},
    ),
    Pattern(
        "batch norm into a transposed convolution of two groups",
        "a = ConvTranspose <group = 2> (x, w) y = BatchNormalization (a, gamma, beta, mean, variance)",
        "float[1,4,5,5] x",
        "float[1,6,7,7] y",
        ("ConvTranspose",),
        {"x": drawn(1, 4, 5, 5)},
        {"w": drawn(4, 3, 3, 3), **{name: np.concatenate([each, each[:1]]) for name, each in _BATCH.items()}},
    ),
    Pattern(
        "a convolution and its Relu",
        "a = Conv (x, w, b) y = Relu (a)",
        "float[2,3,6,6] x",
        "float[2,5,4,4] y",
        (CONV_RELU,),
        {"x": drawn(2, 3, 6, 6)},
        {"w": drawn(5, 3, 3, 3), "b": drawn(5)},
    ),
    Pattern(
        "a convolution, a residual sum and their Relu",
        "a = Conv <pads = [1, 1, 1, 1]> (x, w, b) s = Add (x, a) y = Relu (s)",
        "float[2,5,6,6] x",
        "float[2,5,6,6] y",
        (CONV_RELU,),
        {"x": drawn(2, 5, 6, 6)},
        {"w": drawn(5, 5, 3, 3), "b": drawn(5)},
    ),
    Pattern(
        "a product and its bias",
        "a = MatMul (x, w) y = Add (a, b)",
        "float[2,3,8] x",
        "float[2,3,5] y",
        (LINEAR,),
        {"x": drawn(2, 3, 8)},
        {"w": drawn(8, 5), "b": drawn(5)},
    ),
    Pattern(
        "three products of one input",
        "a = MatMul (x, wa) b = MatMul (x, wb) c = MatMul (x, wc) s = Add (a, b) y = Mul (s, c)",
        "float[2,3,8] x",
        "float[2,3,5] y",
        ("Add", "Mul", "Split", LINEAR),
        {"x": drawn(2, 3, 8)},
        {name: drawn(8, 5, seed=at) for at, name in enumerate(("wa", "wb", "wc"))},
    ),
    Pattern(
        "attention",
        _ATTENTION,
        f"{_QKV}, float[2,1,1,6] mask",
        "float[2,4,6,8] y",
        (ATTENTION,),
        {**_QKV_TENSORS, "mask": np.where(drawn(2, 1, 1, 6) > 0.5, -1e4, 0).astype(np.float32)},
        {"factor": _number(0.5), "two": _number(2)},
    ),
    Pattern(
        "attention with its scores flattened",
        _FLAT_ATTENTION,
        _QKV,
        "float[2,4,6,8] y",
        (ATTENTION,),
        _QKV_TENSORS,
        {"flat": np.array([48, 6]), "whole": np.array([2, 4, 6, 6])},
    ),
]
"""What is recognised."""

OTHERS = [
    Pattern(
        "a norm over an axis in the middle",
        _NORM.replace("last", "middle"),
        "float[2,16,16] x",
        "float[2,16,16] y",
        ("Add", "Add", "Div", "Mul", "Pow", "ReduceMean", "ReduceMean", "Sqrt", "Sub"),
        {"x": drawn(2, 16, 16)},
        {"middle": np.array([1]), **{k: v for k, v in _NORM_WEIGHTS.items() if k != "last"}},
    ),
    Pattern(
        "a convolution that is read twice",
        "a = Conv (x, w) b = BatchNormalization (a, gamma, beta, mean, variance) y = Add (a, b)",
        "float[1,3,4,4] x",
        "float[1,5,4,4] y",
        ("Add", "BatchNormalization", "Conv"),
        {"x": drawn(1, 3, 4, 4)},
        {"w": drawn(5, 3, 1, 1), **_BATCH},
    ),
    Pattern(
        "a convolution whose result is returned as well as its Relu",
        "a = Conv (x, w, b) y = Relu (a)",
        "float[1,3,4,4] x",
        "float[1,5,4,4] y, float[1,5,4,4] a",
        ("Conv", "Relu"),
        {"x": drawn(1, 3, 4, 4)},
        {"w": drawn(5, 3, 1, 1), "b": drawn(5)},
    ),
    Pattern(
        "scores that are returned as well",
        "kt = Transpose <perm = [0, 1, 3, 2]> (k) s = MatMul (q, kt) w = Softmax <axis = -1> (s) y = MatMul (w, v)",
        _QKV,
        "float[2,4,6,8] y, float[2,4,6,6] w",
        ("MatMul", "MatMul", "Softmax", "Transpose"),
        _QKV_TENSORS,
    ),
    Pattern(
        "a bias that makes the result larger",
        "a = MatMul (x, w) y = Add (a, b)",
        "float[3,8] x",
        "float[2,3,5] y",
        ("Add", LINEAR),
        {"x": drawn(3, 8)},
        {"w": drawn(8, 5), "b": drawn(2, 3, 5)},
    ),
    Pattern(
        "x times the sigmoid of another",
        "b = Sigmoid (z) y = Mul (x, b)",
        "float[2,9] x, float[2,9] z",
        "float[2,9] y",
        ("Mul", "Sigmoid"),
        {"x": drawn(2, 9), "z": drawn(2, 9, seed=1)},
    ),
]
"""What looks like a pattern and is none."""
