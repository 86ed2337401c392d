"""`flagsplit show`: the graph as text."""

from pathlib import Path
from typing import Annotated

import typer

from flagsplit.apps.cli.common_options import AsJson
from flagsplit.apps.cli.options import sizes
from flagsplit.apps.cli.output import print_json
from flagsplit.apps.models import canonical_graph
from flagsplit.flagir.text import describe, listing, to_onnx_text


def command(
    model: Annotated[Path, typer.Argument(help="A model or a bundle.")],
    plan: Annotated[str, typer.Option(help="Show the tiers of this plan.")] = "",
    dim: Annotated[list[str] | None, typer.Option(metavar="SYMBOL=SIZE", help="Nominal size of a dimension.")] = None,
    onnx_text: Annotated[bool, typer.Option("--onnx", help="Print ONNX's own text form instead.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a graph in canonical form: blocks and nodes with tier, shapes, bytes and FLOPs."""
    graph, nominal = canonical_graph(model)
    dims = {**nominal, **sizes("--dim", dim)}
    if as_json:
        print_json(describe(graph, dims, plan))
    elif onnx_text:
        print(to_onnx_text(graph))
    else:
        print(listing(graph, dims, plan), end="")
