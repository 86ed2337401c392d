"""What a lowering works with: the facts of its node, its operands as MIL variables, and constants of the right type."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from flagsplit.targets.mobile.coreml.lowering.facts import Array, NodeFacts

Var = Any
"""A variable of coremltools' MIL; coremltools has no types."""

NP_TYPES = {
    ir.DataType.FLOAT: np.float32,
    ir.DataType.FLOAT16: np.float16,
    ir.DataType.INT32: np.int32,
    ir.DataType.INT64: np.int32,
    ir.DataType.BOOL: np.bool_,
    ir.DataType.INT8: np.int32,
    ir.DataType.UINT8: np.int32,
}
"""The NumPy types of tensors in a program."""
MIL_NAMES = {
    ir.DataType.FLOAT: "fp32",
    ir.DataType.FLOAT16: "fp16",
    ir.DataType.INT32: "int32",
    ir.DataType.INT64: "int32",
    ir.DataType.BOOL: "bool",
    ir.DataType.INT8: "int32",
    ir.DataType.UINT8: "int32",
}
"""The names that MIL has for these types."""


class Site(NodeFacts):
    """A node that is being lowered.

    Args:
        node: itself.
        values: the MIL variables so far, by value; constants are added as they are asked for.

    Attributes:
        mb: coremltools' MIL builder.
    """

    def __init__(self, node: ir.Node, values: dict[ir.Value, Var]) -> None:
        super().__init__(node)
        from coremltools.converters.mil.mil import Builder

        self.mb: Any = Builder
        self._values = values

    def var(self, at: int = 0) -> Var:
        """An operand as a MIL variable."""
        value = self.value(at)
        if value not in self._values:
            array = self.const(at)
            assert array is not None, f"{value.name} was not made before {self.op}"
            self._values[value] = self.mb.const(val=self.cast_const(array))
        return self._values[value]

    def all_vars(self) -> list[Var]:
        """All operands that are there."""
        return [self.var(at) for at in range(self.inputs) if self.has(at)]

    @staticmethod
    def cast_const(array: Array) -> Any:
        """A constant in the type that programs have for it."""
        array = np.ascontiguousarray(array).reshape(array.shape)
        if array.dtype in (np.int64, np.int8, np.uint8):
            array = array.astype(np.int32)
        return array if array.shape else array[()]

    def number(self, value: float, like: int = 0) -> Any:
        """A number in the element type of an operand, to compute with that operand."""
        return NP_TYPES[self.dtype(like)](value)

    def numbers(self, values: Any, like: int = 0) -> Any:
        """An array in the element type of an operand."""
        return np.asarray(values).astype(NP_TYPES[self.dtype(like)])

    def cast(self, x: Var, dtype: ir.DataType) -> Var:
        """Convert as ONNX does: floats to integers towards zero, to bool whether it is not zero."""
        name = MIL_NAMES[dtype]
        if mil_name(x) == name:
            return x
        if name == "bool":
            return self.mb.not_equal(x=x, y=np_type(x)(0))
        return self.mb.cast(x=x, dtype=name)

    def as_int(self, x: Var) -> Var:
        """A bool as 0 or 1, for operators that Core ML does not have for bools; others as they are."""
        return self.mb.cast(x=x, dtype="int32") if mil_name(x) == "bool" else x

    def reshape(self, x: Var, shape: Sequence[int]) -> Var:
        """Reshape, scalars included."""
        have, want = tuple(x.shape), tuple(int(size) for size in shape)
        if have == want:
            return x
        if not have:
            return self.mb.expand_dims(x=x, axes=list(range(len(want))))
        if not want:
            return self.mb.squeeze(x=x, axes=list(range(len(have))))
        return self.mb.reshape(x=x, shape=list(want))

    def transpose(self, x: Var, perm: Sequence[int]) -> Var:
        """Transpose, if there is anything to do."""
        return x if list(perm) == list(range(len(perm))) else self.mb.transpose(x=x, perm=list(perm))

    def broadcast(self, x: Var, shape: Sequence[int]) -> Var:
        """Repeat until the shape is as wanted, by ONNX's rules of broadcasting."""
        shape = [int(size) for size in shape]
        x = self.reshape(x, [1] * (len(shape) - len(x.shape)) + list(x.shape))
        reps = [want // have for want, have in zip(shape, x.shape, strict=True)]
        return x if all(rep == 1 for rep in reps) else self.mb.tile(x=x, reps=reps)

    def cut(self, x: Var, axis: int, begin: int, end: int, step: int = 1) -> Var:
        """Elements begin, begin + step, ... before end, along one axis, all non-negative and step positive."""
        rank = len(x.shape)
        if (begin, step) == (0, 1) and end >= x.shape[axis]:
            return x
        begins, ends, steps = [0] * rank, list(x.shape), [1] * rank
        begins[axis], ends[axis], steps[axis] = begin, end, step
        return self.mb.slice_by_index(x=x, begin=begins, end=ends, stride=steps)

    def take(self, x: Var, indices: Array, axis: int) -> Var:
        """Elements at constant, non-negative indices along an axis; of any element type."""
        wanted = self.mb.gather(x=self.as_int(x), indices=np.asarray(indices, np.int32), axis=axis)
        return self.mb.cast(x=wanted, dtype="bool") if mil_name(x) == "bool" else wanted

    def from_end(self, indices: Var, size: int) -> Var:
        """Indices with those below zero counted from the end, as Core ML's operators do not."""
        if indices.val is not None:
            found = np.asarray(indices.val)
            if (found >= 0).all():
                return indices
            found = np.where(found < 0, found + size, found).astype(np.int32)
            return self.mb.const(val=found if found.shape else found[()])
        below = self.mb.less(x=indices, y=np.int32(0))
        return self.mb.select(cond=below, a=self.mb.add(x=indices, y=np.int32(size)), b=indices)


def mil_name(x: Var) -> str:
    """MIL's name of a variable's element type."""
    from coremltools.converters.mil.mil import types

    name: str = types.builtin_to_string(x.dtype)
    return name


def np_type(x: Var) -> Any:
    """The NumPy type of a variable's elements."""
    from coremltools.converters.mil.mil import types

    return types.nptype_from_builtin(x.dtype)
