"""`flagsplit diff`: what differs between two graphs."""

from pathlib import Path
from typing import Annotated

import typer

from flagsplit.apps.cli.common_options import AsJson
from flagsplit.apps.cli.output import print_json
from flagsplit.apps.models import canonical_graph
from flagsplit.flagir.diff import changes


def command(
    a: Annotated[Path, typer.Argument(help="A model or a bundle.")],
    b: Annotated[Path, typer.Argument(help="Another.")],
    as_json: AsJson = False,
) -> None:
    """Compare two graphs in canonical form. Exit code 0: the same, 1: they differ."""
    found = changes(canonical_graph(a)[0], canonical_graph(b)[0])
    if as_json:
        rows = [{"kind": c.kind, "what": c.what, "name": c.name, "a": c.a, "b": c.b} for c in found]
        print_json({"same": not found, "changes": rows})
    else:
        for change in found:
            print(change)
    if found:
        raise typer.Exit(1)
