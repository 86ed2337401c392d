"""Options that many commands have alike."""

from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
BundlePath = Annotated[Path, typer.Argument(help="The bundle.")]
Catalogue = Annotated[list[Path] | None, typer.Option(metavar="FILE", help="Devices and links of your own.")]
Cloud = Annotated[
    str, typer.Option(metavar="tcp://HOST:PORT,…", help="Where flagsplit decode-serve listens; several are replicas.")
]
InputSeed = Annotated[int, typer.Option(min=0, help="Seed of made-up inputs.")]
InputDim = Annotated[list[str] | None, typer.Option(metavar="SYMBOL=SIZE", help="For made-up inputs.")]
Keys = Annotated[Path | None, typer.Option(help="The key folder; by default under ~/.config/flagsplit.")]
Threads = Annotated[int, typer.Option(min=0, help="Threads of the engine; 0 lets it choose.")]
ThreadsHere = Annotated[int, typer.Option(min=0, help="Threads of the engine here; 0 lets it choose.")]
