"""The recognisers, in the order in which they are asked, and what becomes of their answers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from flagsplit.flagir.groups import attention, conv, gelu, layer_norm, linear, swish
from flagsplit.flagir.groups.pattern import View, is_contraction

Recogniser = Callable[[View, ir.Node], frozenset[ir.Node]]
"""Says which nodes belong with this one; empty if it is not the middle of such a group."""

_TABLE: Mapping[str, Recogniser] = {
    "layer_norm": layer_norm.find,
    "gelu": gelu.find,
    "swish": swish.find,
    "attention": attention.find,
    "conv": conv.find,  # these two take activations that were found above into their groups
    "linear": linear.find,
}


@dataclass(frozen=True)
class FusedGroup:
    """Nodes that belong together.

    Attributes:
        kind: the recogniser that found it.
        nodes: its nodes, in execution order. They are convex: no path leaves the group and comes back.
    """

    kind: str
    nodes: tuple[ir.Node, ...]


def recognisers() -> tuple[str, ...]:
    """The kinds of groups that are known."""
    return tuple(_TABLE)


def find_groups(graph: ir.Graph) -> tuple[FusedGroup, ...]:
    """The fused groups of a canonical graph, in the order of their first nodes; no node is in two.

    What lies on a path from one node of a group to another belongs to it too. Where that would bring in one more
    contraction, and where part of a group is in another already, there is no group.
    """
    view = View(graph)
    for kind, find in _TABLE.items():
        for node in view.nodes:
            if view.kinds.get(node, "") in _UNITS:
                continue
            wanted = find(view, node)
            nodes = view.closure(wanted) if len(wanted) > 1 else wanted
            if nodes and _may_be(view, wanted, nodes):
                view.kinds.update(dict.fromkeys(nodes, kind))
                view.members.update(dict.fromkeys(nodes, nodes))
    found = dict.fromkeys(view.members[node] for node in view.nodes if node in view.members)
    return tuple(
        FusedGroup(view.kinds[next(iter(nodes))], tuple(sorted(nodes, key=view.position.__getitem__)))
        for nodes in found
    )


_UNITS = frozenset(("layer_norm", "attention", "conv", "linear"))


def _may_be(view: View, wanted: frozenset[ir.Node], nodes: frozenset[ir.Node]) -> bool:
    """Whether the closure brought in no contraction, and each group that it meets is all in it."""
    met = {view.members[node] for node in nodes if node in view.members}
    return all(group <= nodes for group in met) and not any(is_contraction(node) for node in nodes - wanted)
