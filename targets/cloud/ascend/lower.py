"""A chip part as ATC takes it: listed operators, in forms that are described, in the opset of a release of CANN."""

import onnx_ir as ir

from flagsplit.flagir.specialize import open_values
from flagsplit.targets.cloud.ascend.facts import NotTakenError, has_graph
from flagsplit.targets.cloud.ascend.forms import into_forms
from flagsplit.targets.cloud.ascend.no_elements import leave_out_empty
from flagsplit.targets.cloud.ascend.older_opset import into_opset
from flagsplit.targets.cloud.ascend.releases import Release
from flagsplit.targets.cloud.ascend.rules import broken_rule
from flagsplit.targets.written_out import write_out


def lower(model: ir.Model, release: Release) -> ir.Model:
    """A copy for a release of CANN.

    Args:
        model: a canonical model of fixed shapes; it stays as it is, and its large weights are shared.
        release: whose operators and opset count.

    Raises:
        NotTakenError: a node is not taken, whatever it is written as.
    """
    for node in model.graph:
        if has_graph(node):
            raise NotTakenError(node, "a graph within a node is not written in the older opset")
    copy = model.clone()
    write_out(copy, release.has)
    leave_out_empty(copy.graph)
    undecided = set(open_values(copy))
    for node in copy.graph:
        if not release.has(node):
            raise NotTakenError(node, _not_listed(node, release))
        if any(value.name in undecided for value in node.outputs):
            raise NotTakenError(node, f"the shape of {node.outputs[0].name!r} depends on data")
    into_forms(copy.graph)
    into_opset(copy, release.opset, release.ir_version)
    for node in copy.graph:
        reason = broken_rule(node, release)
        if reason:
            raise NotTakenError(node, reason)
    return copy


def _not_listed(node: ir.Node, release: Release) -> str:
    name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    if not node.domain and node.op_type in release.operators:
        return f"{name} is newer than opset {release.opset}, in which models for CANN {release.version} are written"
    return f"{name} is not among the operators that ATC of CANN {release.version} lists"
