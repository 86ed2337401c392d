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
            call_function(model, node, proto, came, _DOMAIN, str(count))
            found = True
        return found


def call_function(
    model: ir.Model, node: ir.Node, proto: onnx.FunctionProto, opset: int, domain: str, overload: str
) -> None:
    """Make of a node a call of the function that ONNX defines it by, in place.

    Args:
        model: gets the function.
        node: of its graph, or of a graph inside.
        proto: from `function_of`; it is used up.
        opset: that the function is written in.
        domain, overload: what the function is called there.
    """
    set_defaults(node, proto, opset)
    make_omitted(proto)
    proto.domain, proto.overload = domain, overload
    del proto.opset_import[:]
    proto.opset_import.append(onnx.helper.make_opsetid("", opset))
    function = ir.serde.deserialize_function(proto)
    model.functions[function.identifier()] = function
    node.domain, node.overload = domain, overload
    model.opset_imports[domain] = 1


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
