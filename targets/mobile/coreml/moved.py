"""Nodes that only move what a program was passed and gives back: they stay in fp32, so that it comes back bit by bit.

Where a model is cut after a node that changes the layout, all that the phone does is that. In fp16 it would round what
the next tier computes with, to save nothing.
"""

import onnx_ir as ir

MOVING = frozenset(
    (
        "Concat DepthToSpace Expand Flatten Gather GatherElements GatherND Identity Pad Reshape ReverseSequence Slice "
        "SpaceToDepth Split Squeeze Tile Transpose Unsqueeze Where"
    ).split()
)
"""Operators that only move what they are given: where that is fit for fp16, so are they."""


def only_moved(model: ir.Model) -> dict[str, str]:
    """The nodes whose floats are moved from inputs of a model to its outputs, and computed with nowhere between.

    Args:
        model: canonical.

    Returns:
        For each, by name, the reason.
    """
    passed = {value for value in model.graph.inputs if _is_float(value)}
    for node in model.graph:
        if node.op_type in MOVING and _takes_only(node, passed):
            passed.update(node.outputs)
    given, found = set(model.graph.outputs), {}
    for node in reversed(model.graph):
        if any(value in passed and value in given for value in node.outputs):
            given.update(value for value in node.inputs if value is not None)
            found[node.name or ""] = "it only moves what the program is passed and gives back"
    return found


def _takes_only(node: ir.Node, passed: set[ir.Value]) -> bool:
    """Whether it takes floats of these, and besides only constants and what is no float."""
    floats = [value for value in node.inputs if value is not None and _is_float(value)]
    return any(value in passed for value in floats) and all(
        value in passed or value.const_value is not None for value in floats
    )


def _is_float(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.FLOAT
