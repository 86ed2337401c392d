"""Write operators newer than the pinned opset in older ones, where ONNX says how."""

import onnx
import onnx_ir as ir

from flagsplit.flagir.newer import function_of, why_not_pinned
from flagsplit.flagir.opset import OPSET
from flagsplit.flagir.passes.infer_shapes import adopt_inferred
from flagsplit.flagir.passes.inline_functions import InlineFunctions

_DOMAIN = "flagir.newer"
_MAX_DEPTH = 8
"""How many functions may lie in each other; ONNX's go two deep."""


class LowerNewer(ir.passes.InPlacePass):
    """Mutates: replaces nodes by their function's body. Requires functions to be inlined.

    What has no function stays, for the next pass to refuse by name.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace in place."""
        came = model.opset_imports.get("", OPSET)
        if not OPSET < came <= onnx.defs.onnx_opset_version():
            return ir.passes.PassResult(model, modified=False)
        adopt_inferred(model)
        for _ in range(_MAX_DEPTH):
            if not self._lower(model, came):
                break
            InlineFunctions()(model)
            model.functions.clear()
            adopt_inferred(model)
        model.opset_imports.pop(_DOMAIN, None)
        return ir.passes.PassResult(model, modified=True)

    def _lower(self, model: ir.Model, came: int) -> bool:
        """Make a call of a function of each node that the pin lacks and that has one."""
        found = False
        for count, node in enumerate(list(ir.traversal.RecursiveGraphIterator(model.graph))):
            if node.domain or not why_not_pinned(node, came) or (proto := function_of(node, came)) is None:
                continue
            set_defaults(node, proto, came)
            make_omitted(proto)
            proto.domain, proto.overload = _DOMAIN, str(count)
            del proto.opset_import[:]
            proto.opset_import.append(onnx.helper.make_opsetid("", came))
            function = ir.serde.deserialize_function(proto)
            model.functions[function.identifier()] = function
            node.domain, node.overload = _DOMAIN, str(count)
            model.opset_imports[_DOMAIN] = 1
            found = True
        return found


def make_omitted(function: onnx.FunctionProto) -> None:
    """ONNX's functions do not make the outputs that the node leaves out, but list them: nothing will read these."""
    made = {name for node in function.node for name in node.output}
    for name in function.output:
        if name not in made:
            function.node.append(onnx.helper.make_node("Identity", [function.input[0]], [name]))


def set_defaults(node: ir.Node, function: onnx.FunctionProto, came: int) -> None:
    """A function's body refers to attributes; the node need not spell out those that have a default."""
    wanted = set(function.attribute)
    for name in set(node.attributes) - wanted:
        del node.attributes[name]
    for name, attribute in onnx.defs.get_schema(node.op_type, came).attributes.items():
        if name in wanted and name not in node.attributes and attribute.default_value.type:
            value = onnx.AttributeProto()
            value.CopyFrom(attribute.default_value)
            value.name = name
            node.attributes[name] = ir.serde.deserialize_attribute(value)
