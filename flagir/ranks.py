"""Ranks that an operator fixes although ONNX's inference leaves them open.

It gives up where the values of an input matter to a size: the axes of a reduction, the sizes of a split, the state of a
loop. The rank is certain all the same, and with it inference goes on.
"""

from collections.abc import Sequence

import onnx_ir as ir

Dims = list[int | str | None]


def settle_ranks(model: ir.Model) -> bool:
    """Give node outputs without a rank the one that their operator fixes; says whether any was found."""
    found = False
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if not node.domain and any(value.name and value.shape is None for value in node.outputs):
            for value, dims in zip(node.outputs, _shapes(node), strict=False):
                if value.shape is None and dims is not None:
                    value.shape = _shape(dims, value)
                    found = True
    return found


def guess_states(model: ir.Model) -> list[tuple[ir.Value, ir.Value]]:
    """Suppose that the states of loops keep the rank they start with.

    Returns:
        What was supposed: pairs of a body's input, which has its supposed shape now, and the result that must turn out
        to have the same rank. Then it is proved, by induction.
    """
    guesses = []
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type == "Loop" and not node.domain:
            body = node.attributes["body"].as_graph()
            for first, state, result in zip(node.inputs[2:], body.inputs[2:], body.outputs[1:], strict=False):
                dims = _dims(first)
                if dims is not None and state.shape is None and result.shape is None and first is not None:
                    state.type = state.type or first.type
                    state.shape = ir.Shape([None] * len(dims))
                    guesses.append((state, result))
    return guesses


def is_proved(state: ir.Value, result: ir.Value) -> bool:
    """Whether the result of a loop's body has the rank that was supposed of its state."""
    return state.shape is not None and result.shape is not None and len(state.shape) == len(result.shape)


def _shapes(node: ir.Node) -> Sequence[Dims | None]:
    if node.op_type == "Loop":
        return _of_loop(node)
    if node.op_type == "Split":
        return _of_split(node)
    if node.op_type.startswith("Reduce"):
        return [_of_reduction(node)]
    return []


def _of_loop(node: ir.Node) -> list[Dims | None]:
    """A state has the rank of its first value, where that is also the rank of the body's result; a scan one more."""
    results = node.attributes["body"].as_graph().outputs[1:]
    states = node.inputs[2:]
    found: list[Dims | None] = []
    for index, result in enumerate(results):
        last = _dims(result)
        if index >= len(states):
            found.append(None if last is None else [None, *last])
            continue
        first = _dims(states[index])
        if first is None or last is None or len(first) != len(last):
            found.append(None)
        else:
            found.append([one if one == other else None for one, other in zip(first, last, strict=True)])
    return found


def _of_split(node: ir.Node) -> list[Dims | None]:
    dims = _dims(node.inputs[0])
    if not dims:
        return []
    dims[node.attributes.get_int("axis", 0) or 0] = None
    return [list(dims) for _ in node.outputs]


def _of_reduction(node: ir.Node) -> Dims | None:
    dims, axes = _dims(node.inputs[0]), _dims(node.inputs[1]) if len(node.inputs) > 1 else None
    if dims is None:
        return None
    if node.attributes.get_int("keepdims", 1):
        return [None] * len(dims)
    count = axes[0] if axes else None
    if not isinstance(count, int):
        return None
    if count == 0:
        return dims if node.attributes.get_int("noop_with_empty_axes", 0) else []
    return [None] * (len(dims) - count) if count <= len(dims) else None


def _shape(dims: Dims, value: ir.Value) -> ir.Shape:
    """Open dimensions get symbols as ONNX's inference gives them: it would not pass on a shape with nothing in it."""
    return ir.Shape([f"unk__{value.name}.{axis}" if dim is None else dim for axis, dim in enumerate(dims)])


def _dims(value: ir.Value | None) -> Dims | None:
    if value is None or value.shape is None or not isinstance(value.type, ir.TensorType):
        return None
    return [dim if isinstance(dim, int) else dim.value for dim in value.shape]
