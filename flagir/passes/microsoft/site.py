"""The place where one vendor node is rewritten: its inputs, and the standard nodes that are put before it."""

from collections.abc import Callable, Sequence
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from flagsplit.errors import ModelError
from flagsplit.flagir.passes.microsoft.known import Known

Attribute = ir.Attr | int | float | str | Sequence[int] | None


class Site:
    """Writes standard nodes in front of `node`.

    Args:
        node: the vendor node; it is in a graph.
        known: what is known of the values before it; kept up with what is written.
    """

    def __init__(self, node: ir.Node, known: Known) -> None:
        self.node = node
        self._known = known

    def input(self, index: int) -> ir.Value | None:
        """An optional input."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def need(self, index: int) -> ir.Value:
        """A required input.

        Raises:
            ModelError: it is not there.
        """
        value = self.input(index)
        if value is None:
            self.refuse(f"no input {index}", "the file is damaged")
        return value

    def wants(self, index: int) -> bool:
        """Whether anybody reads an output."""
        outputs = self.node.outputs
        return index < len(outputs) and (bool(outputs[index].uses()) or outputs[index].is_graph_output())

    def attr_int(self, name: str, default: int) -> int:
        """An integer attribute."""
        found = self.node.attributes.get_int(name, default)
        return default if found is None else found

    def attr_float(self, name: str, default: float) -> float:
        """A float attribute."""
        found = self.node.attributes.get_float(name, default)
        return default if found is None else found

    def kept(self, *but: str) -> dict[str, Attribute]:
        """All attributes except some."""
        return {name: attribute for name, attribute in self.node.attributes.items() if name not in but}

    def refuse(self, has: str, do: str) -> NoReturn:
        """Say that this form of the operator is not taken.

        Raises:
            ModelError: always.
        """
        name = self.node.name or self.node.outputs[0].name
        raise ModelError(
            f"cannot rewrite {self.node.domain or 'ai.onnx'}.{self.node.op_type} {name!r} in standard operators: "
            f"it has {has}; {do}"
        )

    def dtype(self, value: ir.Value) -> ir.DataType:
        """Element type.

        Raises:
            ModelError: it is not known.
        """
        dtype = self._known.dtype(value)
        if dtype is None:
            self.refuse(f"a value {value.name!r} of unknown type", "run onnx.shape_inference on the original first")
        return dtype

    def dims(self, value: ir.Value) -> tuple[int | None, ...]:
        """Sizes, as far as they are known.

        Raises:
            ModelError: not even the rank is known.
        """
        dims = self._known.dims(value)
        if dims is None:
            self.refuse(f"a value {value.name!r} of unknown rank", "run onnx.shape_inference on the original first")
        return dims

    def rank(self, value: ir.Value) -> int:
        """Number of dimensions.

        Raises:
            ModelError: it is not known.
        """
        return len(self.dims(value))

    def is_before(self, node: ir.Node) -> bool:
        """Whether a standard node comes earlier in the same graph."""
        return node.graph is self.node.graph and self._known.has_seen(node)

    def op(self, op_type: str, *inputs: ir.Value | None, **attributes: Attribute) -> ir.Value:
        """Write a node of one output."""
        return self.ops(op_type, 1, *inputs, **attributes)[0]

    def ops(
        self, op_type: str, outputs: int, *inputs: ir.Value | None, **attributes: Attribute
    ) -> tuple[ir.Value, ...]:
        """Write a node of several outputs."""
        given = {name: value for name, value in attributes.items() if value is not None}
        base = f"{self.node.name or self.node.outputs[0].name}/{op_type}"
        made = ir.node(op_type, inputs, given, num_outputs=outputs, name=base)
        self._insert(made)
        return tuple(made.outputs)

    def constant(self, array: npt.ArrayLike, dtype: ir.DataType = ir.DataType.INT64) -> ir.Value:
        """Write a constant; a later pass makes it an initializer."""
        return self.tensor(ir.Tensor(np.asarray(array).astype(dtype.numpy()), dtype))

    def tensor(self, tensor: ir.TensorProtocol) -> ir.Value:
        """Write a constant; a later pass makes it an initializer."""
        made = ir.node("Constant", [], {"value": tensor}, name=f"{self.node.name or self.node.outputs[0].name}/k")
        self._insert(made)
        return made.outputs[0]

    def like(self, number: float, value: ir.Value) -> ir.Value:
        """Write a scalar of the element type of `value`."""
        return self.constant(number, self.dtype(value))

    def transpose(self, value: ir.Value, *perm: int) -> ir.Value:
        """Write a transposition, unless there is nothing to move or it takes back the one before."""
        before = value.producer()
        if list(perm) == sorted(perm):
            return value
        if before is not None and before.op_type == "Transpose" and not before.domain:
            first = before.attributes.get_ints("perm") or ()
            if [first[axis] for axis in perm] == sorted(perm) and before.inputs[0] is not None:
                return before.inputs[0]
        return self.op("Transpose", value, perm=perm)

    def scalar(self, value: ir.Value) -> ir.Value:
        """A tensor of one element, which Microsoft's operators take for a scalar, as the scalar that it is."""
        if self._known.dims(value) == ():
            return value
        return self.op("Reshape", value, self.constant(np.empty(0)))

    def _insert(self, made: ir.Node) -> None:
        graph = self.node.graph
        if graph is None:
            raise TypeError(f"node {self.node.name!r} is in no graph")
        graph.insert_before(self.node, made)
        for value in made.outputs:
            value.name = f"{made.name}_{value.name}"
        self._known.learn(made)


Rewrite = Callable[[Site], Sequence[ir.Value | None]]
"""Writes what a node means in standard operators; returns a value for each of its outputs, None if nobody reads it."""
