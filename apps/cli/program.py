"""`flagsplit program`: a generative model as the graphs that a loop is made of."""

from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from flagsplit.apps.cli.common_options import AsJson
from flagsplit.apps.cli.output import console, print_json, progress_bar, say, size_text, table
from flagsplit.apps.programs import open_program
from flagsplit.errors import ConfigError
from flagsplit.flagir import weights_bytes
from flagsplit.flagir.programs import Program, save_program


def command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="zoo:NAME|FOLDER|FILE.gguf",
            help="zoo:moonshine, zoo:whisper-base, zoo:smollm2, a program, an export.",
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Write the program there, a new folder.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Import a generative model as graphs: its encoder, the cross-attention, and one step of its decoder."""
    if output is not None and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"expected {output} to be a new or empty folder, it is there; choose another")
    with progress_bar(quiet=as_json) as bar:
        program = open_program(name, progress=lambda what: bar(what, 0.5))
        if output is not None:
            bar(f"writing {output}", 0.9)
            _write(program, output)
    described = _described(program)
    if as_json:
        print_json({**described, "folder": str(output) if output else None})
        return
    _print(program, described, output)


def _write(program: Program, output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        save_program(program, output)
    except OSError as error:
        with suppress(OSError):
            for made in output.iterdir():  # it was empty
                made.unlink()
        raise ConfigError(f"cannot write {output}: {error.strerror or error}; choose another place with -o") from error


def _described(program: Program) -> dict[str, Any]:
    facts = program.facts
    sizes = ("layers", "heads", "kv_heads", "head_size", "width", "vocabulary", "max_positions")
    return {
        **{name: getattr(facts, name) for name in ("name", "kind", "source", "license", "input", "tokenizer")},
        **{name: getattr(facts, name) for name in sizes},
        "prompt": list(facts.prompt),
        "stop_tokens": list(facts.stop_tokens),
        "template": facts.template,
        "max_input_s": facts.max_input_s,
        "frames_per_s": facts.frames_per_s,
        "tokens_per_s": facts.tokens_per_s,
        "kv_bytes_per_token": 2 * 4 * facts.layers * facts.kv_heads * facts.head_size,
        "graphs": {
            name: {"nodes": len(model.graph), "weights_bytes": weights_bytes(model)}
            for name, model in program.graphs.items()
        },
    }


def _print(program: Program, described: dict[str, Any], output: Path | None) -> None:
    out, facts = console(), program.facts
    say(out, f"{facts.name}: {facts.kind}, {facts.license}; {facts.source}")
    rows = [(name, each["nodes"], size_text(each["weights_bytes"])) for name, each in described["graphs"].items()]
    out.print(table("Graphs", ("graph", "nodes", "weights"), rows))
    heads = f"{facts.heads} heads" if facts.heads == facts.kv_heads else f"{facts.heads} heads on {facts.kv_heads}"
    shape = f"{facts.layers} layers of {heads} of {facts.head_size}"
    say(out, f"{shape}, width {facts.width}, {facts.vocabulary} tokens")
    kept = size_text(described["kv_bytes_per_token"])
    say(out, f"{kept} of keys and values a token, {facts.max_positions} tokens at most")
    if output is not None:
        say(out, f"written to {output}")
