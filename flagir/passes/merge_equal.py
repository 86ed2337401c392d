"""Compute once what the graph computes twice: nodes with the same operator, attributes and inputs become one.

What makes a graph output stays as it is, since every output is the result of a node of its own; so does what is random,
and what holds a subgraph.
"""

import onnx_ir as ir

_RANDOM = frozenset(
    "RandomNormal RandomNormalLike RandomUniform RandomUniformLike Multinomial Bernoulli Dropout".split()
)
_PLAIN = frozenset(
    (
        ir.AttributeType.INT,
        ir.AttributeType.INTS,
        ir.AttributeType.FLOAT,
        ir.AttributeType.FLOATS,
        ir.AttributeType.STRING,
        ir.AttributeType.STRINGS,
    )
)

_Key = tuple[object, ...]


class MergeEqual(ir.passes.InPlacePass):
    """Mutates the main graph. Requires nodes in topological order, which one round then suffices for."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Merge in place."""
        first: dict[_Key, ir.Node] = {}
        modified = False
        for node in list(model.graph):
            key = _key(node)
            if key is None:
                continue
            kept = first.setdefault(key, node)
            if kept is not node:
                for old, new in zip(node.outputs, kept.outputs, strict=True):
                    old.replace_all_uses_with(new)
                model.graph.remove(node, safe=True)
                modified = True
        return ir.passes.PassResult(model, modified)


def _key(node: ir.Node) -> _Key | None:
    """What two nodes have in common that compute the same; None for a node that stays as it is."""
    if node.op_type in _RANDOM or any(value.is_graph_output() for value in node.outputs):
        return None
    if any(attribute.type not in _PLAIN for attribute in node.attributes.values()):
        return None
    attributes = sorted((name, attribute.type, repr(attribute.value)) for name, attribute in node.attributes.items())
    made = tuple(bool(value.name) for value in node.outputs)
    return node.domain, node.op_type, tuple(id(value) for value in node.inputs), tuple(attributes), made
