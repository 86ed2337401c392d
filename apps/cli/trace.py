"""`flagsplit trace`: span files of several tiers as one picture."""

from pathlib import Path
from typing import Annotated

import typer

from flagsplit.apps.cli.common_options import AsJson
from flagsplit.apps.cli.output import console, print_json, say
from flagsplit.apps.outputs import check_output
from flagsplit.errors import InputError
from flagsplit.runtime.telemetry.chrome import chrome_trace
from flagsplit.runtime.telemetry.otlp import read


def command(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="What --trace-file wrote, one per tier.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Chrome trace format, .json.")],
    as_json: AsJson = False,
) -> None:
    """Put spans together for https://ui.perfetto.dev or chrome://tracing: a process per tier, a row per request."""
    check_output(output, *files)
    spans = [each for file in files for each in read(file)]
    try:
        output.write_bytes(chrome_trace(spans))
    except OSError as error:
        raise InputError(f"cannot write {output}: {error.strerror}") from None
    traces = len({span.trace_id for _, span in spans})
    if as_json:
        print_json({"output": str(output), "spans": len(spans), "traces": traces})
    else:
        say(console(), f"{output}: {len(spans)} spans of {traces} requests")
