"""Plans with codecs beside each other: every value known by a name that says what it was computed from.

A decoded value is not the value that was encoded, and neither is what follows from it. At run time tensors are kept by
name, over attempts under different plans, so in a graph with codecs whatever a loss has reached gets a name of its own.
Equal names are equal tensors then, whatever the plan, and the graphs of all plans can be joined into one. A reference
(`flagsplit.flagir.reference`) needs none of this and keeps the model's names.
"""

import hashlib
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from flagsplit.errors import ModelError
from flagsplit.flagir.codecs.functions import DOMAIN
from flagsplit.flagir.codecs.names import AFTER_DIGITS
from flagsplit.flagir.reads import activations_read, reads_of, subgraphs_of


def name_what_is_lossy(model: ir.Model) -> dict[str, str]:
    """Rename, in place, the nodes that read what a codec changed, directly or not, and what they make.

    Args:
        model: a canonical model with codecs (`apply_codecs`). A node or value `NAME` becomes `NAME.after_DIGEST`; the
            digest is over the ways from the decoded values to it.

    Returns:
        The new names of the graph outputs that were renamed, by the names of before.

    Raises:
        ModelError: the model has a value of such a name already.
    """
    taken = {value.name for node in model.graph for value in node.outputs}
    outputs = [value.name or "" for value in model.graph.outputs]
    marks: dict[ir.Value, str] = {}
    for node in list(model.graph):
        read = [f"{value.name}\0{marks.get(value, '')}" for value in activations_read(node)]
        inherits = any(value in marks for value in activations_read(node))
        if not inherits and not _decodes(node):
            continue
        mark = hashlib.sha256("\0".join((node.name or "", *read)).encode()).hexdigest()[:AFTER_DIGITS]
        marks.update(dict.fromkeys(node.outputs, mark))
        if inherits:
            _rename(node, mark, taken)
    renamed = [value.name or "" for value in model.graph.outputs]
    return {old: new for old, new in zip(outputs, renamed, strict=True) if old != new}


def _decodes(node: ir.Node) -> bool:
    return node.domain == DOMAIN and node.op_type.startswith("Decode")


def _rename(node: ir.Node, mark: str, taken: set[str | None]) -> None:
    """Rename a node, what it makes, and all that is inside it: a model has each name once, those in bodies included."""
    node.name = f"{node.name}.after_{mark}"
    for value in node.outputs:
        value.name = _renamed(value.name, mark, taken)
    for body in subgraphs_of(node):
        for value in (*body.inputs, *body.initializers.values()):
            value.name = _renamed(value.name, mark, taken)
        for inner in body:
            _rename(inner, mark, taken)


def _renamed(name: str | None, mark: str, taken: set[str | None]) -> str:
    if not name:
        return ""
    new = f"{name}.after_{mark}"
    if new in taken:
        raise ModelError(f"value {new!r} has a name that flagsplit gives to values after a codec; rename it")
    return new


def join_variant(model: ir.Model, variant: ir.Model) -> None:
    """Move what a variant has and a model has not into the model, in place.

    Args:
        model: gets the nodes and functions; its own stay as they are, and its outputs too.
        variant: a copy of the same model that went through `name_what_is_lossy`; of no use afterwards.
    """
    known = {node.name for node in model.graph}
    values = _values(model.graph.inputs, tuple(model.graph.initializers.values()), tuple(model.graph))
    variant.graph.outputs.clear()
    moved = [node for node in variant.graph if node.name not in known]
    variant.graph.remove(moved)
    for node in moved:
        _read_from(node, values)
        model.graph.append(node)
        values |= {value.name or "": value for value in node.outputs}
    for name, function in variant.functions.items():
        model.functions.setdefault(name, function)
    model.opset_imports.update(variant.opset_imports)


def _values(
    inputs: Sequence[ir.Value], initializers: Sequence[ir.Value], nodes: Sequence[ir.Node]
) -> dict[str, ir.Value]:
    made = (value for node in nodes for value in node.outputs)
    return {value.name or "": value for value in (*inputs, *initializers, *made)}


def _read_from(node: ir.Node, values: Mapping[str, ir.Value]) -> None:
    """Let a node, and what is inside it, read the values of these names instead of those of its own graph."""
    outer = set(reads_of(node))
    inside = [sub for graph in subgraphs_of(node) for sub in ir.traversal.RecursiveGraphIterator(graph)]
    for reader in (node, *inside):
        for index, value in enumerate(reader.inputs):
            if value is not None and value in outer:
                reader.replace_input_with(index, values[value.name or ""])
