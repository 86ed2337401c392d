"""Writes a program operator by operator: what every lowering uses.

A lowering reads the tensors of a node, calls `op` or one of the short hands, and hands its results over with `give`.
`op` looks each operator up in `kernels`: what LiteRT's CPU kernels do not take is refused here, with the reason.
float16 is carried as float32: the CPU kernels have none, and the host converts at the edges of the program.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from flagsplit.targets.interface import Array
from flagsplit.targets.tflite.kernels import refusal_of
from flagsplit.targets.tflite.program import Operator, Refused, Tensor

CARRIED = {"FLOAT": "float32", "FLOAT16": "float32", "INT32": "int32", "INT64": "int64", "BOOL": "bool"}
"""NumPy names of the types that ONNX's are carried in."""

SMALL = {"INT8": "int32", "UINT8": "int32"}
"""The same of integers of 8 bits, which few operators take: sums of them would have to wrap."""

_MOST_RANK = 4
"""Up to here every kernel broadcasts."""


class Builder:
    """A program in the making.

    Args:
        lower: lowers a node of a decomposition with this builder.
    """

    def __init__(self, lower: Callable[["Builder", ir.Node], None]) -> None:
        self.operators: list[Operator] = []
        self.lower = lower
        self.twins: dict[Tensor, Tensor] = {}
        """Whole numbers in float32, by the integers that were made of them."""
        self._known: dict[ir.Value, Tensor] = {}
        self._permuted: dict[tuple[Tensor, tuple[int, ...]], Tensor] = {}

    # What a node takes and gives.

    def know(self, value: ir.Value, tensor: Tensor) -> None:
        """Let a value of the graph be a tensor."""
        self._known[value] = tensor

    def tensor(self, value: ir.Value) -> Tensor:
        """The tensor of a value."""
        if value not in self._known:
            if value.const_value is None or value.is_graph_input():
                raise Refused(f"{value.name!r} is not computed before it is read")
            self._known[value] = constant(value.const_value)
        return self._known[value]

    def take(self, node: ir.Node, at: int) -> Tensor:
        """An input."""
        found = self.maybe(node, at)
        if found is None:
            raise Refused(f"input {at} of {node.op_type} is missing")
        return found

    def maybe(self, node: ir.Node, at: int) -> Tensor | None:
        """An input that may be missing."""
        value = node.inputs[at] if at < len(node.inputs) else None
        return None if value is None else self.tensor(value)

    def takes(self, node: ir.Node) -> list[Tensor]:
        """All inputs."""
        return [self.take(node, at) for at in range(len(node.inputs))]

    def fixed(self, node: ir.Node, at: int) -> Array:
        """The content of an input that must be constant."""
        found = self.take(node, at).data
        if found is None:
            raise Refused(f"input {at} of {node.op_type} must be constant for TFLite, came one that is computed")
        return found

    def maybe_fixed(self, node: ir.Node, at: int) -> Array | None:
        """The content of an input that must be constant, if it is there."""
        return None if self.maybe(node, at) is None else self.fixed(node, at)

    def give(self, node: ir.Node, *tensors: Tensor) -> None:
        """Hand over the outputs of a node, in its order; outputs without use may be left out at the end."""
        for value, tensor in zip(node.outputs, tensors, strict=False):
            self.know(value, tensor)

    # Constants.

    def const(self, data: Array | float | int, dtype: str = "") -> Tensor:
        """A constant."""
        array = np.asarray(data, dtype or None)
        return Tensor(array.shape, array.dtype.name, array)

    def ints(self, numbers: Sequence[int]) -> Tensor:
        """A list of sizes or positions, as TFLite takes them."""
        return self.const(np.array(list(numbers), np.int32))

    def like(self, number: float | int | bool, other: Tensor) -> Tensor:
        """A scalar of another tensor's type."""
        return self.const(np.array(number, other.dtype))

    # Operators.

    def op(
        self, code: str, inputs: Sequence[Tensor | None], shape: Sequence[int], dtype: str = "", **options: Any
    ) -> Tensor:
        """Write an operator of one output; its type is that of the first input if not said."""
        first = inputs[0]
        assert first is not None
        return self.many(code, inputs, [(shape, dtype or first.dtype)], **options)[0]

    def many(
        self,
        code: str,
        inputs: Sequence[Tensor | None],
        outputs: Sequence[tuple[Sequence[int], str]],
        **options: Any,
    ) -> list[Tensor]:
        """Write an operator of several outputs."""
        made = [Tensor(tuple(int(each) for each in shape), dtype) for shape, dtype in outputs]
        for tensor in (*made, *(each for each in inputs if each is not None)):
            if tensor.size == 0 and tensor.rank:
                raise Refused("TFLite has no empty tensors")
        first = inputs[0]
        if first is not None and first.dtype == "int8":
            made = [first.shaped(each.shape) if each.dtype == "int8" else each for each in made]
        operator = Operator(code, tuple(inputs), tuple(made), options)
        if reason := refusal_of(operator):
            raise Refused(reason)
        self.operators.append(operator)
        return made

    def unary(self, code: str, x: Tensor, **options: Any) -> Tensor:
        """An operator on each element."""
        return self.op(code, [x], x.shape, **options)

    def binary(self, code: str, x: Tensor, y: Tensor, dtype: str = "") -> Tensor:
        """An operator on two tensors, which broadcast as in NumPy."""
        try:
            shape = np.broadcast_shapes(x.shape, y.shape)
        except ValueError:
            raise Refused(f"shapes {x.shape} and {y.shape} do not broadcast") from None
        dtype = dtype or x.dtype
        if len(shape) <= _MOST_RANK or x.shape == y.shape:
            left, right = (each if each.rank in (0, len(shape)) else self.raised(each, len(shape)) for each in (x, y))
            return self.op(code, [left, right], shape, dtype)
        merged, shapes = _merged([x.shape, y.shape], shape)
        left, right = (self.reshape(each, wanted) for each, wanted in zip((x, y), shapes, strict=True))
        return self.reshape(self.op(code, [left, right], merged, dtype), shape)

    def add(self, x: Tensor, y: Tensor | float) -> Tensor:
        return self.binary("ADD", x, self._other(y, x))

    def sub(self, x: Tensor, y: Tensor | float) -> Tensor:
        return self.binary("SUB", x, self._other(y, x))

    def mul(self, x: Tensor, y: Tensor | float) -> Tensor:
        return self.binary("MUL", x, self._other(y, x))

    def div(self, x: Tensor, y: Tensor | float) -> Tensor:
        return self.binary("DIV", x, self._other(y, x))

    def maximum(self, x: Tensor, y: Tensor | float) -> Tensor:
        return self.binary("MAXIMUM", x, self._other(y, x))

    def minimum(self, x: Tensor, y: Tensor | float) -> Tensor:
        return self.binary("MINIMUM", x, self._other(y, x))

    def compare(self, code: str, x: Tensor, y: Tensor | float) -> Tensor:
        return self.binary(code, x, self._other(y, x), "bool")

    def _other(self, y: Tensor | float, x: Tensor) -> Tensor:
        return y if isinstance(y, Tensor) else self.like(y, x)

    def select(self, condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """`x` where a condition holds, else `y`; all broadcast."""
        shape = np.broadcast_shapes(condition.shape, x.shape, y.shape)
        if len(shape) <= _MOST_RANK:
            parts = [
                each if each.rank in (0, len(shape)) else self.raised(each, len(shape)) for each in (condition, x, y)
            ]
            return self.op("SELECT_V2", parts, shape, x.dtype)
        merged, shapes = _merged([condition.shape, x.shape, y.shape], shape)
        parts = [self.reshape(each, wanted) for each, wanted in zip((condition, x, y), shapes, strict=True)]
        return self.reshape(self.op("SELECT_V2", parts, merged, x.dtype), shape)

    def copied(self, x: Tensor) -> Tensor:
        """The same in a tensor of its own."""
        if not x.rank:
            return self.reshape(self.copied(self.reshape(x, (1,))), ())
        return self.op("RESHAPE", [x, self.ints(x.shape)], x.shape, newShape=list(x.shape))

    def raised(self, x: Tensor, rank: int) -> Tensor:
        """With leading ones up to a rank."""
        return self.reshape(x, (1,) * (rank - x.rank) + x.shape)

    def reshape(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """Of another shape of as many elements."""
        wanted = tuple(int(each) for each in shape)
        if wanted == x.shape:
            return x
        if math.prod(wanted) != x.size:
            raise Refused(f"shape {x.shape} cannot become {wanted}")
        if x.data is not None:
            return x.rearranged(lambda data: data.reshape(wanted))
        if not wanted:
            return self.op("SQUEEZE", [x], wanted, squeezeDims=list(range(x.rank)))
        return self.op("RESHAPE", [x, self.ints(wanted)], wanted, newShape=list(wanted))

    def transpose(self, x: Tensor, perm: Sequence[int]) -> Tensor:
        """With dimensions in another order."""
        order = tuple(int(each) for each in perm)
        if order == tuple(range(x.rank)):
            return x
        if x.data is not None:
            return x.rearranged(lambda data: data.transpose(order))
        key = (x, order)
        if key not in self._permuted:
            shape = [x.shape[each] for each in order]
            self._permuted[key] = self.op("TRANSPOSE", [x, self.ints(order)], shape)
        return self._permuted[key]

    def cast(self, x: Tensor, dtype: str) -> Tensor:
        """Of another element type."""
        if x.dtype == dtype:
            return x
        if x.data is not None:
            return self.const(x.data.astype(dtype))
        if dtype == "float32" and x in self.twins:
            return self.twins[x]
        return self.op("CAST", [x], x.shape, dtype, inDataType=x.dtype, outDataType=dtype)

    def expand(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """Broadcast to a shape."""
        wanted = tuple(int(each) for each in shape)
        if x.shape == wanted:
            return x
        if x.data is not None:
            return x.rearranged(lambda data: np.broadcast_to(data, wanted))
        if len(wanted) > _MOST_RANK:
            merged, shapes = _merged([x.shape], wanted)
            return self.reshape(self.expand(self.reshape(x, shapes[0]), merged), wanted)
        return self.op("BROADCAST_TO", [self.raised(x, len(wanted)), self.ints(wanted)], wanted)

    def concat(self, parts: Sequence[Tensor], axis: int) -> Tensor:
        """One after another along an axis."""
        if len(parts) == 1:
            return parts[0]
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        return self.op("CONCATENATION", parts, shape, axis=axis)

    def slice(self, x: Tensor, begin: Sequence[int], size: Sequence[int]) -> Tensor:
        """A box out of a tensor."""
        if tuple(size) == x.shape:
            return x
        if x.data is not None:
            box = tuple(slice(at, at + n) for at, n in zip(begin, size, strict=True))
            return x.rearranged(lambda data: data[box])
        return self.op("SLICE", [x, self.ints(begin), self.ints(size)], size)

    def cut(self, x: Tensor, axis: int, begin: int, size: int) -> Tensor:
        """A range along one axis."""
        start, wanted = [0] * x.rank, list(x.shape)
        start[axis], wanted[axis] = begin, size
        return self.slice(x, start, wanted)

    def gather(self, x: Tensor, indices: Tensor, axis: int) -> Tensor:
        """Elements along an axis, by positions that are not negative."""
        shape = x.shape[:axis] + indices.shape + x.shape[axis + 1 :]
        return self.op("GATHER", [x, indices], shape, axis=axis, batchDims=0)

    def pad(self, x: Tensor, amounts: Sequence[tuple[int, int]], value: float = 0) -> Tensor:
        """With a border."""
        if not any(any(each) for each in amounts):
            return x
        shape = [size + low + high for size, (low, high) in zip(x.shape, amounts, strict=True)]
        widths = self.const(np.array(amounts, np.int32))
        if value == 0:
            return self.op("PAD", [x, widths], shape)
        return self.op("PADV2", [x, widths, self.like(value, x)], shape)

    def quantize(self, x: Tensor, scale: float, zero: int) -> Tensor:
        """As int8."""
        made = self.op("QUANTIZE", [x], x.shape, "int8")
        made.scales, made.zero = np.array([scale], np.float32), zero
        return made

    def reduce(self, code: str, x: Tensor, axes: Sequence[int], keep: bool = True) -> Tensor:
        """Over axes that are not negative."""
        if not axes:
            return x
        shape = [1 if at in axes else size for at, size in enumerate(x.shape) if keep or at not in axes]
        return self.op(code, [x, self.ints(sorted(axes))], shape, keepDims=keep)

    def matmul(self, x: Tensor, y: Tensor) -> Tensor:
        """Matrix product of tensors of rank 2 and more, which broadcast."""
        batch = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
        shape = (*batch, x.shape[-2], y.shape[-1])
        return self.op("BATCH_MATMUL", [x, y], shape, adjX=False, adjY=False)


def constant(tensor: ir.TensorProtocol) -> Tensor:
    """A constant of the graph; float16 becomes float32."""
    carried = carried_in(tensor.dtype)
    data = tensor.numpy()
    return Tensor(tuple(data.shape), carried, data if data.dtype.name == carried else data.astype(carried))


def carried_in(dtype: ir.DataType | None) -> str:
    """The NumPy name of the type that an ONNX type is carried in.

    Raises:
        Refused: it is carried in none.
    """
    name = "an unknown type" if dtype is None else dtype.name
    carried = CARRIED.get(name) or SMALL.get(name)
    if carried is None:
        raise Refused(f"takes float32, float16, int32, int64 and bool, came {name.lower()}")
    return carried


def float_copy(builder: Builder, x: Tensor) -> Tensor:
    """Integers as float32."""
    return builder.cast(x, "float32")


def _merged(shapes: Sequence[tuple[int, ...]], whole: tuple[int, ...]) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Neighboring dimensions that broadcast alike as one; the merged whole, and the parts merged.

    Raises:
        Refused: more remain than the kernels take.
    """
    full = [(1,) * (len(whole) - len(shape)) + tuple(shape) for shape in shapes]
    groups: list[list[int]] = []
    last: tuple[bool, ...] | None = None
    for at, size in enumerate(whole):
        kind = tuple(shape[at] == 1 for shape in full)
        if size != 1 and kind == last:
            groups[-1].append(at)
        elif size != 1:
            groups.append([at])
            last = kind
    if len(groups) > _MOST_RANK:
        raise Refused(f"broadcasts over {len(groups)} dimensions, TFLite's kernels over {_MOST_RANK}")
    sizes = [tuple(math.prod(shape[at] for at in group) for group in groups) for shape in (whole, *full)]
    return sizes[0], sizes[1:]
