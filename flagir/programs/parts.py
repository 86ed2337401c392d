"""Parts of a graph: what some values are made of, as a model of its own."""

from collections.abc import Sequence

import onnx_ir as ir

from flagsplit.flagir.reads import activations_read, weights_read


def nodes_of(outputs: Sequence[ir.Value], stop: ir.Value | None = None) -> set[ir.Node]:
    """The nodes of the main graph that make `outputs`; the search goes no further than `stop`."""
    found: set[ir.Node] = set()
    todo = [value for value in outputs if value is not stop]
    while todo:
        node = todo.pop().producer()
        if node is not None and node not in found:
            found.add(node)
            todo += [value for value in activations_read(node) if value is not stop]
    return found


def inputs_of(outputs: Sequence[ir.Value], stop: ir.Value | None = None) -> set[ir.Value]:
    """What the nodes that make `outputs` read and do not make; the search goes no further than `stop`."""
    nodes = nodes_of(outputs, stop)
    return {value for node in nodes for value in activations_read(node) if value.producer() not in nodes}


def part_of(whole: ir.Model, outputs: Sequence[ir.Value], name: str, given: ir.Value | None = None) -> ir.Model:
    """The part of a canonical model that makes `outputs`, which shares its weights.

    Args:
        whole: stays as it is.
        outputs: values of its main graph.
        name: of the part's graph.
        given: a value that is an input of the part, before those of the whole that it needs.
    """
    nodes = nodes_of(outputs, given)
    ordered = [node for node in whole.graph if node in nodes]
    weights = dict.fromkeys(weight for node in ordered for weight in weights_read(node))
    needed = inputs_of(outputs, given)
    inputs = [*([given] if given else ()), *(value for value in whole.graph.inputs if value in needed)]
    view = ir.GraphView(
        inputs, outputs, nodes=ordered, initializers=tuple(weights), opset_imports=whole.opset_imports, name=name
    )
    model = ir.Model(view.clone(), ir_version=whole.ir_version, producer_name="flagsplit")
    model.metadata_props.update(whole.metadata_props)
    return model
