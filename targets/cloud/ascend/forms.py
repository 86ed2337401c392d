"""Forms of operators that ATC's pages describe, for those that they do not; still in FlagIR's opset.

- One spatial dimension becomes two, the first of size 1: convolutions and pools are described from two on.
- `auto_pad` becomes pads: SAME_LOWER is not told from SAME_UPPER by average pools.
- An average that counts its padding becomes a Pad and an average without: that attribute is not taken.
- A Resize of mode nearest reads the same elements with the one rounding that there is, or is refused.
"""

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from flagsplit.flagir.passes.graph_edits import replace_node
from flagsplit.targets.cloud.ascend.facts import (
    NotTakenError,
    constant,
    given,
    ints,
    numbers,
    set_ints,
    sizes,
)
from flagsplit.targets.cloud.ascend.nearest import ROUNDING, same_places

_WINDOWS = ("AveragePool", "Conv", "ConvTranspose", "MaxPool")


def into_forms(graph: ir.Graph) -> None:
    """Rewrite a graph of fixed shapes in place.

    Raises:
        NotTakenError: a node has no form that is described.
    """
    for node in list(graph):
        if node.domain:
            continue
        if node.op_type in _WINDOWS:
            _explicit_pads(node)
            node = _two_dimensions(node)
        rewrite = _FORMS.get(node.op_type)
        if rewrite is not None:
            rewrite(node)


def _explicit_pads(node: ir.Node) -> None:
    """Pads in numbers for `auto_pad`; a ConvTranspose that has it is described, and stays."""
    how = node.attributes.get_string("auto_pad", "NOTSET")
    if how == "NOTSET" or node.op_type == "ConvTranspose":
        return
    window = ints(node, "kernel_shape", sizes(given(node, 1))[2:])
    places, outputs = sizes(node.inputs[0])[2:], sizes(node.outputs[0])[2:]
    strides, dilations = (ints(node, name, [1] * len(window)) for name in ("strides", "dilations"))
    starts, ends = [], []
    for size, made, wide, stride, dilation in zip(places, outputs, window, strides, dilations, strict=True):
        lacking = max(0, (made - 1) * stride + (wide - 1) * dilation + 1 - size) if how != "VALID" else 0
        fewer, more = lacking // 2, lacking - lacking // 2
        starts.append(more if how == "SAME_LOWER" else fewer)
        ends.append(fewer if how == "SAME_LOWER" else more)
    del node.attributes["auto_pad"]
    set_ints(node, "pads", [*starts, *ends])


def _two_dimensions(node: ir.Node) -> ir.Node:
    """The same over two spatial dimensions, where there is one; the new node, or the same one."""
    x, graph = node.inputs[0], node.graph
    if x is None or graph is None or len(sizes(x)) != 3:
        return node
    if len([value for value in node.outputs if value.uses() or value.is_graph_output()]) > 1:
        raise NotTakenError(node, "its indices are asked for, over one spatial dimension")
    axis = constant(node, "axis", np.array([2], np.int64))
    wide = ir.node("Unsqueeze", [x, axis], name=f"{node.name}.wide")
    made: list[ir.Node] = [wide]
    inputs: list[ir.Value | None] = [wide.outputs[0], *node.inputs[1:]]
    weights = given(node, 1)
    if weights is not None:
        made.append(ir.node("Unsqueeze", [weights, axis], name=f"{node.name}.weights"))
        inputs[1] = made[-1].outputs[0]
        _typed(made[-1].outputs[0], weights.dtype, _with_one(sizes(weights)))
    _typed(wide.outputs[0], x.dtype, _with_one(sizes(x)))
    inner = ir.Node("", node.op_type, inputs, [ir.Attr(a.name, a.type, a.value) for a in node.attributes.values()])
    inner.name = f"{node.name}.flat"
    _typed(inner.outputs[0], node.outputs[0].dtype, _with_one(sizes(node.outputs[0])))
    for name, one in (
        ("kernel_shape", 1),
        ("strides", 1),
        ("dilations", 1),
        ("output_padding", 0),
        ("output_shape", 1),
    ):
        if name in inner.attributes:
            set_ints(inner, name, [one, *ints(inner, name, ())])
    if "pads" in inner.attributes:
        start, end = ints(inner, "pads", ())
        set_ints(inner, "pads", [0, start, 0, end])
    back = ir.node("Squeeze", [inner.outputs[0], axis], name=node.name)
    for each in (*made, inner):
        for value in each.outputs:
            value.name = f"{each.name}.0"
    replace_node(graph, node, [*made, inner, back])
    return inner


def _with_one(shape: list[int]) -> list[int]:
    return [*shape[:2], 1, *shape[2:]]


def _typed(value: ir.Value, dtype: ir.DataType | None, shape: list[int]) -> None:
    value.type, value.shape = None if dtype is None else ir.TensorType(dtype), ir.Shape(shape)


def _average(node: ir.Node) -> None:
    """Padding that counts is put before the pool."""
    window = ints(node, "kernel_shape", ())
    pads = ints(node, "pads", [0] * 2 * len(window))
    counts = node.attributes.get_int("count_include_pad", 0)
    node.attributes.pop("count_include_pad", None)
    if not counts or not (any(pads) or node.attributes.get_int("ceil_mode", 0) != 0):
        return
    if not _windows_fit(node, window, pads):
        raise NotTakenError(node, "its last windows count padding that no Pad makes, by ceil_mode")
    x, graph, half = node.inputs[0], node.graph, len(pads) // 2
    assert x is not None
    assert graph is not None
    assert x.dtype is not None
    padded = [0, 0, *pads[:half], 0, 0, *pads[half:]]
    amounts = constant(node, "pads", np.array(padded, np.int64))
    zero = constant(node, "zero", np.zeros((), x.dtype.numpy()))
    pad = ir.node("Pad", [x, amounts, zero], name=f"{node.name}.pad")
    pad.outputs[0].name = f"{node.name}.padded"
    rank = len(sizes(x))
    _typed(pad.outputs[0], x.dtype, [n + padded[at] + padded[at + rank] for at, n in enumerate(sizes(x))])
    graph.insert_before(node, pad)
    node.replace_input_with(0, pad.outputs[0])
    set_ints(node, "pads", [0] * len(pads))


def _windows_fit(node: ir.Node, window: list[int], pads: list[int]) -> bool:
    """Whether no window goes beyond the padding, so that ceil_mode changes nothing."""
    if not node.attributes.get_int("ceil_mode", 0):
        return True
    strides, half = ints(node, "strides", [1] * len(window)), len(window)
    places = sizes(node.inputs[0])[2:]
    rooms = (size + start + end for size, start, end in zip(places, pads[:half], pads[half:], strict=True))
    return all((room - wide) % stride == 0 for room, wide, stride in zip(rooms, window, strides, strict=True))


def _resize(node: ir.Node) -> None:
    """Nearest neighbors in other words; see `nearest`."""
    if node.attributes.get_string("mode", "nearest") != "nearest":
        return
    shape, made = sizes(node.inputs[0]), sizes(node.outputs[0])
    axes = ints(node, "axes", range(len(shape)))
    asked = numbers(node, 2, "scales")
    scales = [made[at] / shape[at] for at in range(len(shape))]
    if asked is not None:
        for axis, scale in zip(axes, asked.tolist(), strict=True):
            scales[axis] = scale
    how = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    found = same_places(shape, made, scales, how, node.attributes.get_string("nearest_mode", "round_prefer_floor"))
    if found is None:
        raise NotTakenError(node, f"no way to place its samples reads the same elements when rounded as {ROUNDING}")
    node.attributes["coordinate_transformation_mode"] = ir.AttrString("coordinate_transformation_mode", found)
    node.attributes["nearest_mode"] = ir.AttrString("nearest_mode", ROUNDING)


_FORMS: Mapping[str, Callable[[ir.Node], None]] = {"AveragePool": _average, "Resize": _resize}
