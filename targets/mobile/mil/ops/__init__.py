"""The operators that the interpreter has: one file for each family, each with its own table.

An implementation takes `Arguments` and gives arrays of the storage type (see `arguments.py`). It follows the operator's
documentation for iOS 15 to 18; where versions differ, `Arguments.opset` decides.
"""

from collections.abc import Mapping
from typing import Final

from flagsplit.errors import InternalError
from flagsplit.targets.mobile.mil.arguments import Operator
from flagsplit.targets.mobile.mil.ops import (
    activation,
    compression,
    control_flow,
    conv,
    detection,
    elementwise,
    gathering,
    image,
    linear,
    normalization,
    pool,
    random,
    recurrent,
    reduction,
    reshaping,
    slicing,
    tensor,
)


def _merged(families: Mapping[str, Mapping[str, Operator]]) -> Mapping[str, Operator]:
    owners: dict[str, str] = {}
    merged: dict[str, Operator] = {}
    for family, operators in families.items():
        for kind, operator in operators.items():
            if kind in owners:
                raise InternalError(f"operator {kind!r} is in {owners[kind]} and in {family}")
            owners[kind] = family
            merged[kind] = operator
    return merged


OPERATORS: Final = _merged(
    {
        "activation": activation.OPERATORS,
        "compression": compression.OPERATORS,
        "control_flow": control_flow.OPERATORS,
        "conv": conv.OPERATORS,
        "detection": detection.OPERATORS,
        "elementwise": elementwise.OPERATORS,
        "gathering": gathering.OPERATORS,
        "image": image.OPERATORS,
        "linear": linear.OPERATORS,
        "normalization": normalization.OPERATORS,
        "pool": pool.OPERATORS,
        "random": random.OPERATORS,
        "recurrent": recurrent.OPERATORS,
        "reduction": reduction.OPERATORS,
        "reshaping": reshaping.OPERATORS,
        "slicing": slicing.OPERATORS,
        "tensor": tensor.OPERATORS,
    }
)
"""Every operator by its name in MIL."""

MOVERS: Final = frozenset(
    {
        *reshaping.OPERATORS,
        *slicing.OPERATORS,
        *("abs", "clip", "identity", "maximum", "minimum", "relu", "relu6", "select", "threshold"),
        *("band_part", "gather", "gather_along_axis", "gather_nd", "max_pool", "pad", "tile"),
    }
)
"""Operators whose results are elements of their inputs, or 0 or 6: of inputs in fp16 they need no rounding."""
