"""One way to write each node: no trailing blanks, no attribute that only repeats its default, axes from the front.

Two exporters' graphs of the same network become comparable, and whoever reads a node need not know three spellings.
"""

import onnx
import onnx_ir as ir

from flagsplit.flagir.opset import OPSET
from flagsplit.flagir.passes.drop_unused import LOOP_INPUTS

_AXIS_OF_INPUT = frozenset(
    "Softmax LogSoftmax Hardmax ArgMax ArgMin Gather GatherElements ScatterElements Split LayerNormalization "
    "RMSNormalization LpNormalization TopK Compress QuantizeLinear DequantizeLinear".split()
)
_AXIS_OF_OUTPUT = frozenset(("Concat", "OneHot"))


class CanonicalForms(ir.passes.InPlacePass):
    """Mutates attributes and the number of inputs and outputs. Requires inferred ranks for axes; without one, an axis
    stays as it is."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite in place, subgraphs included."""
        modified = False
        for node in ir.traversal.RecursiveGraphIterator(model.graph):
            modified |= _trim(node)
            if not node.domain:
                modified |= _front_axis(node)
                modified |= _drop_defaults(node)
        return ir.passes.PassResult(model, modified)


def _trim(node: ir.Node) -> bool:
    """Optional inputs and outputs at the end that are not used."""
    fewest = LOOP_INPUTS if node.op_type == "Loop" and not node.domain else 0
    inputs = len(node.inputs)
    while inputs > fewest and node.inputs[inputs - 1] is None:
        inputs -= 1
    outputs = len(node.outputs)
    while outputs > 1 and not node.outputs[outputs - 1].name and not node.outputs[outputs - 1].uses():
        outputs -= 1
    modified = inputs < len(node.inputs) or outputs < len(node.outputs)
    if inputs < len(node.inputs):
        node.resize_inputs(inputs)
    if outputs < len(node.outputs):
        node.resize_outputs(outputs)
    return modified


def _front_axis(node: ir.Node) -> bool:
    axis = node.attributes.get("axis")
    if axis is None or axis.type != ir.AttributeType.INT or axis.as_int() >= 0:
        return False
    values = node.inputs if node.op_type in _AXIS_OF_INPUT else node.outputs if node.op_type in _AXIS_OF_OUTPUT else ()
    shape = values[0].shape if values and values[0] is not None else None
    if shape is None or axis.as_int() + len(shape) < 0:
        return False
    node.attributes["axis"] = ir.AttrInt64("axis", axis.as_int() + len(shape))
    return True


def _drop_defaults(node: ir.Node) -> bool:
    try:
        schema = onnx.defs.get_schema(node.op_type, OPSET)
    except onnx.defs.SchemaError:
        return False
    extra = [name for name, attribute in node.attributes.items() if _is_default(attribute, schema.attributes.get(name))]
    for name in extra:
        del node.attributes[name]
    return bool(extra)


def _is_default(attribute: ir.Attr, formal: onnx.defs.OpSchema.Attribute | None) -> bool:
    if formal is None or formal.required or not formal.default_value.name:
        return False
    default = ir.serde.deserialize_attribute(formal.default_value)
    plain = (ir.AttributeType.INT, ir.AttributeType.FLOAT, ir.AttributeType.STRING)
    return attribute.type in plain and default.type == attribute.type and bool(default.value == attribute.value)
