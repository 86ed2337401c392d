"""The concrete type of a tensor: element type and sizes; and which values can go from one tier to another."""

import math
from dataclasses import dataclass

import onnx_ir as ir

SENDABLE = frozenset(
    ir.DataType[name] for name in "FLOAT FLOAT16 DOUBLE INT8 INT16 INT32 INT64 UINT8 UINT16 UINT32 UINT64 BOOL".split()
)
"""Element types that engines take and give as arrays, and that travel."""


def is_sendable(value: ir.Value) -> bool:
    """Whether a value can be handed from one tier to another: a tensor of known rank, of numbers or booleans.

    Sequences, maps, optionals and strings cannot, nor can bfloat16, float8, complex numbers and what is under a byte.
    """
    return isinstance(value.type, ir.TensorType) and value.type.dtype in SENDABLE and value.shape is not None


def dims_of(tensor: ir.TensorProtocol) -> tuple[int, ...]:
    """A tensor's sizes; a tensor has no symbols."""
    return tuple(dim for dim in tensor.shape if isinstance(dim, int))


@dataclass(frozen=True)
class ValueType:
    """A tensor's element type and concrete shape.

    Attributes:
        dtype: ONNX element type.
        shape: sizes, without symbols.
    """

    dtype: ir.DataType
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many elements the tensor has."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Size in bytes, elements of under a byte packed; strings count as 8 bytes each."""
        bits = 64 if self.dtype == ir.DataType.STRING else int(self.dtype.itemsize * 8)
        return -(-self.elements * bits // 8)
