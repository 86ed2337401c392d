"""What passes ask of a graph, and how they change it."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def maker(value: ir.Value | None, *names: str) -> ir.Node | None:
    """The node of this standard operator that makes a value, else None."""
    node = value.producer() if value is not None else None
    return node if node is not None and not node.domain and node.op_type in names else None


def reader(value: ir.Value, *names: str) -> ir.Node | None:
    """The one node that reads a value, if it is of this standard operator and the graph does not return the value."""
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    (use,) = uses
    node = use.node if hasattr(use, "node") else use[0]
    return node if not node.domain and node.op_type in names else None


def constant(value: ir.Value | None) -> Doubles | None:
    """A constant of floats in double precision, else None."""
    tensor = value.const_value if value is not None and value.producer() is None else None
    if tensor is None or tensor.dtype not in FLOATS:
        return None
    return np.asarray(tensor.numpy()).astype(np.float64)


def numbers(value: ir.Value | None) -> NDArray[np.generic] | None:
    """A constant of floats as it is stored, to be moved and not computed with, else None."""
    tensor = value.const_value if value is not None and value.producer() is None else None
    return None if tensor is None or tensor.dtype not in FLOATS else np.asarray(tensor.numpy())


def scalar(value: ir.Value | None) -> float | None:
    """The number in a constant of one element, else None."""
    found = constant(value)
    return float(found.reshape(-1)[0]) if found is not None and found.size == 1 else None


def is_about(value: ir.Value | None, number: float) -> bool:
    """Whether a value is this constant, as far as half precision tells."""
    came = scalar(value)
    return came is not None and abs(came - number) <= 1e-3 * abs(number)


def operands(node: ir.Node | None) -> Iterator[tuple[ir.Value | None, ir.Value | None]]:
    """The two inputs of a node, either way round."""
    if node is not None and len(node.inputs) == 2:
        yield node.inputs[0], node.inputs[1]
        yield node.inputs[1], node.inputs[0]


def sizes(value: ir.Value | None) -> tuple[int, ...] | None:
    """Sizes of a value, if all are known."""
    if value is None or value.shape is None:
        return None
    found = tuple(dim for dim in value.shape if isinstance(dim, int))
    return found if len(found) == len(value.shape) else None


def integers(value: ir.Value | None) -> list[int] | None:
    """The whole numbers in a constant, else None."""
    tensor = value.const_value if value is not None and value.producer() is None else None
    return None if tensor is None else [int(each) for each in np.asarray(tensor.numpy()).reshape(-1)]


def weight(graph: ir.Graph, array: NDArray[np.generic], dtype: ir.DataType, name: str) -> ir.Value:
    """A new constant of that type, in float32 where NumPy has no such type."""
    taken = {ir.DataType.FLOAT16: np.float16, ir.DataType.DOUBLE: np.float64}.get(dtype, np.float32)
    free = name
    while free in graph.initializers:
        free += "'"
    tensor = ir.tensor(np.array(array, taken, order="C"), name=free)
    value = ir.Value(name=free, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def put(
    graph: ir.Graph,
    old: ir.Value,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, int | float | str | Sequence[int]] | None = None,
    domain: str = "",
) -> ir.Value:
    """Make a value by one new node in place of what made it; all that read the old value read the new one."""
    before = old.producer()
    assert before is not None
    new = ir.Value(name=old.name, type=old.type, shape=old.shape)
    node = ir.Node(
        domain, op_type, inputs, ir.convenience.convert_attributes(attributes or {}), outputs=[new], name=before.name
    )
    before.name, old.name = f"{before.name}/before", f"{old.name}/before"
    graph.insert_before(before, node)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    return new


def insert(
    graph: ir.Graph,
    before: ir.Node,
    op_type: str,
    source: ir.Value,
    name: str,
    shape: Sequence[int],
    attributes: Mapping[str, int | float | str | Sequence[int]],
) -> ir.Value:
    """A new value made of another, ahead of a node."""
    made = ir.Value(name=name, type=source.type, shape=ir.Shape(shape))
    node = ir.Node("", op_type, [source], ir.convenience.convert_attributes(attributes), outputs=[made], name=name)
    graph.insert_before(before, node)
    return made
