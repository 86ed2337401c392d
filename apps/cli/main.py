"""The entry point: the commands, and what becomes of errors.

Exit codes: 0 done, 1 failed, 2 misused. An error is one line on standard error; FLAGSPLIT_DEBUG=1 adds the traceback.
"""

import errno
import os
import platform
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module, metadata
from typing import Annotated, Any, Final

import typer

from flagsplit._version import VERSION
from flagsplit.apps.cli.standard_streams import prepare_standard_streams
from flagsplit.apps.cli.terminating import tidy_when_terminated
from flagsplit.errors import FlagsplitError, UsageError

# What typer raises for a wrong command line. It shows the subclass only, and has moved the class from click to itself.
_Misuse: Any = typer.BadParameter.__mro__[1]
_INTERRUPTED = 130
_OF_THE_HOST: Final = {
    errno.ENOSPC: "free some, or write elsewhere",
    errno.EDQUOT: "free some, or write elsewhere",
    errno.EROFS: "write elsewhere",
    errno.EACCES: "look at who may read and write there, or name another place",
    errno.EPERM: "look at who may read and write there, or name another place",
    errno.ENAMETOOLONG: "name another place",
    errno.EIO: "look at the disk",
    errno.EMFILE: "ulimit -n says how many a process may open; allow more",
    errno.ENFILE: "the host is out of them; see fs.file-max",
    errno.ENOMEM: "smaller inputs or models need less",
}
"""What an operating system refuses that has nothing to give, and what helps."""

_COMMANDS = {
    "build": "command",
    "plan": "command",
    "inspect": "command",
    "run": "command",
    "serve": "command",
    "decode-serve": "command",
    "gateway": "command",
    "netem": "command",
    "swap": "command",
    "top": "command",
    "trace": "command",
    "profile": "command",
    "devices": "command",
    "targets": "command",
    "why": "command",
    "quantize": "command",
    "reference": "command",
    "program": "command",
    "certify": "command",
    "verify": "command",
    "transcribe": "command",
    "show": "command",
    "diff": "command",
    "sla": "app",
    "zoo": "app",
    "keys": "app",
}
"""Each command, in the order of the help, and what its module calls it: one command, or a group of them."""


_VERSION_HELP = "Show what is installed, and exit."


def _version(asked: bool) -> None:
    if asked:
        engine = metadata.version("onnxruntime")
        print(f"flagsplit {VERSION}, ONNX Runtime {engine}, Python {platform.python_version()}, {platform.platform()}")
        raise typer.Exit


def make_app(only: str = "") -> typer.Typer:
    """The command line.

    Args:
        only: name of the one command to load; "" loads all. Loading all takes a second that a worker need not wait.
    """
    app = typer.Typer(
        name="flagsplit",
        help="Split one neural network across phone, edge and cloud, and keep it answering when a tier fails.",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(_no_command_of_its_own)
    for name in [only] if only in _COMMANDS else _COMMANDS:
        with _interrupts_held_back():
            module = import_module(f"flagsplit.apps.cli.{name.replace('-', '_')}")
        if _COMMANDS[name] == "app":
            app.add_typer(module.app, name=name)
        else:
            app.command(name)(module.command)
    return app


def _no_command_of_its_own(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help=_VERSION_HELP)] = False,
) -> None:
    """Split one neural network across phone, edge and cloud, and keep it answering when a tier fails."""


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Native modules may crash when Ctrl-C meets them half-way through their import, so it waits until they are in."""
    default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not default or threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if held:
        raise KeyboardInterrupt


def main() -> None:
    """Run the command line and leave the process with its exit code."""
    prepare_standard_streams()
    sys.exit(_run())


def _run() -> int:
    try:
        app = make_app(next(iter(sys.argv[1:]), ""))
        with tidy_when_terminated():
            code = app(prog_name="flagsplit", standalone_mode=False)
        sys.stdout.flush()  # at exit it would be too late to say that it failed
    except _Misuse as error:
        return _say(_misuse_text(error), 2)
    except (typer.Abort, KeyboardInterrupt):
        code = _INTERRUPTED
    except FlagsplitError as error:
        if _debugging():
            raise
        return _say(str(error), 2 if isinstance(error, UsageError) else 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except MemoryError as error:
        return _say(f"out of memory: {error or 'nothing left'}; smaller inputs or models need less", 1)
    except Exception as error:
        if _debugging():
            raise
        if (refused := _refusal_of_the_host(error)) is not None:
            return _say(refused, 1)
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return _say(f"flagsplit broke: {text}; run again with FLAGSPLIT_DEBUG=1 and report what it says", 1)
    return _say("interrupted", code) if code == _INTERRUPTED else int(code or 0)


def _refusal_of_the_host(error: Exception) -> str | None:
    """What to say of an error that no program could have helped; those of sockets are no OSErrors."""
    number = getattr(error, "errno", None)
    if number not in _OF_THE_HOST:
        return None
    where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
    return f"{where}{os.strerror(number)}: {_OF_THE_HOST[number]}"


def _misuse_text(error: Any) -> str:
    text = error.format_message().strip().rstrip(".?")
    text = text[:1].lower() + text[1:]
    if error.ctx is None:
        return f"{text}; flagsplit --help shows what there is"
    path, commands = error.ctx.command_path, getattr(error.ctx.command, "commands", None)
    if commands is not None and error.ctx.invoked_subcommand is None:
        return f"{text}; {path} expects one of {', '.join(commands)}"
    return f"{text}; {' '.join(filter(None, (path, error.ctx.invoked_subcommand)))} --help shows what it takes"


def _say(text: str, code: int) -> int:
    print(f"flagsplit: {' '.join(text.splitlines())}", file=sys.stderr)
    return code


def _debugging() -> bool:
    return bool(os.environ.get("FLAGSPLIT_DEBUG"))
