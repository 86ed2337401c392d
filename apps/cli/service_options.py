"""The options of commands that serve until they are told to end: where, who is heard, how it is watched and logged."""

import logging
from pathlib import Path
from typing import Annotated, Literal

import typer

from flagsplit.runtime.telemetry.logs import LogFormat, configure

Level = Literal["debug", "info", "warning"]

Listen = Annotated[str, typer.Option(help="Where to listen, tcp://HOST:PORT; port 0 takes a free one.")]
Tier = Annotated[str, typer.Option(help="The tier to serve.")]
DrainRequests = Annotated[float, typer.Option(min=0, help="How long requests may take once it is told to end.")]
Http = Annotated[
    str, typer.Option(metavar="HOST:PORT", help="Serve /metrics, /healthz, /readyz, /stats there; port 0: a free one.")
]
TraceFile = Annotated[Path | None, typer.Option(metavar="FILE", help="Append spans of requests, OTLP in JSON lines.")]
LogForm = Annotated[LogFormat, typer.Option(help="Logs for people or for programs.")]
LogLevel = Annotated[Level, typer.Option(help="debug logs every message with tensors.")]
UntilStdinCloses = Annotated[bool, typer.Option(help="End when standard input closes.")]
JsonWhenReady = Annotated[bool, typer.Option("--json", help="Print one JSON object when ready.")]


def start_logging(form: LogFormat, level: Level) -> None:
    """Log to standard error from here on."""
    configure(form, logging.getLevelNamesMapping()[level.upper()])
