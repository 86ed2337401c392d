"""What is known of a node before anything is built: its attributes, shapes, element types and constant operands.

A lowering and its refusals read a node through this, so that they cannot see different things. Nothing here needs
coremltools.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Array = NDArray[np.generic]

FLOATS = frozenset((ir.DataType.FLOAT, ir.DataType.FLOAT16))
INTEGERS = frozenset((ir.DataType.INT32, ir.DataType.INT64))
NUMBERS = FLOATS | INTEGERS
BOOL = frozenset((ir.DataType.BOOL,))
ALL = NUMBERS | BOOL
"""The element types that have an equivalent in a Core ML program; int64 becomes int32."""
BYTES = frozenset((ir.DataType.INT8, ir.DataType.UINT8))
"""Whole numbers of 8 bits, between operators that quantize; a program holds them as int32."""

MAX_RANK = 5
"""The highest rank of a tensor in a Core ML program."""

_INT32 = np.iinfo(np.int32)


class NodeFacts:
    """A node of fixed shapes.

    Attributes:
        node: itself.
        op: its operator.
    """

    def __init__(self, node: ir.Node) -> None:
        self.node = node
        self.op = node.op_type

    @property
    def inputs(self) -> int:
        """How many operands it lists, those left out between others included."""
        return len(self.node.inputs)

    @property
    def outputs(self) -> int:
        """How many outputs it lists."""
        return len(self.node.outputs)

    def value(self, at: int) -> ir.Value:
        """An operand that is there."""
        value = self.node.inputs[at]
        assert value is not None, f"operand {at} of {self.op} is missing"
        return value

    def has(self, at: int) -> bool:
        """Whether an operand is there."""
        return at < len(self.node.inputs) and self.node.inputs[at] is not None

    def gives(self, at: int) -> bool:
        """Whether somebody reads an output."""
        if at >= len(self.node.outputs):
            return False
        value = self.node.outputs[at]
        return bool(value.name) and (bool(value.uses()) or value.is_graph_output() or value.graph is None)

    def shape(self, at: int = 0) -> tuple[int, ...]:
        """Sizes of an operand."""
        return sizes_of(self.value(at))

    def rank(self, at: int = 0) -> int:
        """Rank of an operand."""
        return len(self.shape(at))

    def dtype(self, at: int = 0) -> ir.DataType:
        """Element type of an operand."""
        dtype = self.value(at).dtype
        assert dtype is not None
        return dtype

    def out_shape(self, at: int = 0) -> tuple[int, ...]:
        """Sizes of an output."""
        return sizes_of(self.node.outputs[at])

    def out_dtype(self, at: int = 0) -> ir.DataType:
        """Element type of an output."""
        dtype = self.node.outputs[at].dtype
        assert dtype is not None
        return dtype

    def is_const(self, at: int) -> bool:
        """Whether an operand is there and constant."""
        return self.has(at) and self.value(at).const_value is not None

    def const(self, at: int) -> Array | None:
        """A constant operand; None if it is missing or computed."""
        if not self.is_const(at):
            return None
        tensor = self.value(at).const_value
        assert tensor is not None
        return np.asarray(tensor.numpy())

    def const_ints(self, at: int, default: Sequence[int] = ()) -> list[int]:
        """A constant operand of integers as a list; the default where it is left out."""
        array = self.const(at)
        return list(default) if array is None else [int(number) for number in array.reshape(-1)]

    def integer(self, name: str, default: int = 0) -> int:
        """An attribute of one integer."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.as_int()

    def real(self, name: str, default: float = 0.0) -> float:
        """An attribute of one number."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.as_float()

    def text(self, name: str, default: str = "") -> str:
        """An attribute of text."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.as_string()

    def ints(self, name: str, default: Sequence[int] = ()) -> list[int]:
        """An attribute of integers."""
        attribute = self.node.attributes.get(name)
        return list(default) if attribute is None else [int(number) for number in attribute.as_ints()]

    def axis(self, default: int = 0, rank: int | None = None) -> int:
        """The attribute `axis`, counted from the front."""
        axis = self.integer("axis", default)
        return axis + (self.rank() if rank is None else rank) if axis < 0 else axis


def sizes_of(value: ir.Value) -> tuple[int, ...]:
    """Sizes of a value of fixed shape."""
    assert value.shape is not None, f"{value.name} has no shape"
    sizes = tuple(dim for dim in value.shape if isinstance(dim, int))
    assert len(sizes) == len(value.shape), f"{value.name} has open sizes"
    return sizes


def unfit_value(value: ir.Value, *, bytes_too: bool = False) -> str:
    """Why a value cannot be a tensor of a Core ML program; "" if it can.

    Args:
        value: of any type.
        bytes_too: whether it may be of 8 bits.
    """
    if not isinstance(value.type, ir.TensorType) or value.dtype is None:
        return f"{value.name!r} is no tensor, or its type is unknown"
    if value.dtype not in ALL and not (bytes_too and value.dtype in BYTES):
        return f"{value.name!r} is of {value.dtype.name.lower()}; Core ML programs take float, float16, int32 and bool"
    if value.shape is None or not all(isinstance(dim, int) for dim in value.shape):
        return f"the shape of {value.name!r} is not fixed"
    if len(value.shape) > MAX_RANK:
        return f"{value.name!r} is of rank {len(value.shape)}; Core ML goes up to {MAX_RANK}"
    if 0 in sizes_of(value):
        return f"{value.name!r} has no elements"
    return ""


def unfit_constant(value: ir.Value) -> str:
    """Why a constant cannot be narrowed to int32; "" if it can."""
    if value.const_value is None or value.dtype != ir.DataType.INT64:
        return ""
    array = value.const_value.numpy()
    if array.size and (array.max() > _INT32.max or array.min() < _INT32.min):
        return f"the constant {value.name!r} holds numbers beyond int32, the only integers that Core ML computes with"
    return ""
