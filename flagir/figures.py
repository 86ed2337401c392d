"""What nodes cost to run: work and bytes, by node, block or segment, at concrete sizes.

How the work of one operator is counted is in `flagsplit.flagir.work`, what is held meanwhile in
`flagsplit.flagir.liveness`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from flagsplit.errors import ModelError
from flagsplit.flagir.reads import activations_read, readers_of, weights_read
from flagsplit.flagir.types import ValueType
from flagsplit.flagir.work import work_of

Types = Mapping[str, ValueType]


@dataclass(frozen=True)
class Figures:
    """The cost of a node, or of several that run together.

    Attributes:
        flops: floating-point operations, 2 x MACs, by class (`flagsplit.flagir.blockgraph.OP_CLASSES`).
        read_bytes: activations that enter.
        write_bytes: activations that leave.
        weight_bytes: initializers that are read, each once.
        touched_weight_bytes: weight bytes that one run reads, those of each node (an embedding reads rows).
        notes: what the counts suppose, such as the trips of a loop.
    """

    flops: Mapping[str, float]
    read_bytes: int
    write_bytes: int
    weight_bytes: int
    touched_weight_bytes: int
    notes: tuple[str, ...] = ()

    @property
    def total_flops(self) -> float:
        """Of all classes."""
        return sum(self.flops.values())


def figures_of(model: ir.Model, types: Types, nodes: Iterable[str] | None = None) -> Figures:
    """The cost of some nodes of the main graph: of one, of a block, of a segment, or of all.

    Args:
        model: a canonical model.
        types: of its values, from `Skeleton.types`.
        nodes: their names; all by default.

    Raises:
        ModelError: the graph has no node of that name.
    """
    chosen = _chosen(model, nodes)
    inside = set(chosen)
    readers = readers_of(model.graph)
    entering = dict.fromkeys(v for node in chosen for v in activations_read(node) if v.producer() not in inside)
    leaving = [
        value
        for node in chosen
        for value in node.outputs
        if value.is_graph_output() or not inside.issuperset(readers.get(value, ()))
    ]
    flops: dict[str, float] = {}
    touched, notes = 0, dict[str, None]()
    for node in chosen:
        work = work_of(node, types)
        for name, count in work.by_class.items():
            flops[name] = flops.get(name, 0.0) + count
        touched += work.touched_weight_bytes
        if work.note:
            notes[work.note] = None
    weights = dict.fromkeys(value for node in chosen for value in weights_read(node))
    return Figures(
        flops,
        sum(size_of(value, types) for value in entering),
        sum(size_of(value, types) for value in leaving),
        sum(value.const_value.nbytes for value in weights if value.const_value is not None),
        touched,
        tuple(notes),
    )


def figures_by_node(model: ir.Model, types: Types) -> dict[str, Figures]:
    """The cost of each node of the main graph; of its outputs, those that nobody reads count too: they are written."""
    found = {}
    for node in model.graph:
        work = work_of(node, types)
        found[node.name or ""] = Figures(
            work.by_class,
            sum(size_of(value, types) for value in activations_read(node)),
            sum(size_of(value, types) for value in node.outputs if value.name),
            sum(value.const_value.nbytes for value in weights_read(node) if value.const_value is not None),
            work.touched_weight_bytes,
            (work.note,) if work.note else (),
        )
    return found


def size_of(value: ir.Value, types: Types) -> int:
    """Bytes of a value; what is no tensor, or has no known type, counts as none."""
    kind = types.get(value.name or "")
    return kind.size_bytes if kind is not None else 0


def _chosen(model: ir.Model, names: Iterable[str] | None) -> list[ir.Node]:
    if names is None:
        return list(model.graph)
    wanted = set(names)
    found = [node for node in model.graph if node.name in wanted]
    if len(found) != len(wanted):
        missing = min(wanted - {node.name or "" for node in found})
        raise ModelError(f"expected names of nodes of the graph, came {missing!r}; flagsplit show lists them")
    return found
