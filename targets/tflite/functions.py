"""Operators that the standard defines by others: lowered through their definition, in fixed shapes."""

import onnx
import onnx_ir as ir
from onnx.inliner import inline_selected_functions

from flagsplit import flagir
from flagsplit.errors import FlagsplitError
from flagsplit.flagir.specialize import settle
from flagsplit.targets.tflite.builder import Builder
from flagsplit.targets.tflite.program import Refused

_OPSET = 23


def has_body(op_type: str) -> bool:
    """Whether the standard defines an operator by others."""
    try:
        schema = onnx.defs.get_schema(op_type, _OPSET, "")
    except onnx.defs.SchemaError:
        return False
    return any(getattr(schema, kind, False) for kind in ("has_function", "has_context_dependent_function"))


def lower_body(builder: Builder, node: ir.Node) -> None:
    """Lower the nodes that define a node."""
    model = _alone(node)
    names = dict.fromkeys(value for value in node.inputs if value is not None)
    by_name = {value.name: value for value in names}
    for value in model.graph.inputs:
        builder.know(value, builder.tensor(by_name[value.name]))
    for inner in model.graph:
        if inner.op_type == node.op_type and not inner.domain:
            raise Refused(f"TFLite has no {node.op_type}")
        builder.lower(builder, inner)
    by_output = {value.name: value for value in model.graph.outputs}
    for output in node.outputs:
        if output.name in by_output:
            builder.know(output, builder.tensor(by_output[output.name]))


def _alone(node: ir.Node) -> ir.Model:
    """A canonical model of the nodes that define a node; what is constant outside is constant in it."""
    inputs, constants, known = [], [], []
    for value in dict.fromkeys(each for each in node.inputs if each is not None):
        if value.const_value is not None and not value.is_graph_input():
            tensor = ir.Tensor(value.const_value.numpy(), value.const_value.dtype, name=value.name)
            constants.append(ir.serde.serialize_tensor(tensor))
            known.append(_info(value))
        else:
            inputs.append(_info(value))
    outputs = [_info(value) for value in node.outputs if value.name]
    graph = onnx.helper.make_graph(
        [ir.serde.serialize_node(node)], "body", inputs, outputs, constants, value_info=known
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", _OPSET)], ir_version=10)
    try:
        inlined = inline_selected_functions(proto, [("", node.op_type)], exclude=False, inline_schema_functions=True)
        model = ir.serde.deserialize_model(inlined)
        flagir.canonicalize(model)
        settle(model)
    except (FlagsplitError, RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        raise Refused(f"the standard's definition of {node.op_type} cannot be used: {error}") from None
    return model


def _info(value: ir.Value) -> onnx.ValueInfoProto:
    return ir.serde.serialize_value(value)
