"""Replace calls of the model's functions by what is in them."""

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnx_ir.passes.common.inliner import InlinePassResult

from flagsplit.errors import ModelError
from flagsplit.flagir.limits import MAX_NODES


class InlineFunctions(common.InlinePass):
    """Mutates: inlines every call. A call that leaves outputs out is made whole first: onnx_ir wants all of them.

    Raises:
        ModelError: the model would have more than `MAX_NODES` nodes.
    """

    def call(self, model: ir.Model) -> InlinePassResult:
        """Inline in place."""
        if model.functions:
            _check_size(model)
        scopes: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
        for scope in scopes:
            for count, node in enumerate(ir.traversal.RecursiveGraphIterator(scope)):
                function = model.functions.get(node.op_identifier())
                if function is not None:
                    node.resize_outputs(max(len(node.outputs), len(function.outputs)))
                    for index, value in enumerate(node.outputs):
                        value.name = value.name or f"{function.outputs[index].name}_omitted_{count}"
        return super().call(model)


def _check_size(model: ir.Model) -> None:
    """Functions that each call the next one twice are 2^n nodes. Circles the base class has refused before."""
    callees = {
        name: [node.op_identifier() for node in ir.traversal.RecursiveGraphIterator(function)]
        for name, function in model.functions.items()
    }
    sizes: dict[ir.OperatorIdentifier, int] = {}
    todo = list(callees)
    while todo:
        name = todo[-1]
        calls = [callee for callee in callees[name] if callee in callees]
        missing = [callee for callee in calls if callee not in sizes]
        if name in sizes or not missing:
            sizes.setdefault(name, len(callees[name]) - len(calls) + sum(sizes[callee] for callee in calls))
            todo.pop()
        else:
            todo.extend(missing)
    total = sum(sizes.get(node.op_identifier(), 1) for node in ir.traversal.RecursiveGraphIterator(model.graph))
    if total > MAX_NODES:
        raise ModelError(f"expected a model of at most {MAX_NODES} nodes, its functions unfold to {total}; simplify it")
