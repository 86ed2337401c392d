"""Is a graph canonical FlagIR, and are its plans whole? Every violation is reported, not only the first."""

from collections.abc import Iterator
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from flagsplit.errors import ModelError
from flagsplit.flagir.opset import IR_VERSION, OPSET, STANDARD_DOMAINS
from flagsplit.flagir.placement import name_of, plans_on
from flagsplit.flagir.reads import reads_of
from flagsplit.flagir.version import check_version

_DATA_RANK = frozenset(
    "If Loop Scan Squeeze Unsqueeze Reshape Expand ConstantOfShape GatherND SequenceAt OptionalGetElement".split()
)
"""Operators whose result has as many dimensions as the data say, or as the branch that runs."""


@dataclass(frozen=True)
class Violation:
    """One thing that is not as FlagIR wants it.

    Attributes:
        where: the node, value or plan concerned.
        expected: what FlagIR demands.
        found: what is there.
        fix: what to do.
    """

    where: str
    expected: str
    found: str
    fix: str

    def __str__(self) -> str:
        return f"{self.where}: expected {self.expected}, found {self.found}; {self.fix}"


def violations(model: ir.Model) -> tuple[Violation, ...]:
    """All violations of the canonical form, in graph order.

    Raises:
        ModelError: the model says that it is of a FlagIR version whose rules are others.
    """
    check_version(model)
    return (*_of_model(model), *_of_names(model.graph), *_of_nodes(model), *_of_order(model), *_of_plans(model))


def check(model: ir.Model) -> None:
    """Raise if the model is not canonical.

    Raises:
        ModelError: lists every violation, up to twenty; or the model is of another FlagIR version.
    """
    found = violations(model)
    if found:
        more = f"\n  and {len(found) - 20} more" if len(found) > 20 else ""
        raise ModelError("the model is not canonical FlagIR:\n  " + "\n  ".join(map(str, found[:20])) + more)


def _of_model(model: ir.Model) -> Iterator[Violation]:
    canonicalize = "canonicalize the model"
    if model.opset_imports.get("") != OPSET:
        yield Violation("model", f"opset {OPSET}", f"opset {model.opset_imports.get('')}", canonicalize)
    if model.ir_version is not None and model.ir_version < IR_VERSION:
        yield Violation("model", f"IR version {IR_VERSION} or newer", str(model.ir_version), canonicalize)
    if model.functions:
        yield Violation("model", "no functions", f"{len(model.functions)} functions", canonicalize)
    if not model.graph.outputs:
        yield Violation("graph", "at least one output", "none", "export the model with outputs")


def _of_names(graph: ir.Graph) -> Iterator[Violation]:
    seen: set[str] = set()
    for node in graph:
        if not node.name or node.name in seen:
            where = f"node {node.name!r} ({node.op_type})"
            yield Violation(where, "a unique name", "none or a second one", "rename it")
        seen.add(node.name or "")
    names: set[str] = set()
    values = [*graph.inputs, *graph.initializers.values(), *(out for node in graph for out in node.outputs if out.name)]
    for value in values:
        if not value.name or value.name in names:
            yield Violation(f"value {value.name!r}", "a single definition", "a second one", "rename it")
        names.add(value.name or "")


def _of_nodes(model: ir.Model) -> Iterator[Violation]:
    for value in model.graph.inputs:
        yield from _of_value(value, f"input {value.name!r}")
    for value in model.graph.outputs:
        if isinstance(value.type, ir.TensorType) and value.shape is None:
            yield Violation(f"output {value.name!r}", "a rank", "none", "declare the shape")
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        where = f"node {node.name!r} ({node.op_type})"
        if node.domain not in STANDARD_DOMAINS:
            yield Violation(where, "a standard operator", f"domain {node.domain!r}", "rewrite it in standard operators")
        elif not node.domain and not onnx.defs.has(node.op_type, max_inclusive_version=OPSET):
            yield Violation(where, f"an operator of opset {OPSET}", node.op_type, "rewrite it in standard operators")
        for value in node.outputs:
            if value.name and not (value.type is not None and value.shape is None and _rank_is_data(node)):
                yield from _of_value(value, where)


def _rank_is_data(node: ir.Node) -> bool:
    """Whether how many dimensions a node's result has may depend on the data, here or further up."""
    if node.op_type in _DATA_RANK or node.op_type.startswith("Reduce"):
        return True
    return any(value is not None and value.shape is None for value in node.inputs)


def _of_value(value: ir.Value, where: str) -> Iterator[Violation]:
    if value.type is None:
        yield Violation(where, f"a type for {value.name!r}", "none", "infer shapes, or declare the type")
    elif isinstance(value.type, ir.TensorType) and value.shape is None:
        yield Violation(where, f"a rank for {value.name!r}", "none", "infer shapes, or declare the shape")


def _of_order(model: ir.Model) -> Iterator[Violation]:
    known: set[ir.Value] = {*model.graph.inputs, *model.graph.initializers.values()}
    for node in model.graph:
        for value in reads_of(node):
            if value not in known:
                where = f"node {node.name!r} ({node.op_type})"
                yield Violation(where, f"{value.name!r} to be made before", "it is not", "sort the graph")
        known.update(node.outputs)


def _of_plans(model: ir.Model) -> Iterator[Violation]:
    for plan, tiers in plans_on(model).items():
        for node in model.graph:
            stages = [c.pipeline_stage for c in node.device_configurations if name_of(c) == plan]
            if len(stages) != 1 or stages[0] is None or not 0 <= stages[0] < len(tiers):
                yield Violation(
                    f"node {node.name!r} ({node.op_type})",
                    f"one of {len(tiers)} tiers under plan {plan!r}",
                    str(stages),
                    "place it",
                )
