"""An older opset for what ONNX Runtime has no kernel for in FlagIR's own.

ONNX's opset 22 gave operators such as RoiAlign and RandomNormal a new version that only admits more element types, and
ONNX Runtime's kernels are still for the one before. A graph whose every node is said the same in opset 21 runs there.
"""

from collections.abc import Iterable, Iterator

import onnx
import onnx_ir as ir

OLDER = 21
"""The last opset before that."""

_STANDARD = ("", "ai.onnx")


def say_in_older(model: onnx.ModelProto) -> bool:
    """Let a model import the older opset, in place, if that says the same of every node.

    Returns:
        Whether it does; else the model stays as it is.
    """
    imports = [opset for holder in (model, *model.functions) for opset in holder.opset_import]
    standard = [opset for opset in imports if opset.domain in _STANDARD]
    if not any(opset.version > OLDER for opset in standard):
        return False
    graphs = [model.graph, *model.functions]
    while graphs:
        for node in graphs.pop().node:
            attributes = {attribute.name for attribute in node.attribute}
            if node.domain in _STANDARD and not _is_same(node.op_type, attributes, len(node.input)):
                return False
            graphs += [each.g for each in node.attribute if each.type == onnx.AttributeProto.GRAPH]
    for opset in standard:
        opset.version = min(opset.version, OLDER)
    return True


def can_be_older(nodes: Iterable[ir.Node]) -> bool:
    """Whether the older opset says the same of all of these nodes."""
    return all(
        node.domain not in _STANDARD or _is_same(node.op_type, set(node.attributes), len(node.inputs)) for node in nodes
    )


def nodes_within(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes of all graphs that a node runs."""
    for attribute in node.attributes.values():
        if isinstance(attribute, ir.Attr) and attribute.type == ir.AttributeType.GRAPH:
            yield from attribute.as_graph().all_nodes()


def _is_same(op_type: str, attributes: set[str], inputs: int) -> bool:
    """Whether the older opset has an operator with these attributes and so many inputs."""
    if not onnx.defs.has(op_type, OLDER, ""):
        return False
    schema = onnx.defs.get_schema(op_type, OLDER, "")
    return not schema.deprecated and attributes <= set(schema.attributes) and inputs <= schema.max_input
