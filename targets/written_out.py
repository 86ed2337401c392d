"""Operators that the ONNX standard defines by others: written out where a target has no lowering of their own."""

from collections.abc import Callable

import onnx_ir as ir

from flagsplit.flagir.newer import function_of
from flagsplit.flagir.opset import IR_VERSION, OPSET
from flagsplit.flagir.passes.inline_functions import InlineFunctions
from flagsplit.flagir.passes.lower_newer import call_function
from flagsplit.flagir.specialize import settle

_DOMAIN = "flagsplit.function"
_MAX_DEPTH = 8

Taken = Callable[[ir.Node], bool]
"""Whether a target lowers a node as it is."""


def write_out(model: ir.Model, taken: Taken) -> bool:
    """Replace operators that have no lowering of their own by the function that ONNX gives for them, in place.

    Args:
        model: a canonical model of fixed shapes; what becomes constant by it is folded.
        taken: tells which nodes stay as they are.

    Returns:
        Whether there were any.
    """
    found = False
    for _ in range(_MAX_DEPTH):
        if not _call_functions(model, taken):
            break
        InlineFunctions()(model)
        model.functions.clear()
        model.opset_imports.pop(_DOMAIN, None)
        settle(model)
        found = True
    return found


def expanded(node: ir.Node, taken: Taken) -> ir.Model | None:
    """A node written out, as a model of its own; None if ONNX has no function for it."""
    ends = [value for value in (*node.inputs, *node.outputs) if value is not None and value.name]
    if any(value.type is None or value.shape is None for value in ends):
        return None
    model = model_of(node)
    return model if write_out(model, taken) else None


def _call_functions(model: ir.Model, taken: Taken) -> bool:
    found = False
    for count, node in enumerate(list(model.graph)):
        if node.domain or taken(node) or (proto := function_of(node, OPSET)) is None:
            continue
        call_function(model, node, proto, OPSET, _DOMAIN, str(count))
        found = True
    return found


def model_of(node: ir.Node) -> ir.Model:
    """A model of one node; its constants stay constants."""
    values: dict[ir.Value, ir.Value] = {}
    inputs: list[ir.Value] = []
    constants: list[ir.Value] = []
    for value in node.inputs:
        if value is None or value in values:
            continue
        copy = ir.Value(name=value.name, type=value.type, shape=value.shape, const_value=value.const_value)
        values[value] = copy
        (inputs if value.const_value is None else constants).append(copy)
    outputs = [ir.Value(name=value.name, type=value.type, shape=value.shape) for value in node.outputs]
    clone = ir.Node(
        "",
        node.op_type,
        [None if value is None else values[value] for value in node.inputs],
        [ir.Attr(a.name, a.type, a.value) for a in node.attributes.values()],
        outputs=outputs,
        name=node.name,
    )
    graph = ir.Graph(
        inputs,
        [value for value in outputs if value.name],
        nodes=[clone],
        initializers=constants,
        opset_imports={"": OPSET},
        name="node",
    )
    return ir.Model(graph, ir_version=IR_VERSION)
