"""The concrete type of a tensor: element type and sizes."""

import math
from dataclasses import dataclass

import onnx_ir as ir


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
