"""Types of MIL values as plain data, read from the protobuf.

Element types keep MIL's meaning but NumPy's names ("float16", "int4", "string"); `STORAGE` says how an array of each is
held in memory while it is computed with.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from flagsplit.errors import BundleError
from flagsplit.targets.mobile.mil.proto import pb

Array = NDArray[Any]

MAX_VALUE_BYTES: Final = 2 << 30
"""No single value may be larger: a damaged size must not take the host's memory."""

_MAX_RANK: Final = 16
_MAX_NESTING: Final = 4

DTYPES: Final[Mapping[int, str]] = {
    1: "bool",
    2: "string",
    10: "float16",
    11: "float32",
    12: "float64",
    21: "int8",
    22: "int16",
    23: "int32",
    24: "int64",
    25: "int4",
    31: "uint8",
    32: "uint16",
    33: "uint32",
    34: "uint64",
    35: "uint4",
    36: "uint2",
    37: "uint1",
    38: "uint6",
    39: "uint3",
}
"""Our name of each element type by its number in MIL.proto."""

STORAGE: Final[Mapping[str, np.dtype[Any]]] = {
    "bool": np.dtype(np.bool_),
    "string": np.dtype(np.str_),
    "float16": np.dtype(np.float32),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "int8": np.dtype(np.int8),
    "int16": np.dtype(np.int16),
    "int32": np.dtype(np.int32),
    "int64": np.dtype(np.int64),
    "int4": np.dtype(np.int8),
    "uint8": np.dtype(np.uint8),
    "uint16": np.dtype(np.uint16),
    "uint32": np.dtype(np.uint32),
    "uint64": np.dtype(np.uint64),
    "uint4": np.dtype(np.uint8),
    "uint2": np.dtype(np.uint8),
    "uint1": np.dtype(np.uint8),
    "uint6": np.dtype(np.uint8),
    "uint3": np.dtype(np.uint8),
}
"""The NumPy type that holds each element type while an operator computes: fp16 is widened, sub-byte types unpacked."""

SUB_BYTE_BITS: Final[Mapping[str, int]] = {"int4": 4, "uint4": 4, "uint2": 2, "uint1": 1, "uint6": 6, "uint3": 3}
"""Bits of an element of the types that are packed in files."""


@dataclass(frozen=True)
class TensorType:
    """A tensor; `None` stands for a dimension whose size is known only when it runs."""

    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join('?' if size is None else str(size) for size in self.shape)}]"

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of `shape` may be of this type."""
        return len(shape) == len(self.shape) and all(
            declared is None or declared == size for declared, size in zip(self.shape, shape, strict=True)
        )


@dataclass(frozen=True)
class ListType:
    """A list of tensors of one type."""

    element: TensorType

    def __str__(self) -> str:
        return f"list of {self.element}"


@dataclass(frozen=True)
class DictType:
    """A mapping, as classifiers give it."""

    key: TensorType
    value: TensorType

    def __str__(self) -> str:
        return f"dictionary from {self.key} to {self.value}"


@dataclass(frozen=True)
class StateType:
    """A tensor that lives on between runs."""

    wrapped: TensorType

    def __str__(self) -> str:
        return f"state of {self.wrapped}"


ValueType = TensorType | ListType | DictType | StateType


@dataclass(frozen=True)
class FeatureSpec:
    """A tensor that a function takes or gives.

    Attributes:
        name: of the feature.
        dtype: NumPy name of the element type, or "string".
        shape: sizes; `None` for one that may vary.
        ranges: for each dimension the least and the largest size (-1: unbounded), where the package states ranges.
        choices: the shapes that are allowed, where the package enumerates them; the default first.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    ranges: tuple[tuple[int, int], ...] = ()
    choices: tuple[tuple[int, ...], ...] = ()


def read_type(message: Any, where: str, depth: int = 0) -> ValueType:
    """The type in a `ValueType` message.

    Args:
        message: the protobuf message.
        where: what it is the type of, for messages.
        depth: how deep it is nested in other types.

    Raises:
        BundleError: it is of a kind that MIL programs do not have, or damaged.
    """
    kind = message.WhichOneof("type")
    if depth > _MAX_NESTING:
        raise BundleError(f"the type of {where} is nested too deeply; the package is damaged, write it again")
    if kind == "tensorType":
        return _tensor_type(message.tensorType, where)
    if kind == "listType":
        return ListType(_plain(message.listType.type, where, depth))
    if kind == "dictionaryType":
        inner = message.dictionaryType
        return DictType(_plain(inner.keyType, where, depth), _plain(inner.valueType, where, depth))
    if kind == "stateType":
        return StateType(_plain(message.stateType.wrappedType, where, depth))
    raise BundleError(f"expected {where} to be a tensor, list, dictionary or state; its type is {kind or 'missing'}")


def _plain(message: Any, where: str, depth: int) -> TensorType:
    inner = read_type(message, where, depth + 1)
    if not isinstance(inner, TensorType):
        raise BundleError(f"expected {where} to hold tensors; it holds a {inner}")
    return inner


def _tensor_type(message: Any, where: str) -> TensorType:
    dtype = DTYPES.get(message.dataType)
    if dtype is None:
        name = pb().MIL_pb2.DataType.DESCRIPTOR.values_by_number.get(message.dataType)
        raise BundleError(
            f"{where} has elements of type {name.name if name else message.dataType}, which the interpreter lacks; "
            f"it has {', '.join(STORAGE)}"
        )
    if message.rank != len(message.dimensions) or message.rank > _MAX_RANK:
        raise BundleError(
            f"expected {where} to have {len(message.dimensions)} dimensions, at most {_MAX_RANK}; it states rank "
            f"{message.rank}; the package is damaged, write it again"
        )
    return TensorType(dtype, tuple(_size(dimension, where) for dimension in message.dimensions))


def _size(dimension: Any, where: str) -> int | None:
    if dimension.WhichOneof("dimension") == "constant":
        return int(dimension.constant.size)
    if dimension.unknown.variadic:
        raise BundleError(f"{where} has a variable number of dimensions, which the interpreter lacks")
    return None


def check_room(shape: tuple[int, ...], dtype: str, where: str) -> None:
    """Refuse a value that is too large to be computed here.

    Raises:
        BundleError: an array of `shape` takes more than `MAX_VALUE_BYTES`, or a size is negative.
    """
    if any(size < 0 for size in shape):
        raise BundleError(f"{where} would have the shape {list(shape)}; sizes cannot be negative")
    size_bytes = math.prod(shape) * max(STORAGE[dtype].itemsize, 1)
    if size_bytes > MAX_VALUE_BYTES:
        raise BundleError(
            f"{where} would take {size_bytes} bytes; the interpreter allows {MAX_VALUE_BYTES}; "
            "use smaller inputs, or write the package again if it is damaged"
        )
