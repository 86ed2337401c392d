"""What a lowering knows of its node: attributes, constants, element types and shapes, all before PyTorch is there."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from flagsplit.targets.cloud.cuda.lowering.style import Style
from flagsplit.targets.cloud.cuda.sdk import torch
from flagsplit.targets.interface import Array

Kernel = Callable[..., Any]
"""Computes a node: takes a tensor per input, None for those left out or read as constants; gives one or several."""

DTYPES = {
    ir.DataType.BOOL: "bool",
    ir.DataType.BFLOAT16: "bfloat16",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.FLOAT: "float32",
    ir.DataType.DOUBLE: "float64",
    ir.DataType.INT8: "int8",
    ir.DataType.INT16: "int16",
    ir.DataType.INT32: "int32",
    ir.DataType.INT64: "int64",
    ir.DataType.UINT8: "uint8",
}
"""PyTorch's names of the element types that programs compute with."""

_NARROWED = ("float32", "float16", "bfloat16")


class Refused(Exception):  # noqa: N818 an answer, not an error
    """A node is not taken; the text says why."""


class Site:
    """A node at which something is computed.

    Args:
        node: of a canonical graph of fixed shapes.
        precision: PyTorch's name of the type that float32 and narrower values are computed in; "" leaves them alone.
        style: how operators are written that have several forms.
        wide: names of values that stay as they are all the same.
    """

    def __init__(
        self,
        node: ir.Node,
        precision: str = "",
        style: Style = Style(),  # noqa: B008 it is frozen
        wide: Collection[str] = (),
    ) -> None:
        self.node = node
        self.attributes = node.attributes
        self.read: set[int] = set()
        self.style = style
        self._precision = precision
        self._wide = wide

    def given(self, index: int) -> bool:
        """Whether there is such an input."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def value(self, index: int) -> ir.Value:
        """An input that must be there."""
        value = self.node.inputs[index] if index < len(self.node.inputs) else None
        if value is None:
            raise Refused(f"input {index} is missing")
        return value

    def const(self, index: int) -> Array | None:
        """The constant that an input is, which then is no tensor of the kernel; None if it is none or left out."""
        value = self.node.inputs[index] if index < len(self.node.inputs) else None
        if value is None or value.const_value is None:
            return None
        self.read.add(index)
        return np.asarray(value.const_value.numpy())

    def need(self, index: int, what: str) -> Array:
        """The constant that an input must be."""
        found = self.const(index)
        if found is None:
            raise Refused(f"its {what} has to be constant")
        return found

    def ints(self, index: int, what: str) -> list[int]:
        """The whole numbers that an input must be."""
        return [int(each) for each in self.need(index, what).reshape(-1)]

    def shape(self, index: int) -> tuple[int, ...]:
        """Sizes of an input."""
        return shape_of(self.value(index))

    def rank(self, index: int) -> int:
        """Number of dimensions of an input."""
        return len(self.shape(index))

    def out_shape(self, index: int = 0) -> tuple[int, ...]:
        """Sizes of an output."""
        return shape_of(self.node.outputs[index])

    def dtype(self, index: int) -> str:
        """PyTorch's name of the type that an input is computed in."""
        return self.dtype_of(self.value(index))

    def out_dtype(self, index: int = 0) -> str:
        """PyTorch's name of the type that an output is computed in."""
        return self.dtype_of(self.node.outputs[index])

    def dtype_of(self, value: ir.Value) -> str:
        """PyTorch's name of the type that a value is computed in."""
        return dtype_of(value, "" if value.name in self._wide else self._precision)

    def is_float(self, index: int) -> bool:
        """Whether an input is of floating-point numbers."""
        return "float" in self.dtype(index)

    def axis(self, name: str, default: int, rank: int) -> int:
        """An attribute that is an axis, counted from the front."""
        axis = self.attributes.get_int(name, default)
        assert axis is not None
        return axis + rank if axis < 0 else axis

    def integer(self, name: str, default: int) -> int:
        """An attribute."""
        found = self.attributes.get_int(name, default)
        assert found is not None
        return found

    def number(self, name: str, default: float) -> float:
        """An attribute."""
        found = self.attributes.get_float(name, default)
        assert found is not None
        return found

    def text(self, name: str, default: str) -> str:
        """An attribute."""
        found = self.attributes.get_string(name, default)
        assert found is not None
        return found

    def integers(self, name: str, default: Sequence[int] = ()) -> list[int]:
        """An attribute."""
        return [int(each) for each in self.attributes.get_ints(name, default) or ()]


def shape_of(value: ir.Value) -> tuple[int, ...]:
    """Sizes of a value; refused if one is open."""
    dims = tuple(value.shape) if value.shape is not None else (None,)
    if not all(isinstance(dim, int) for dim in dims):
        raise Refused(f"the shape of {value.name!r} is not known")
    return tuple(dim for dim in dims if isinstance(dim, int))


def dtype_of(value: ir.Value, precision: str = "") -> str:
    """PyTorch's name of the type that a value is computed in; refused if it has none for it."""
    name = DTYPES.get(value.dtype) if value.dtype is not None else None
    if name is None:
        said = value.dtype.name.lower() if value.dtype is not None else "unknown type"
        raise Refused(f"PyTorch computes with no {said}")
    return precision if precision and name in _NARROWED else name


def as_dtype(name: str) -> Any:
    """PyTorch's type of that name."""
    return getattr(torch, name)


def widened(x: Any) -> Any:
    """Half precision as float32, others as they are: for what overflows or loses digits in half precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
