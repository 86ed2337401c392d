"""Values that are stored in a package: in the protobuf itself, or in a weight file.

They are read when they are first used and kept as they are computed with: fp16 widened to float32, sub-byte elements
unpacked, read-only.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from flagsplit.errors import BundleError
from flagsplit.targets.mobile.mil.types import (
    STORAGE,
    SUB_BYTE_BITS,
    Array,
    DictType,
    ListType,
    TensorType,
    check_room,
    read_type,
)
from flagsplit.targets.mobile.mil.weight_file import WeightFile

OpenWeights = Callable[[str], WeightFile]
"""Opens a weight file by the name that a program gives it."""

_REPEATED: Final[Mapping[str, str]] = {
    "floats": "float32",
    "doubles": "float64",
    "ints": "int32",
    "longInts": "int64",
    "bools": "bool",
    "strings": "string",
}


@dataclass(eq=False)
class Constant:
    """A stored value.

    Attributes:
        type: of the value.
        where: what it is the value of, for messages.
        message: its `Value` in the protobuf.
        open_weights: opens the weight files of the package.
    """

    type: TensorType | ListType | DictType
    where: str
    message: Any = field(repr=False)
    open_weights: OpenWeights = field(repr=False)
    _cached: "Array | list[Array] | None" = field(default=None, repr=False)

    def value(self) -> "Array | list[Array]":
        """The value; lists as Python lists.

        Raises:
            BundleError: what is stored does not match the type, or is not there.
        """
        if self._cached is None:
            self._cached = self._read()
        return self._cached

    def _read(self) -> "Array | list[Array]":
        if isinstance(self.type, DictType):
            raise BundleError(f"{self.where} stores a dictionary, which the interpreter lacks")
        if isinstance(self.type, ListType):
            values = self.message.immediateValue.list.values
            return [_tensor(self.type.element, value, self.where, self.open_weights) for value in values]
        return _tensor(self.type, self.message, self.where, self.open_weights)


def read_constant(message: Any, where: str, open_weights: OpenWeights) -> Constant:
    """The value in a `Value` message, which is not read yet.

    Raises:
        BundleError: its type is damaged.
    """
    kind = read_type(message.type, where)
    if not isinstance(kind, TensorType | ListType | DictType):
        raise BundleError(f"expected {where} to store a tensor, list or dictionary; it stores a {kind}")
    return Constant(kind, where, message, open_weights)


def _tensor(kind: TensorType, message: Any, where: str, open_weights: OpenWeights) -> Array:
    if None in kind.shape:
        raise BundleError(f"{where} stores a value of unknown shape {kind}; the package is damaged, write it again")
    shape = tuple(size for size in kind.shape if size is not None)
    check_room(shape, kind.dtype, where)
    if message.WhichOneof("value") == "blobFileValue":
        stored = message.blobFileValue
        data = open_weights(stored.fileName).record(stored.offset, kind.dtype)
        return _from_bytes(data, kind.dtype, shape, where)
    tensor = message.immediateValue.tensor
    held = tensor.WhichOneof("value")
    if held == "bytes":
        return _from_bytes(memoryview(tensor.bytes.values), kind.dtype, shape, where)
    if held is None or (_REPEATED[held] == "string") != (kind.dtype == "string"):
        raise BundleError(f"expected {where} to store {kind}; it stores {held or 'nothing'}; write the package again")
    values = getattr(tensor, held).values
    _check_count(len(values), math.prod(shape), where)
    array = np.array(values, dtype=STORAGE[_REPEATED[held]]).reshape(shape)
    return _frozen(array if kind.dtype == "string" else array.astype(STORAGE[kind.dtype]))


def _from_bytes(data: memoryview, dtype: str, shape: tuple[int, ...], where: str) -> Array:
    count = math.prod(shape)
    if dtype in SUB_BYTE_BITS:
        bits = SUB_BYTE_BITS[dtype]
        _check_count(len(data), -(-count * bits // 8), where, "bytes")
        return _frozen(unpack(np.frombuffer(data, np.uint8), bits, count, signed=dtype == "int4").reshape(shape))
    if dtype == "string":
        raise BundleError(f"expected {where} to store strings; it stores bytes; write the package again")
    stored = np.dtype(np.float16) if dtype == "float16" else STORAGE[dtype]
    _check_count(len(data), count * stored.itemsize, where, "bytes")
    array = np.frombuffer(data, stored.newbyteorder("<")).reshape(shape)
    return _frozen(array.astype(STORAGE[dtype], copy=False))


def unpack(packed: Array, bits: int, count: int, *, signed: bool) -> Array:
    """`count` elements of `bits` each out of bytes in which they lie one after another, low bits first."""
    flags = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits)
    weights = np.left_shift(1, np.arange(bits)).astype(np.int16)
    if signed:
        weights[-1] = -weights[-1]
    return (flags @ weights).astype(np.int8 if signed else np.uint8)


def _check_count(came: int, expected: int, where: str, unit: str = "elements") -> None:
    if came != expected:
        raise BundleError(f"expected {where} to store {expected} {unit}; it stores {came}; write the package again")


def _frozen(array: Array) -> Array:
    array.flags.writeable = False
    return array
