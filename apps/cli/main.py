"""The entry point: the commands, and what becomes of errors.

Exit codes: 0 done, 1 failed, 2 misused. An error is one line on standard error; FLAGSPLIT_DEBUG=1 adds the traceback.
"""

import os
import sys

import click
import typer

from flagsplit.apps.cli import build, devices, inspect, keys, run, serve, zoo
from flagsplit.errors import FlagsplitError, UsageError

app = typer.Typer(
    name="flagsplit",
    help="Split one neural network across phone, edge and cloud, and keep it answering when a tier fails.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("build")(build.command)
app.command("inspect")(inspect.command)
app.command("run")(run.command)
app.command("serve")(serve.command)
app.command("devices")(devices.command)
app.add_typer(zoo.app, name="zoo")
app.add_typer(keys.app, name="keys")


def main() -> None:
    """Run the command line and leave the process with its exit code."""
    sys.exit(_run())


def _run() -> int:
    try:
        code = app(standalone_mode=False)
    except click.ClickException as error:
        return _say(error.format_message(), 2)
    except click.exceptions.Abort:
        return _say("interrupted", 130)
    except KeyboardInterrupt:
        return _say("interrupted", 130)
    except FlagsplitError as error:
        if _debugging():
            raise
        return _say(str(error), 2 if isinstance(error, UsageError) else 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except Exception as error:
        if _debugging():
            raise
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return _say(f"flagsplit broke: {text}; run again with FLAGSPLIT_DEBUG=1 and report what it says", 1)
    return int(code or 0)


def _say(text: str, code: int) -> int:
    print(f"flagsplit: {text}", file=sys.stderr)
    return code


def _debugging() -> bool:
    return bool(os.environ.get("FLAGSPLIT_DEBUG"))
