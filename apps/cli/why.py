"""`flagsplit why`: what targets say of a node, of the nodes of an operator, or of all that they do not take."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import onnx_ir as ir
import typer

from flagsplit.apps.cli.common_options import AsJson
from flagsplit.apps.cli.options import choices, shapes, sizes
from flagsplit.apps.cli.output import console, print_json, say, size_text, table
from flagsplit.apps.cli.planning_options import Choice, Shape
from flagsplit.apps.models import canonical_graph
from flagsplit.apps.node_verdicts import Judge
from flagsplit.errors import InputError, PolicyError
from flagsplit.flagir import Skeleton, dims_of_shapes, nominal_dims
from flagsplit.targets.catalogue import TARGETS

_MOST_ROWS = 100


def command(
    model: Annotated[Path, typer.Argument(help="A model or a bundle.")],
    node: Annotated[
        str, typer.Argument(help="Name of a node, or an operator; all that some target does not take by default.")
    ] = "",
    target: Annotated[str, typer.Option(help="Targets, with commas between; all by default.")] = "",
    dim: Annotated[list[str] | None, typer.Option(metavar="SYMBOL=SIZE", help="Nominal size of a dimension.")] = None,
    choice: Choice = None,
    shape: Shape = None,
    as_json: AsJson = False,
) -> None:
    """Say where a node can run: on the accelerator of a target, on the CPU beside it, or not at all, and why."""
    graph, nominal = canonical_graph(model)
    skeleton = Skeleton(graph)
    given = {**nominal, **dims_of_shapes(skeleton, shapes("--shape", shape)), **sizes("--dim", dim)}
    judge = Judge(graph, nominal_dims(skeleton, given), {}, choices(choice))
    names = _targets(target)
    nodes = _nodes(graph, node)
    rows = [row for row in _rows(judge, nodes, names) if node or row["runs"] != "accelerator"]
    if as_json:
        print_json({"model": str(model), "nodes": len(nodes), "targets": names, "verdicts": rows})
        return
    out = console()
    if not rows:
        say(out, f"all {len(nodes)} nodes run on the accelerators of {', '.join(names)}")
        return
    cells = [(row["node"], row["operator"], row["target"], row["runs"], _reason(row)) for row in rows[:_MOST_ROWS]]
    out.print(table(f"{len(nodes)} nodes", ("node", "operator", "target", "runs on", "why"), cells, left=5))
    if len(rows) > _MOST_ROWS:
        say(out, f"and {len(rows) - _MOST_ROWS} more; name a node or an operator, or take --json")


def _reason(row: dict[str, Any]) -> str:
    extra = row["extra_bytes"]
    return f"{row['why']} Plans count {size_text(extra)} moved beside." if extra else row["why"]


def _targets(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()] or [name for name in TARGETS if name != "ort"]
    unknown = next((name for name in names if name not in TARGETS), None)
    if unknown is not None:
        raise PolicyError(f"--target: expected a target ({', '.join(sorted(TARGETS))}), came {unknown!r}")
    return names or ["ort"]


def _nodes(graph: ir.Model, wanted: str) -> list[ir.Node]:
    nodes = [node for node in graph.graph if not wanted or wanted in (node.name, node.op_type)]
    if not nodes:
        raise InputError(f"no node and no operator is called {wanted!r}; flagsplit show lists them")
    return nodes


def _rows(judge: Judge, nodes: Sequence[ir.Node], targets: Sequence[str]) -> Iterator[dict[str, Any]]:
    for node in nodes:
        for target in targets:
            verdict = judge.verdicts(target).of(node.name or "")
            yield {
                "node": node.name,
                "operator": node.op_type,
                "target": target,
                "runs": verdict.unit if verdict.supported else "nowhere",
                "why": verdict.reason,
                "extra_bytes": round(sum(verdict.extra_bytes.values())),
                "source": verdict.source,
                "confidence": verdict.confidence,
            }
