"""What is asked of a node of fixed shapes: sizes, constants, attributes; and how constants are put in its graph."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from flagsplit.errors import ModelError
from flagsplit.targets.interface import Array

_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


class NotTakenError(ModelError):
    """A node that cannot be had in a form that ATC takes.

    Attributes:
        reason: why, without the node's name.
    """

    def __init__(self, node: ir.Node, reason: str) -> None:
        super().__init__(f"{node.name!r} ({node.op_type}) is not for Ascend: {reason}")
        self.reason = reason


def has_graph(node: ir.Node) -> bool:
    """Whether a node has a graph inside, as If and Loop have."""
    return any(attribute.type in _GRAPHS for attribute in node.attributes.values())


def sizes(value: ir.Value | None) -> list[int]:
    """The shape of a value; empty where it is missing or not known."""
    return [dim for dim in value.shape if isinstance(dim, int)] if value is not None and value.shape is not None else []


def ints(node: ir.Node, name: str, default: Sequence[int]) -> list[int]:
    """An attribute of whole numbers."""
    return list(node.attributes.get_ints(name, ()) or default)


def given(node: ir.Node, index: int) -> ir.Value | None:
    """An input; None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def numbers(node: ir.Node, index: int, name: str) -> Array | None:
    """An input that has to be constant; None where it is left out or empty.

    Raises:
        NotTakenError: it is not constant.
    """
    value = given(node, index)
    if value is None:
        return None
    if value.const_value is None or value.producer() is not None:
        raise NotTakenError(node, f"its {name} are no constants")
    array = value.const_value.numpy()
    return array if array.size else None


def put_constant(node: ir.Node, index: int, name: str, array: Array) -> None:
    """Make an input of a node a new constant of its graph."""
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, constant(node, name, array))


def constant(node: ir.Node, name: str, array: Array) -> ir.Value:
    """A new constant beside a node."""
    assert node.graph is not None
    full = f"{node.name}.{name}"
    value = ir.val(full, const_value=ir.Tensor(np.asarray(array, order="C"), name=full))
    value.dtype, value.shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
    node.graph.initializers[full] = value
    return value


def set_ints(node: ir.Node, name: str, values: Sequence[int]) -> None:
    """Set an attribute of whole numbers."""
    node.attributes[name] = ir.AttrInt64s(name, [int(value) for value in values])
