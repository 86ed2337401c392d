"""Operators that work element by element, with NumPy's broadcasting, and casts."""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from flagsplit.targets.mobile.mil.arguments import Arguments, Operator
from flagsplit.targets.mobile.mil.ops.error_function import erf
from flagsplit.targets.mobile.mil.types import STORAGE, Array

CAST_TYPES: Final[Mapping[str, str]] = {
    "fp16": "float16",
    "fp32": "float32",
    **{name: name for name in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "bool")},
}
"""Our names of the element types by those that `cast` and its like are given."""


def _unary(function: Callable[[Array], Array]) -> Operator:
    def run(a: Arguments) -> Array:
        x = a.tensor("x")
        # Some of NumPy's functions change the type of integers.
        return np.asarray(function(x)).astype(x.dtype, copy=False)

    return run


def _binary(function: Callable[[Array, Array], Array]) -> Operator:
    def run(a: Arguments) -> Array:
        x, y = _pair(a)
        return np.asarray(function(x, y))

    return run


def _logical(function: Callable[[Array, Array], Array]) -> Operator:
    def run(a: Arguments) -> Array:
        x, y = _pair(a)
        if x.dtype != np.bool_:
            raise a.refuse(f"expected truth values; it has {a.dtype('x')}")
        return np.asarray(function(x, y))

    return run


def _pair(a: Arguments) -> tuple[Array, Array]:
    x, y = a.tensor("x"), a.tensor("y")
    if a.dtype("x") != a.dtype("y"):
        raise a.refuse(f"expected inputs of one type; it has {a.dtype('x')} and {a.dtype('y')}")
    a.room(np.broadcast_shapes(x.shape, y.shape))
    return x, y


def _real_div(x: Array, y: Array) -> Array:
    # The result has the type of the inputs, also for integers: they are cut off, as a cast would.
    return np.asarray(np.trunc(np.true_divide(x, y)) if x.dtype.kind in "iu" else np.true_divide(x, y)).astype(x.dtype)


def _pow(x: Array, y: Array) -> Array:
    # NumPy refuses negative integer exponents.
    return np.asarray(np.power(x.astype(np.float64), y) if x.dtype.kind in "iu" else np.power(x, y)).astype(x.dtype)


def _with_epsilon(function: Callable[[Array], Array], default: float) -> Operator:
    def run(a: Arguments) -> Array:
        x = a.tensor("x")
        # The default is of the type of x: in fp16 it may be another number, or 0.
        usual = float(np.float16(default)) if a.dtype("x") == "float16" else default
        return function(x + x.dtype.type(a.number("epsilon", usual)))

    return run


def clip(a: Arguments) -> Array:
    """`min(max(x, alpha), beta)`."""
    x = a.tensor("x")
    return np.minimum(np.maximum(x, x.dtype.type(a.number("alpha"))), x.dtype.type(a.number("beta")))


def threshold(a: Arguments) -> Array:
    """`max(x, alpha)`."""
    x = a.tensor("x")
    return np.maximum(x, x.dtype.type(a.number("alpha")))


def cast(a: Arguments) -> Array:
    """`x` of another type; floats are cut off towards zero on the way to integers."""
    x = a.tensor("x")
    target = CAST_TYPES[a.choice("dtype", tuple(CAST_TYPES))]
    if target != a.output_dtype():
        raise a.refuse(f"it casts to {target}; the program declares {a.outputs[0]}")
    if x.dtype.kind == "f" and STORAGE[target].kind in "iu":
        # By way of the widest integer, so that the result does not depend on the host's conversion instructions.
        return np.trunc(x).astype(np.int64).astype(STORAGE[target])
    return x.astype(STORAGE[target])


def select(a: Arguments) -> Array:
    """Elements of `a` where `cond` holds, else of `b`."""
    cond, x, y = a.tensor("cond"), a.tensor("a"), a.tensor("b")
    if a.dtype("a") != a.dtype("b"):
        raise a.refuse(f"expected a and b of one type; they are {a.dtype('a')} and {a.dtype('b')}")
    a.room(np.broadcast_shapes(cond.shape, x.shape, y.shape))
    return np.where(cond.astype(np.bool_), x, y)


OPERATORS: Final[Mapping[str, Operator]] = {
    "abs": _unary(np.abs),
    "acos": _unary(np.arccos),
    "add": _binary(np.add),
    "asin": _unary(np.arcsin),
    "atan": _unary(np.arctan),
    "atanh": _unary(np.arctanh),
    "cast": cast,
    "ceil": _unary(np.ceil),
    "clip": clip,
    "cos": _unary(np.cos),
    "cosh": _unary(np.cosh),
    "equal": _binary(np.equal),
    "erf": _unary(erf),
    "exp": _unary(np.exp),
    "exp2": _unary(np.exp2),
    "floor": _unary(np.floor),
    "floor_div": _binary(np.floor_divide),
    "greater": _binary(np.greater),
    "greater_equal": _binary(np.greater_equal),
    "identity": lambda a: a.tensor("x"),
    "inverse": _with_epsilon(np.reciprocal, 1e-4),
    "less": _binary(np.less),
    "less_equal": _binary(np.less_equal),
    "log": _with_epsilon(np.log, 1e-45),
    "logical_and": _logical(np.logical_and),
    "logical_not": _unary(np.logical_not),
    "logical_or": _logical(np.logical_or),
    "logical_xor": _logical(np.logical_xor),
    "maximum": _binary(np.maximum),
    "minimum": _binary(np.minimum),
    "mod": _binary(np.mod),
    "mul": _binary(np.multiply),
    "not_equal": _binary(np.not_equal),
    "pow": _binary(_pow),
    "real_div": _binary(_real_div),
    "round": _unary(np.round),
    "rsqrt": _with_epsilon(lambda x: 1 / np.sqrt(x), 1e-12),
    "select": select,
    "sign": _unary(np.sign),
    "sin": _unary(np.sin),
    "sinh": _unary(np.sinh),
    "sqrt": _unary(np.sqrt),
    "square": _unary(np.square),
    "sub": _binary(np.subtract),
    "tan": _unary(np.tan),
    "tanh": _unary(np.tanh),
    "threshold": threshold,
}
