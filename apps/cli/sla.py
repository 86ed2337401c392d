"""`flagsplit sla`: the schema of a policy, and whether a file is one."""

from pathlib import Path
from typing import Annotated

import typer

from flagsplit.apps.cli.common_options import AsJson
from flagsplit.apps.cli.options import sla_file
from flagsplit.apps.cli.output import print_json
from flagsplit.splitter.sla import SLA

app = typer.Typer(help="Policies: what they may say, and whether a file says it right.")


@app.command("schema")
def schema() -> None:
    """Print the JSON schema of an SLA, also in docs/sla.schema.json."""
    print_json(SLA.model_json_schema())


@app.command("check")
def check(
    file: Annotated[Path, typer.Argument(help="The policy, JSON; docs/sla.md.")],
    as_json: AsJson = False,
) -> None:
    """Check the form of an SLA. Whether a model and its tiers can keep it is for flagsplit plan to say."""
    found = sla_file(file)
    said = sorted(found.model_fields_set) if found is not None else []
    if as_json:
        print_json({"file": str(file), "valid": True, "fields": said})
    else:
        print(f"{file}: a valid SLA; it sets {', '.join(said) or 'nothing, so it asks for the least latency'}")
